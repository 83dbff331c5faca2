"""WORKER. The ASGI application: its scopes, its calls, and what is counted of them."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from prefork.engines.error_log import name_of
from prefork.engines.http_context import HttpContext
from prefork.engines.peer import Peer, PeerFactory
from prefork.engines.request_log import RequestLog, count_unit
from prefork.engines.timers import NEVER
from prefork.http.forwarded import UNIX, find_origin
from prefork.http.response import error_response
from prefork.http.scope import Scope, Scopes, apply_forwarded, for_listener
from prefork.status.scoreboard import BEGAN, COMPLETED, ERRORS, row_text

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prefork.engines.aio.service import LoopContext
    from prefork.engines.handover import HandOver, Idle
    from prefork.http.asgi import AsgiResponse
    from prefork.http.head import Request
    from prefork.http.limits import Refusal
    from prefork.runtime.transfer import Server

AsgiPeer = Peer[Scopes]


class Call(Protocol):
    """A call of the application for a request or a WebSocket. `began_ns`: when it began (CLOCK_MONOTONIC)."""

    began_ns: int  # 0: the loop has not come to it yet

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


class AsgiApp:
    """WORKER. The application, and what all its connections share.

    `state`: what the lifespan has put there, for every request. `requests`, `sockets`: the calls that have not
    returned, in the order of their beginnings. `in_flight`: requests that the application has, counted only if
    `most_in_flight` (--max-in-flight) is not 0. `retire_code`: why WebSockets are closed, 0 until the worker retires.
    """

    def __init__(self, of_loop: LoopContext, context: HttpContext, log: RequestLog) -> None:
        worker = of_loop.worker
        self.context = context
        self.log = log
        self.peers = PeerFactory(context.trusted, self.view, worker)
        self._errors = of_loop.errors
        self.target = worker.app.target
        self.tls = worker.inherited.tls
        if self.tls:
            self.tls.speak_http()
        self.connections = of_loop.connections
        self.heartbeat = of_loop.heartbeat
        self.loop = of_loop.loop
        self._variables = of_loop.variables
        self.timers = of_loop.timers
        self.state: Scope = {}
        self.requests: dict[RequestCall, asyncio.Task[None]] = {}
        self.sockets: dict[Call, asyncio.Task[None]] = {}
        self.in_flight = 0
        self.most_in_flight = worker.config.max_in_flight
        self.retire_code = 0
        self.look_ns = NEVER  # when a connection that gets idle is to call `look`, as it may be given away
        self.look: Callable[[Idle, int], None] = _nothing
        self.handover: HandOver | None = None
        self.max_message = worker.config.ws_max_message
        self.pings = worker.config.ws_ping_s > 0
        self.check_ns = round((worker.config.ws_ping_s or worker.config.idle_timeout_s) * 1e9)
        self.row = worker.rows[0]
        self._cells = worker.rows[0].cells
        self._root_path = worker.config.root_path
        self._scopes = {listener.server: self._scope(listener.server) for listener in worker.listeners}

    def view(self, server: Server, address: str, port: int) -> Scopes:
        """Return what makes the scopes of a connection's requests."""
        client = None if address == UNIX else (address, port)
        return Scopes(self._scopes.get(server) or self._scope(server), client)

    def _scope(self, server: Server) -> Scope:
        return for_listener(server=server, scheme="https" if self.tls else "http", root_path=self._root_path)

    def apply_forwarded(self, peer: AsgiPeer, request: Request, scope: Scope) -> None:
        """Replace the address of a trusted proxy by that of the client behind it."""
        apply_forwarded(scope, find_origin(request.fields, peer.address, peer.port, self.context.trusted))

    def task(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Return a task that will call the application. Not made by the loop, as its task factory may start it here."""
        return asyncio.Task(call, loop=self.loop, context=self._variables.copy())

    def begin(self, call: RequestCall) -> None:
        """Note a request before the application is called: the report names it if the worker dies now."""
        row, peer, request = self.row, call.peer, call.request
        if request.target is not peer.target or request.method is not peer.method:
            peer.set_request(request)
        row.memory[row.latest_place] = peer.row_text
        self._cells[BEGAN] = call.began_ns

    def end(self, call: RequestCall) -> None:
        """Forget a call that has returned."""
        del self.requests[call]
        if self._cells[BEGAN] == call.began_ns:
            self._cells[BEGAN] = 0

    @property
    def full(self) -> bool:
        """Whether the application has as many requests and WebSockets as --max-in-flight allows."""
        return self.in_flight + len(self.sockets) >= self.most_in_flight

    def abandon(self, call: RequestCall) -> None:
        """Log a request whose client has left before the response was complete."""
        took_ns = monotonic_ns() - call.began_ns if call.began_ns else 0
        self.log.abandon(self.row, call.peer, call.request, call.response, took_ns, None)

    def refuse(self, peer: AsgiPeer, refusal: Refusal) -> bytes:
        """Count and log what is not served, and return the whole response to it."""
        response = error_response(refusal.status, self.context.stamp, head=refusal.head)
        self.log.refuse(peer, refusal, response)
        return response

    def report_failure(self, error: BaseException, peer: AsgiPeer, request: Request, *, gone: bool = False) -> None:
        """Log an exception that no response can tell. `gone`: the client had left before, which may be the cause."""
        if gone:
            event = "handler failed after its client had left"
            self._errors.note(event, ours=False, peer=peer.text, request=name_of(request), error=repr(error))
        else:
            self._errors.add(error, peer.text, request)

    def begin_socket(self, call: Call) -> None:
        """Note a WebSocket as the last that came. Its unit of work is the handshake only, so none is in progress."""
        self._cells[BEGAN] = 0
        self.row.memory[self.row.latest_place] = row_text(call.text)

    def count_handshake(self, began_ns: int, outcome: int = COMPLETED) -> None:
        """Count the answer to a handshake, a WebSocket's unit of work: the rest may last for days."""
        count_unit(self.row, outcome, monotonic_ns() - began_ns)

    def deny(self, status: int, began_ns: int) -> bytes:
        """Count a handshake that fails, and return the whole response to it."""
        self.count_handshake(began_ns, ERRORS if status >= 500 else COMPLETED)
        return error_response(status, self.context.stamp)

    def log_socket(self, peer: AsgiPeer, request: Request, status: int, sent: int, began_ns: int) -> None:
        """Write the line of a WebSocket that has ended to the access log."""
        self.log.write(peer, request, status, sent, monotonic_ns() - began_ns, None)

    async def pause(self) -> None:
        """Let the loop handle its other connections. An application that never has to wait must not block them."""
        if not self.heartbeat.awake:
            self.heartbeat.wake()
        await asyncio.sleep(0)

    def oldest(self) -> tuple[int, bytes]:
        """Return when the oldest request began that is in progress, and its text."""
        for call in self.requests:
            return call.began_ns, row_text(call.text)
        return 0, b""


def _nothing(_connection: Idle, _now_ns: int) -> None:
    pass
