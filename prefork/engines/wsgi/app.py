"""WORKER. How requests are told to a WSGI application, and what is counted of them."""

from __future__ import annotations

import io
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, TextIO, cast

from prefork.core.log import Outlet
from prefork.engines.http_context import HttpSite
from prefork.engines.peer import Peer
from prefork.http.environ import Environ, Environs, for_connection, for_listener
from prefork.http.forwarded import UNIX, find_origin
from prefork.http.wsgi import WsgiCall
from prefork.status.histogram import array_index
from prefork.status.scoreboard import ABORTED, BUSY_NS, COMPLETED, ERRORS, HISTOGRAM, SINCE, Row

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.context import Station
    from prefork.engines.error_log import Complaints
    from prefork.http.body import BodyBuffer, FilePart
    from prefork.http.head import Request


# --- `wsgi.errors`: where applications write what went wrong. It goes to where the log goes.


class ErrorStream(io.TextIOBase):
    """WORKER. Takes any text. What cannot be written is dropped: the log's trouble must not become the request's."""

    def __init__(self, fd: int) -> None:
        self._out = Outlet(fd)

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, text: str) -> int:
        """Write the text at once, as one line or several. Returns its length."""
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while data:
                data = data[self._out.write(data, patient=True) :]
        except OSError:
            pass  # ENOSPC, EPIPE, EBADF, EAGAIN
        return len(text)


WsgiPeer = Peer[Environs]


class WsgiSite(HttpSite[Environs]):
    """WORKER. Times are ns. `row`: of the loop, if the application runs in it. `busy_ns`: spent there, in all."""

    def __init__(self, station: Station, complaints: Complaints) -> None:
        super().__init__(station, complaints)
        self._app = station.app.target
        self.row = station.rows[0] if station.config.threads == 1 else None
        self.busy_ns = 0
        self._sendfile = station.terms.tls is None
        errors = ErrorStream(station.log.handler.fd)
        self._environs = {listener: _environ(listener, station, errors) for listener in station.listeners}

    def told(self, listener: Listener, address: str, port: int) -> Environs:
        """The environs of a connection's requests."""
        return Environs(for_connection(self._environs[listener], "" if address == UNIX else address, port or ""))

    def call(self, peer: WsgiPeer, request: Request, body: BodyBuffer | None) -> WsgiCall:
        """The application's answer to one request, not begun yet."""
        environ = peer.told.of(request, body)
        if peer.trusted:
            self._see_through(peer, request, environ)
        call = WsgiCall(self._app, environ, request, self.stamp, body, self._sendfile)
        if self.draining:
            call.keep_alive = False
        return call

    def run(self, peer: WsgiPeer, call: WsgiCall, row: Row) -> bytes | FilePart:
        """Let the application go on until it has something to send, on the row of the thread that does it.

        What is done is counted before its last bytes leave.
        """
        cells, request = row.cells, call.request
        if request.target is not peer.target or request.method is not peer.method:
            peer.asks(request)
        row.memory[row.place] = peer.mark  # without a call: 0.1 us less
        cells[SINCE] = began_ns = monotonic_ns()
        part = call.step()
        took_ns = monotonic_ns() - began_ns
        cells[SINCE] = 0
        self.busy_ns += took_ns
        call.busy_ns += took_ns
        if call.done:
            busy_ns = call.busy_ns
            if self.row is None:  # else the loop tells it, once a turn
                cells[BUSY_NS] += busy_ns
            cells[HISTOGRAM + array_index(busy_ns)] += 1
            if busy_ns >= self.slow_ns:
                row.slowly(busy_ns)
            if call.error is None:
                cells[COMPLETED] += 1
            else:
                cells[ERRORS] += 1
                cells[ABORTED] += call.aborted
            if call.error is not None or self.logs_access:
                self.tell(peer, request, call.status, call.sent, busy_ns, call.error)
        return part

    def abandon(self, peer: WsgiPeer, call: WsgiCall, row: Row) -> bytes:
        """The client left before the response was complete: let the application close it."""
        peer.asks(call.request)
        row.note(peer.mark)
        row.cells[SINCE] = began_ns = monotonic_ns()
        call.close()
        took_ns = monotonic_ns() - began_ns
        row.cells[SINCE] = 0
        self.busy_ns += took_ns
        call.busy_ns += took_ns
        if call.busy_ns >= self.slow_ns:
            row.slowly(call.busy_ns)
        self.tell(peer, call.request, call.status, call.sent, call.busy_ns, call.error)
        return b""

    def _see_through(self, peer: WsgiPeer, request: Request, environ: Environ) -> None:
        """Put the client in the place of the trusted proxies that stand before it."""
        origin = find_origin(request.fields, peer.address, peer.port, self.trusted)
        if origin.address != peer.address:
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = origin.address, str(origin.port or "")
        if origin.scheme:
            environ["wsgi.url_scheme"] = origin.scheme
            environ.pop("HTTPS", None)
            if origin.scheme == "https":
                environ["HTTPS"] = "on"
        if origin.host:
            environ["HTTP_HOST"] = origin.host.decode("latin1")


def _environ(listener: Listener, station: Station, errors: ErrorStream) -> Environ:
    config = station.config
    address = listener.sock.getsockname() if listener.sock.family != socket.AF_UNIX else ("", 0)
    return for_listener(
        name=address[0],
        port=address[1],
        scheme="https" if station.terms.tls else "http",
        errors=cast("TextIO", errors),
        multithread=config.threads > 1,
        multiprocess=config.workers > 1,
    )
