"""WORKER. The ASGI application: its scopes, its calls, and what is counted of them."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from prefork.engines.http_context import HttpSite
from prefork.engines.peer import Peer
from prefork.http.forwarded import UNIX, find_origin
from prefork.http.response import error_response
from prefork.http.scope import Scope, Scopes, for_connection, for_listener, see_through
from prefork.status.histogram import array_index
from prefork.status.scoreboard import ABORTED, BEGAN, COMPLETED, ERRORS, GONE, HISTOGRAM, TIMED_OUT, TOOK_NS, mark

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from prefork.core.listener import Listener
    from prefork.engines.aio.service import LoopContext
    from prefork.http.asgi_response import AsgiResponse
    from prefork.http.head import Request

AsgiPeer = Peer[Scopes]


class Call(Protocol):
    """A call of the application for a request or a WebSocket. `began_ns`: when that has come (CLOCK_MONOTONIC)."""

    began_ns: int

    @property
    def text(self) -> str:
        """The client's address and what it asks for."""

    def retire(self) -> None:
        """End as soon as the protocol allows: the worker retires."""

    def cut(self) -> None:
        """Give the client up: the graceful timeout is over."""


class RequestCall(Call, Protocol):
    """A call for a request."""

    peer: AsgiPeer
    request: Request
    response: AsgiResponse


class AsgiApp(HttpSite[Scopes]):
    """WORKER. The application, and what all its connections share.

    `state`: what the lifespan has put there, for every request. `requests`, `sockets`: the calls that have not
    returned, in the order of their beginnings. `retire_code`: why WebSockets are closed, 0 until the worker retires.
    """

    def __init__(self, context: LoopContext) -> None:
        station = context.station
        super().__init__(station, context.complaints)
        self.target = station.app.target
        self.secure = station.terms.tls is not None
        self.connections = context.connections
        self.heartbeat = context.heartbeat
        self.loop = context.loop
        self.timers = context.timers
        self.state: Scope = {}
        self.requests: dict[RequestCall, asyncio.Task[None]] = {}
        self.sockets: dict[Call, asyncio.Task[None]] = {}
        self.retire_code = 0
        self.max_message = station.config.ws_max_message
        self.pings = station.config.ws_ping_s > 0
        self.check_ns = round((station.config.ws_ping_s or station.config.idle_timeout_s) * 1e9)
        self._row = station.rows[0]
        self._cells = station.rows[0].cells
        scheme = "https" if self.secure else "http"
        self._scopes = {
            listener: for_listener(server=_server(listener), scheme=scheme, root_path=station.config.root_path)
            for listener in station.listeners
        }

    def told(self, listener: Listener, address: str, port: int) -> Scopes:
        """Return what makes the scopes of a connection's requests."""
        client = None if address == UNIX else (address, port)
        return Scopes(for_connection(self._scopes[listener], client))

    def see_through(self, peer: AsgiPeer, request: Request, scope: Scope) -> None:
        """Replace the address of a trusted proxy by that of the client behind it."""
        see_through(scope, find_origin(request.fields, peer.address, peer.port, self.trusted))

    def task(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Return a task that will call the application. Not made by the loop, as its task factory may start it here."""
        return asyncio.Task(call, loop=self.loop)

    def begin(self, call: RequestCall) -> None:
        """Note a request before the application is called: the report names it if the worker dies now."""
        row, peer, request = self._row, call.peer, call.request
        if request.target is not peer.target or request.method is not peer.method:
            peer.asks(request)
        row.memory[row.latest_place] = peer.mark
        self._cells[BEGAN] = call.began_ns

    def end(self, call: RequestCall) -> None:
        """Forget a call that has returned."""
        del self.requests[call]
        if self._cells[BEGAN] == call.began_ns:
            self._cells[BEGAN] = 0

    def finish(self, call: RequestCall) -> int:
        """Count and log a complete response, before its last bytes leave. Returns the time (CLOCK_MONOTONIC ns)."""
        cells = self._cells
        now_ns = monotonic_ns()
        took_ns = now_ns - call.began_ns
        response = call.response
        if response.error is None:
            cells[COMPLETED] += 1
        else:
            cells[ERRORS] += 1
            cells[ABORTED] += response.aborted
        cells[HISTOGRAM + array_index(took_ns)] += 1
        cells[TOOK_NS] += took_ns
        if took_ns >= self.slow_ns:
            self._note_slow(call, took_ns)
        if self.logs_access or response.error is not None:
            self.tell(call.peer, call.request, response.status, response.sent, took_ns, response.error)
        return now_ns

    def abandon(self, call: RequestCall | None = None, *, late: bool = False) -> None:
        """Count and log a client that has left before its response was complete, or was too `late` to read it."""
        self._cells[TIMED_OUT if late else GONE] += 1
        if call is None:
            return
        response, took_ns = call.response, monotonic_ns() - call.began_ns
        if took_ns >= self.slow_ns:
            self._note_slow(call, took_ns)
        if self.logs_access:
            self.tell(call.peer, call.request, response.status, response.sent, took_ns, None)

    def _note_slow(self, call: RequestCall, took_ns: int) -> None:
        if not call.response.streams_events:
            self._row.slowly(took_ns, mark(call.text))

    def report_failure(self, error: BaseException, peer: AsgiPeer, *, gone: bool = False) -> None:
        """Log an exception that no response can tell. `gone`: the client had left before, which may be the cause."""
        if gone:
            event = "handler failed after its client had left"
            self._complaints.note(event, ours=False, peer=peer.text, error=repr(error))
        else:
            self._complaints.add(error, peer.text)

    def begin_socket(self, call: Call) -> None:
        """Note a WebSocket as the last that came. Its unit of work is the handshake only, so none is in progress."""
        self._cells[BEGAN] = 0
        self._row.memory[self._row.latest_place] = mark(call.text)

    def count_handshake(self, began_ns: int, outcome: int = COMPLETED) -> None:
        """Count the answer to a handshake, a WebSocket's unit of work: the rest may last for days."""
        took_ns = monotonic_ns() - began_ns
        self._cells[outcome] += 1
        self._cells[HISTOGRAM + array_index(took_ns)] += 1
        self._cells[TOOK_NS] += took_ns

    def deny(self, status: int, began_ns: int) -> bytes:
        """Count a handshake that fails, and return the whole response to it."""
        self.count_handshake(began_ns, ERRORS if status >= 500 else COMPLETED)
        return error_response(status, self.stamp)

    def log_socket(self, peer: AsgiPeer, request: Request, status: int, sent: int, began_ns: int) -> None:
        """Write the line of a WebSocket that has ended to the access log."""
        self.tell(peer, request, status, sent, monotonic_ns() - began_ns, None)

    async def pause(self) -> None:
        """Let the loop handle its other connections. An application that never has to wait must not block them."""
        if not self.heartbeat.awake:
            self.heartbeat.wake()
        await asyncio.sleep(0)

    def oldest(self) -> tuple[int, bytes]:
        """Return when the oldest request began that is in progress, and its mark."""
        for call in self.requests:
            return call.began_ns, mark(call.text)
        return 0, b""


def _server(listener: Listener) -> tuple[str, int | None]:
    address: Any = listener.sock.getsockname()
    return (str(address), None) if listener.sock.family == socket.AF_UNIX else (address[0], address[1])
