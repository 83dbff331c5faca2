"""WORKER. How requests are told to an ASGI application, and what is counted of them."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.engines.aio.waiting import Timekeeper
from prefork.engines.asgi.phases import Parting
from prefork.engines.asgi.websocket import WebSocketConnection
from prefork.engines.http_context import HttpSite
from prefork.engines.peer import Peer
from prefork.http.forwarded import UNIX, find_origin
from prefork.http.limits import Refusal
from prefork.http.response import error_response
from prefork.http.scope import Scope, Scopes, for_connection, for_listener, of_websocket, see_through
from prefork.http.websocket_handshake import handshake, refuse
from prefork.status.histogram import array_index
from prefork.status.scoreboard import ABORTED, BEGAN, COMPLETED, ERRORS, GONE, HISTOGRAM, TIMED_OUT, TOOK_NS, mark

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from prefork.core.listener import Listener
    from prefork.engines.aio.service import Premises
    from prefork.engines.aio.waiting import Expiring
    from prefork.engines.asgi.connection import HttpConnection
    from prefork.engines.asgi.request import Exchange
    from prefork.http.head import Request

AsgiPeer = Peer[Scopes]


class AsgiSite(HttpSite[Scopes]):
    """WORKER. `state`: what the lifespan has put there, for every request. `running`: calls of the application.

    `retire_code`: why a WebSocket is closed, once the worker retires.
    """

    def __init__(self, premises: Premises) -> None:
        station = premises.station
        super().__init__(station, premises.complaints)
        self.app = station.app.target
        self.secure = station.terms.tls is not None
        self.crowd = premises.crowd
        self.pulse = premises.pulse
        self.loop = premises.loop
        self.timekeeper: Timekeeper[Expiring] = Timekeeper(premises.loop)
        self.state: Scope = {}
        self.running: dict[Exchange, asyncio.Task[None]] = {}  # in the order of their beginnings
        self.sockets: dict[WebSocketConnection, asyncio.Task[None]] = {}  # calls for a WebSocket, each
        self.retire_code = 0
        self.max_message = station.config.ws_max_message
        self.pings = station.config.ws_ping_s > 0
        self.look_ns = round((station.config.ws_ping_s or station.config.idle_timeout_s) * 1e9)
        self._row = station.rows[0]
        self._cells = station.rows[0].cells
        scheme = "https" if self.secure else "http"
        self._scopes = {
            listener: for_listener(server=_server(listener), scheme=scheme, root_path=station.config.root_path)
            for listener in station.listeners
        }

    def told(self, listener: Listener, address: str, port: int) -> Scopes:
        """The scopes of a connection's requests."""
        client = None if address == UNIX else (address, port)
        return Scopes(for_connection(self._scopes[listener], client))

    def see_through(self, peer: AsgiPeer, request: Request, scope: Scope) -> None:
        """Put the client in the place of the trusted proxies that stand before it."""
        see_through(scope, find_origin(request.fields, peer.address, peer.port, self.trusted))

    def task(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Call the application soon. The loop's task factory is the application's, and may begin here and now."""
        return asyncio.Task(call, loop=self.loop)

    def begins(self, exchange: Exchange) -> None:
        """The application is to be called: whoever it serves is to be named if this is the end of the worker."""
        row, peer, request = self._row, exchange.peer, exchange.request
        if request.target is not peer.target or request.method is not peer.method:
            peer.asks(request)
        row.memory[row.latest_place] = peer.mark
        self._cells[BEGAN] = exchange.began_ns

    def ends(self, exchange: Exchange) -> None:
        """Its call has returned."""
        del self.running[exchange]
        if self._cells[BEGAN] == exchange.began_ns:
            self._cells[BEGAN] = 0

    def count(self, exchange: Exchange) -> int:
        """An exchange is complete; to be called before its last bytes leave. Returns the time, in ns."""
        cells = self._cells
        now_ns = monotonic_ns()
        took_ns = now_ns - exchange.began_ns
        response = exchange.response
        if response.error is None:
            cells[COMPLETED] += 1
        else:
            cells[ERRORS] += 1
            cells[ABORTED] += response.aborted
        cells[HISTOGRAM + array_index(took_ns)] += 1
        cells[TOOK_NS] += took_ns
        if took_ns >= self.slow_ns:
            self._slowly(exchange, took_ns)
        if self.logs_access or response.error is not None:
            self.tell(exchange.peer, exchange.request, response.status, response.sent, took_ns, response.error)
        return now_ns

    def lost(self, exchange: Exchange | None = None, *, late: bool = False) -> None:
        """A client has left before its response was complete, or was `late` to read it."""
        self._cells[TIMED_OUT if late else GONE] += 1
        if exchange is None:
            return
        response, took_ns = exchange.response, monotonic_ns() - exchange.began_ns
        if took_ns >= self.slow_ns:
            self._slowly(exchange, took_ns)
        if self.logs_access:
            self.tell(exchange.peer, exchange.request, response.status, response.sent, took_ns, None)

    def _slowly(self, exchange: Exchange, took_ns: int) -> None:
        if not exchange.response.streams_events:
            self._row.slowly(took_ns, mark(exchange.text))

    def blame(self, error: BaseException, peer: AsgiPeer, *, gone: bool = False) -> None:
        """The application failed where no response can tell. `gone`: after its client had left, which may be why."""
        if gone:
            event = "handler failed after its client had left"
            self._complaints.note(event, ours=False, peer=peer.text, error=repr(error))
        else:
            self._complaints.add(error, peer.text)

    def upgrade(self, connection: HttpConnection, transport: Any, request: Request, rest: bytes) -> None:
        """A request asks for a WebSocket: hand its connection over."""
        peer = connection.peer
        opening = handshake(request)
        if isinstance(opening, Refusal):
            self.refuse(peer, opening)
            connection.write(refuse(opening, self.stamp))
            Parting(self, transport, connection, linger=True)
            return
        socket = WebSocketConnection(self, transport, peer, request, opening, rest)
        transport.set_protocol(socket)
        self.crowd.replace(connection, socket)
        scope = peer.told.of(request, self.state)
        if peer.trusted:
            self.see_through(peer, request, scope)
        scope = of_websocket(scope, opening.subprotocols)
        self._cells[BEGAN] = 0  # a unit of work is the handshake only; but it is to be known who came last
        self._row.memory[self._row.latest_place] = mark(socket.text)
        self.sockets[socket] = self.task(socket.run(scope))

    def count_opening(self, began_ns: int, outcome: int = COMPLETED) -> None:
        """A WebSocket's handshake was answered; that is its unit of work, as the rest may last for days."""
        took_ns = monotonic_ns() - began_ns
        self._cells[outcome] += 1
        self._cells[HISTOGRAM + array_index(took_ns)] += 1
        self._cells[TOOK_NS] += took_ns

    def deny(self, status: int, began_ns: int) -> bytes:
        """The whole response to a handshake that comes to nothing."""
        self.count_opening(began_ns, ERRORS if status >= 500 else COMPLETED)
        return error_response(status, self.stamp)

    def tell_socket(self, peer: AsgiPeer, request: Request, status: int, sent: int, began_ns: int) -> None:
        """A WebSocket has ended: its line in the access log."""
        self.tell(peer, request, status, sent, monotonic_ns() - began_ns, None)

    async def pause(self) -> None:
        """Let the loop look after the others, and hear who has left: an application never waits while there is room."""
        if not self.pulse.on:
            self.pulse.begin()
        await asyncio.sleep(0)

    def oldest(self) -> tuple[int, bytes]:
        """Since when the oldest exchange is in hand, and what it is."""
        for exchange in self.running:
            return exchange.began_ns, mark(exchange.text)
        return 0, b""


def _server(listener: Listener) -> tuple[str, int | None]:
    address: Any = listener.sock.getsockname()
    return (str(address), None) if listener.sock.family == socket.AF_UNIX else (address[0], address[1])
