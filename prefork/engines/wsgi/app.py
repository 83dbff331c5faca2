"""WORKER. The WSGI application: its environ, its calls, its `wsgi.errors`."""

from __future__ import annotations

import io
from time import monotonic_ns
from typing import TYPE_CHECKING, TextIO, cast

from prefork.core.log import Log, ReportingWriter
from prefork.engines.peer import Peer
from prefork.http.environ import Environ, Environs, for_listener
from prefork.http.fields import FieldTable
from prefork.http.forwarded import UNIX, find_origin
from prefork.http.wsgi import WsgiCall
from prefork.runtime.forks import OURS
from prefork.status.scoreboard import BUSY_NS, SINCE, Row

if TYPE_CHECKING:
    from prefork.engines.context import WorkerContext
    from prefork.engines.http_context import HttpContext
    from prefork.engines.request_log import RequestLog
    from prefork.http.body import BodyBuffer, FilePart
    from prefork.http.head import Request
    from prefork.runtime.transfer import Server


# --- `wsgi.errors`: where applications write what went wrong. It goes to where the log goes.


class ErrorStream(io.TextIOBase):
    """WORKER. Takes any text. What cannot be written is dropped: the log's trouble must not become the request's."""

    def __init__(self, log: Log) -> None:
        self._out = ReportingWriter(log.handler.fd, log, "output", stream="wsgi.errors")

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, text: str) -> int:
        """Write the text at once, as one line or several. Returns its length."""
        self._out.write(text.encode("utf-8", "backslashreplace"))
        return len(text)


WsgiPeer = Peer[Environs]


def fields_of(worker: WorkerContext) -> FieldTable:
    """Return the table of a worker's request fields. The first one that the environ will not have is told."""

    def dropped(name: bytes) -> None:
        worker.log.debug("request field dropped", name=name.decode("ascii"), why="its name has _: see --underscores")

    return FieldTable(worker.config.underscores, dropped)


class WsgiApp:
    """WORKER. The application as the loop and the threads of its pool call it. `busy_ns`: spent in it, in all."""

    def __init__(self, worker: WorkerContext, context: HttpContext, log: RequestLog) -> None:
        self._app = worker.app.target
        self._context = context
        self._log = log
        self._in_loop = worker.config.threads == 1  # then the loop writes the busy time, once a turn
        self._sendfile = worker.inherited.tls is None
        self.busy_ns = 0
        self._worker = worker
        self._errors = cast("TextIO", ErrorStream(worker.log))
        self._environs = {listener.server: self._environ(listener.server) for listener in worker.listeners}

    def view(self, server: Server, address: str, port: int) -> Environs:
        """The environs of a connection's requests."""
        environ = self._environs.get(server) or self._environ(server)
        return Environs(environ, "" if address == UNIX else address, port or "")

    def _environ(self, server: Server) -> Environ:
        (host, port), config = server, self._worker.config
        return for_listener(
            name=host if port is not None else "",
            port=port or 0,
            scheme="https" if self._worker.inherited.tls else "http",
            errors=self._errors,
            multithread=config.threads > 1,
            multiprocess=config.workers > 1,
            root_path=config.root_path,
        )

    def call(self, peer: WsgiPeer, request: Request, body: BodyBuffer | None) -> WsgiCall:
        """The application's answer to one request, not begun yet."""
        environ = peer.app_view.of(request, body)
        if peer.trusted:
            self._apply_forwarded(peer, request, environ)
        call = WsgiCall(self._app, environ, request, self._context.stamp, body, self._sendfile)
        if self._context.draining:
            call.keep_alive = False
        return call

    def run(self, row: Row, peer: WsgiPeer, call: WsgiCall) -> bytes | FilePart:
        """Let the application go on until it has something to send, on the row of the thread that does it."""
        cells, request = row.cells, call.request
        if request.target is not peer.target or request.method is not peer.method:
            peer.set_request(request)
        row.memory[row.place] = peer.row_text  # without a call: 0.1 us less
        cells[SINCE] = began_ns = monotonic_ns()
        part = call.step()
        if OURS.forked:
            OURS.end(call.error)
        took_ns = monotonic_ns() - began_ns
        cells[SINCE] = 0
        self.busy_ns += took_ns
        call.busy_ns += took_ns
        if call.done:
            if not self._in_loop:
                cells[BUSY_NS] += call.busy_ns
            if call.gone:
                self._log.abandon(row, peer, request, call, call.busy_ns, call.error)
            else:
                self._log.finish(row, peer, request, call, call.busy_ns)
        return part

    def abandon(self, row: Row, peer: WsgiPeer, call: WsgiCall) -> None:
        """The client left before the response was complete: let the application close it."""
        peer.set_request(call.request)
        row.note(peer.row_text)
        row.cells[SINCE] = began_ns = monotonic_ns()
        call.close()
        if OURS.forked:
            OURS.end(call.error)
        took_ns = monotonic_ns() - began_ns
        row.cells[SINCE] = 0
        self.busy_ns += took_ns
        call.busy_ns += took_ns
        self._log.abandon(row, peer, call.request, call, call.busy_ns, call.error)

    def _apply_forwarded(self, peer: WsgiPeer, request: Request, environ: Environ) -> None:
        """Put the client in the place of the trusted proxies that stand before it."""
        origin = find_origin(request.fields, peer.address, peer.port, self._context.trusted)
        if origin.address != peer.address:
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = origin.address, str(origin.port or "")
        if origin.scheme:
            environ["wsgi.url_scheme"] = origin.scheme
            environ.pop("HTTPS", None)
            if origin.scheme == "https":
                environ["HTTPS"] = "on"
        if origin.host:
            environ["HTTP_HOST"] = origin.host.decode("latin1")
