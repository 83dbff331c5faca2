"""WORKER. What all HTTP clients of a worker share: the app, the limits, how requests are told to the application, and
what is counted and logged of them.
"""

from __future__ import annotations

import socket
from time import monotonic_ns, time
from typing import TYPE_CHECKING, Any, TextIO, cast

from ..histogram import array_index
from ..http.access_log import AccessLog
from ..http.environ import Environ, for_listener
from ..http.fields import FieldTable
from ..http.forwarded import find_origin
from ..http.limits import Limits
from ..http.response import error_response, stamp
from ..http.trusted import Trusted
from ..http.wsgi import WsgiCall
from ..outlet import Outlet
from ..scoreboard import BUSY_NS, COMPLETED, ERRORS, HISTOGRAM, SINCE, Row
from .error_stream import ErrorStream
from .peer import Peer

if TYPE_CHECKING:
    from ..http.body import BodyBuffer
    from ..http.file_part import FilePart
    from ..http.proxy_protocol import End
    from ..http.refusal import Refusal
    from ..http.request import Request
    from ..listener import Listener
    from .complaints import Complaints
    from .station import Station


_PACE_NS = 1_000_000_000 // 1024  # for a byte, once --idle-timeout has passed


class HttpSite:
    """WORKER. Times are ns. `draining`: every response says that the connection ends with it."""

    def __init__(self, station: Station, complaints: Complaints) -> None:
        config = station.config
        self._app = station.app.target
        self._complaints = complaints
        self.limits = Limits(body_bytes=config.max_body)
        self.fields = FieldTable()
        self.header_ns = round(config.header_timeout_s * 1e9)
        self.keep_alive_ns = round(config.keep_alive_s * 1e9)
        self._idle_ns = round(config.idle_timeout_s * 1e9)
        self.row = station.rows[0] if config.threads == 1 else None  # of the loop, if the application runs in it
        self.draining = self.keep_alive_ns == 0
        self.trusted = Trusted(text for text in config.trusted_proxies if text != "none")
        self._sendfile = station.terms.tls is None
        errors = ErrorStream(station.log.handler.fd)
        self._environs = {listener: _environ(listener, station, errors) for listener in station.listeners}
        self._access = AccessLog("json" if config.log_format == "json" else "combined")
        self._access_out = Outlet(station.terms.access_log) if station.terms.access_log >= 0 else None
        self.busy_ns = 0  # spent in the application, in all
        self._second = 0
        self._stamp = b""  # the end of every head of this second
        self.tick()

    def deadline_ns(self, since_ns: int, moved: int, now_ns: int) -> int:
        """When a body or a response is late that began then, and of which so many bytes have moved, the last ones now.

        No stall may last for --idle-timeout, nor may a trickle: beyond that time, each byte has to earn its own.
        """
        return self._idle_ns + min(now_ns, since_ns + moved * _PACE_NS)

    def peer(self, listener: Listener, sockaddr: Any) -> Peer:
        """The other end of a new connection."""
        return Peer.of(listener, sockaddr, self._environs[listener], self.trusted)

    def behind(self, peer: Peer, end: End, listener: Listener) -> Peer:
        """Whom the peer, a proxy, has connected for."""
        return peer.behind(end, self._environs[listener], self.trusted)

    def call(self, peer: Peer, request: Request, body: BodyBuffer | None) -> WsgiCall:
        """The application's answer to one request, not begun yet."""
        environ = peer.environs.of(request, body)
        if peer.trusted:
            self._see_through(peer, request, environ)
        call = WsgiCall(self._app, environ, request, self._stamp, body, self._sendfile)
        if self.draining:
            call.keep_alive = False
        return call

    def refuse(self, peer: Peer, refusal: Refusal) -> bytes:
        """The whole response to what is not served."""
        self._complaints.note(
            "request refused", ours=False, peer=peer.text, status=refusal.status, reason=refusal.reason
        )
        response = error_response(refusal.status, self._stamp)
        if self._access_out:
            size = len(response.partition(b"\r\n\r\n")[2])
            self._log(self._access.line(time(), peer.address, None, refusal.status, size, 0))
        return response

    def run(self, peer: Peer, call: WsgiCall, row: Row) -> bytes | FilePart:
        """Let the application go on until it has something to send, on the row of the thread that does it.

        What is done is counted before its last bytes leave.
        """
        cells = row.cells
        cells[SINCE] = began_ns = monotonic_ns()
        row.note(peer.mark)
        part = call.step()
        took_ns = monotonic_ns() - began_ns
        cells[SINCE] = 0
        self.busy_ns += took_ns
        call.busy_ns += took_ns
        if call.done:
            busy_ns = call.busy_ns
            cells[BUSY_NS] += busy_ns
            cells[HISTOGRAM + array_index(busy_ns)] += 1
            cells[COMPLETED if call.error is None else ERRORS] += 1
            if call.error is not None or self._access_out is not None:
                self._tell(peer, call)
        return part

    def abandon(self, peer: Peer, call: WsgiCall, _row: Row) -> bytes:
        """The client left before the response was complete: let the application close it."""
        call.close()
        self._tell(peer, call)
        return b""

    def complain(self, error: BaseException, peer: Peer) -> None:
        """Something went wrong on the way to a client."""
        self._complaints.note("connection failed", ours=False, peer=peer.text, error=str(error))

    def _see_through(self, peer: Peer, request: Request, environ: Environ) -> None:
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

    def _tell(self, peer: Peer, call: WsgiCall) -> None:
        """Log what went wrong, and the access."""
        if call.error is not None:
            self._complaints.add(call.error, peer.text)
        if self._access_out is None:
            return
        client = peer.address
        if peer.trusted:
            client = find_origin(call.request.fields, client, peer.port, self.trusted).address
        self._log(self._access.line(time(), client, call.request, call.status, call.sent, call.busy_ns // 1000))

    def _log(self, line: bytes) -> None:
        assert self._access_out is not None
        try:
            self._access_out.write(memoryview(line), patient=True)
        except OSError as error:  # ENOSPC, EPIPE, EAGAIN: the log's trouble must not become the request's
            self._complaints.note("access log line lost", reason=error.strerror)

    def tick(self) -> None:
        """In each turn of the loop: heads end with the date, which is made once a second."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._stamp = stamp(second)


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
