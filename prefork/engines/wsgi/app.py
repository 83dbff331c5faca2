"""WORKER. The WSGI application: its environ, its calls, its `wsgi.errors`."""

from __future__ import annotations

import io
import os
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from prefork.core.log import Log, ReportingWriter
from prefork.engines.peer import Peer
from prefork.http.environ import Environ, Environs, for_listener
from prefork.http.fields import FieldTable
from prefork.http.forwarded import UNIX, find_origin
from prefork.http.response import ResponseError
from prefork.http.wsgi import Client, WsgiCall
from prefork.runtime.forks import OURS
from prefork.status.scoreboard import BUSY_NS, SINCE, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.core.tls import TlsFacts
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


# --- A connection that the application takes over, to speak WebSocket by itself. flask-sock, simple-websocket and
# others look for its socket in the environ, as gunicorn's threaded workers give it. It keeps its thread; what the
# application returns in the end is not sent. An application in the loop cannot have it, as it would hold the loop.


_KEY = "gunicorn.socket"


class ClientOnRow(Client, Protocol):
    """The connection of a call, and the row of the thread that runs it."""

    fd: int
    row: Row | None


class Takeover:
    """The client's socket, once the application uses it: attributes are those of a socket that blocks.

    It is a copy of the loop's, so that either may close its own. `taken_ns`: when it was used first.
    """

    def __init__(self, client: ClientOnRow) -> None:
        self._sock = socket.socket(fileno=os.dup(client.fd))
        self._client = client
        self.taken_ns = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if not self.taken_ns and self._client.row:
            self._client.row.cells[SINCE] = 0  # the application waits for its client by itself: --timeout has no say
            self.taken_ns = monotonic_ns()
            self._sock.setblocking(True)
        return getattr(self._sock, name)

    def forgo(self) -> None:
        """Close it, unless the application has used it."""
        if not self.taken_ns:
            self._sock.close()


class NoTakeover:
    """Stands for the socket where the application cannot have it, and says so when it is used."""

    def __init__(self, tells: Callable[[], None]) -> None:
        self._tells = tells

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._tells()
        raise RuntimeError(_NO_TAKEOVER)


_NO_TAKEOVER = "a WSGI application speaks WebSocket only with --threads 2 or more, and without --tls-cert"


class UpgradableCall(WsgiCall):
    """The call for a request that asks for a WebSocket."""

    __slots__ = ("_takeover",)
    _takeover: Takeover

    def offer(self, takeover: Takeover) -> None:
        """Put the socket in the environ."""
        self._takeover = self._environ[_KEY] = takeover

    def step(self) -> bytes | FilePart:
        """See WsgiCall; once the connection was taken over, nothing is sent."""
        output = WsgiCall.step(self)
        if not self._takeover.taken_ns:
            if self.done:
                self._takeover.forgo()
            return output
        self.close()
        if isinstance(self.error, StopIteration | OSError):  # so flask-sock says that it is done; or the client left
            self.error = None
        self.busy_ns -= monotonic_ns() - self._takeover.taken_ns
        self.status, self.sent, self.keep_alive = 101, 0, False
        self.aborted = True  # no lingering close, which would read what is the application's
        return b""

    def write(self, data: bytes) -> None:
        """See WsgiCall. Raises ResponseError once the connection was taken over."""
        if self._takeover.taken_ns:
            raise ResponseError("write() was called for a connection that the application has taken over")
        WsgiCall.write(self, data)


WsgiPeer = Peer[Environs]


def environ_of(tls: TlsFacts) -> Environ:
    """Return what a connection's TLS adds to its environs, by the names that Apache's mod_ssl has given them."""
    added = {"SSL_PROTOCOL": tls.version, "SSL_CIPHER": tls.cipher, "SSL_CLIENT_VERIFY": "NONE"}
    if tls.client_chain:
        added |= {
            "SSL_CLIENT_VERIFY": "SUCCESS",
            "SSL_CLIENT_CERT": tls.client_chain[0],
            "SSL_CLIENT_S_DN": tls.subject.encode().decode("latin1"),
            "SSL_CLIENT_I_DN": tls.issuer.encode().decode("latin1"),
            "SSL_CLIENT_M_SERIAL": tls.serial,
        }
    return added


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
        self._told = False
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

    def call(self, client: ClientOnRow, peer: WsgiPeer, request: Request, body: BodyBuffer | None) -> WsgiCall:
        """The application's answer to one request, not begun yet."""
        environ = peer.app_view.of(request, body)
        if peer.trusted:
            self._apply_forwarded(peer, request, environ)
        made = self._upgradable(environ) if request.upgrade else WsgiCall
        call = made(self._app, environ, request, self._context.stamp, body, self._sendfile)
        call.client = client
        if isinstance(call, UpgradableCall):
            call.offer(Takeover(client))
        if self._context.draining:
            call.keep_alive = False
        return call

    def turn_away(self, peer: WsgiPeer, request: Request, body: BodyBuffer | None) -> tuple[WsgiCall, bytes]:
        """Answer a request that the application does not get: return a call that is done, and the whole response."""
        stamp = self._context.stamp
        call = WsgiCall(self._app, {}, request, stamp, body)
        call.keep_alive &= not self._context.draining
        response = call.turn_away(stamp)
        call.close()
        self._log.turn_away(peer, request, call)
        return call, response

    def _upgradable(self, environ: Environ) -> type[WsgiCall]:
        """Return the kind of call for a request that asks for a WebSocket."""
        if not self._in_loop and self._sendfile:
            return UpgradableCall
        environ[_KEY] = NoTakeover(self._tell_no_takeover)
        return WsgiCall

    def _tell_no_takeover(self) -> None:
        if not self._told:
            self._told = True
            self._worker.log.warning("no WebSocket for a WSGI application", hint=_NO_TAKEOVER)

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
