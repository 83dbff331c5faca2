"""WORKER. ASGI applications: HTTP/1.1, WebSocket and lifespan."""

from __future__ import annotations

import asyncio
import select
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.core.log import Log
from prefork.engines.aio.tasks import stack_of
from prefork.engines.asgi.app import AsgiApp
from prefork.engines.asgi.connection import HttpConnection
from prefork.engines.asgi.phases import PreHttp
from prefork.engines.handover import AGAIN_S, LOOK_NS, HandOver, Idle
from prefork.engines.http_context import HttpContext
from prefork.engines.request_log import RequestLog
from prefork.engines.timers import NEVER
from prefork.errors import BootError
from prefork.http.websocket_close import GOING_AWAY, SERVICE_RESTART
from prefork.runtime.forks import OURS

if TYPE_CHECKING:
    import _socket

    from prefork.core.listener import Listener
    from prefork.engines.aio.service import LoopContext
    from prefork.engines.asgi.app import AsgiPeer, RequestCall
    from prefork.runtime.master_link import MasterLink
    from prefork.runtime.transfer import TransferMessage


_STARTUP = "lifespan.startup"
_SHUTDOWN = "lifespan.shutdown"


class Lifespan:
    """WORKER. The application's startup and shutdown. What it puts into `state`, each request gets.

    `mode` is --lifespan. With `auto` an application need not support it: an exception that it raises for the scope
    means that it does not, and only lifespan.startup.failed keeps a worker from serving. With `on` it has to complete
    its startup. With `off` it is not called.
    """

    def __init__(self, app: Any, name: str, log: Log, state: dict[str, Any], mode: str) -> None:
        self._app = app
        self._name = name
        self._log = log
        self._state = state
        self._mode = mode
        self._complete = False  # it has said so of its startup
        self._error: BaseException | None = None
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._over = asyncio.Event()  # it has returned, or waits for an order behind the last one
        self._failure: str | None = None
        self._asked = False  # it has waited for the first order, so it supports lifespans
        self._last = False  # it was given the last one
        self._stopping = False

    async def start(self) -> None:
        """Let the application start up. Raises BootError if it says that it cannot, or has to and does not."""
        if self._mode == "off":
            return
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._order(_STARTUP)
        if self._failure is not None:
            lines = self._failure.splitlines()
            what = f": {lines[-1]}" if lines else ""
            raise BootError(f"{self._name!r} says that it cannot start{what}", self._failure if len(lines) > 1 else "")
        if self._mode == "on" and not self._complete:
            error = self._error
            what = f"raised {type(error).__name__}: {error}" if error else "returned before it had completed"
            detail = "".join(traceback.format_exception(error)) if error else ""
            raise BootError(f"{self._name!r} {what} in its lifespan startup, which --lifespan on requires", detail)

    async def stop(self, timeout_s: float) -> None:
        """Let the application shut down, within the timeout."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._order(_SHUTDOWN)
                await self._over.wait()  # what is wrapped around the application may have its own things to close
        except TimeoutError:
            self._log.warning("lifespan cut", app=self._name, after=f"{timeout_s:.1f}s")
        if self._failure is not None:
            self._log.error("lifespan shutdown failed", app=self._name, reason=self._failure)

    async def _order(self, order: str) -> None:
        self._answered.clear()
        self._orders.put_nowait(order)
        await self._answered.wait()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            if self._stopping and isinstance(error, asyncio.CancelledError):
                pass  # it had nothing more to do, or was cut, which `stop` logs
            elif self._mode == "on" and not self._complete:
                self._error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            elif not self._asked:
                self._log.debug("no lifespan", app=self._name, error=repr(error))
            elif "\n" not in (self._failure or "").strip():  # else it has sent its traceback
                self._log.warning("lifespan given up", app=self._name, exc=error)
        self._answered.set()
        self._over.set()

    async def _receive(self) -> dict[str, Any]:
        self._asked = True
        if self._last:
            self._over.set()
        order = await self._orders.get()
        self._last = order == _SHUTDOWN
        return {"type": order}

    async def _send(self, message: dict[str, Any]) -> None:
        what = message["type"]
        if what in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._failure = str(message.get("message", ""))
        elif what == "lifespan.startup.complete":
            self._complete = True
        elif what != "lifespan.shutdown.complete":
            raise RuntimeError(f"a message of type {what!r} cannot be sent here")
        self._answered.set()


class SlowTasks:
    """WORKER. Finds slow requests and what they await, with each heartbeat, for the master's slow log.

    Of each heartbeat, one request is reported with its stack, and the number of the others. Streams of events are left
    out: they are meant to last. `requests`: the calls that have not returned, the oldest first.
    """

    def __init__(self, requests: Mapping[RequestCall, asyncio.Task[None]], slow_ns: int, link: MasterLink) -> None:
        self._requests = requests
        self._slow_ns = slow_ns
        self._link = link
        self._until_ns = 0  # what began before was judged

    def check(self) -> None:
        """Tell the master which requests have become slow."""
        now_ns = monotonic_ns()
        since_ns, self._until_ns = self._until_ns, now_ns - self._slow_ns
        found = [(call, task) for call, task in self._old() if call.began_ns > since_ns]
        if found:
            call, task = found[0]
            elapsed_s = (now_ns - call.began_ns) / 1e9
            self._link.slow(call.text, elapsed_s, stack_of(task), also=len(found) - 1)

    def _old(self) -> Iterator[tuple[RequestCall, asyncio.Task[None]]]:
        for call, task in self._requests.items():
            if call.began_ns > self._until_ns:
                return
            if not call.response.done and not call.response.streams_events:
                yield call, task


class IdleConnections:
    """WORKER. Gives connections that are idle to other workers, and takes theirs (engines/handover.py)."""

    def __init__(self, context: LoopContext, app: AsgiApp) -> None:
        self._context = context
        self._app = app
        self._connections = context.connections
        self._handover = HandOver(context.worker, connections=self._http, adopt=self._adopt)
        self._epoll = select.epoll()  # asyncio knows no edges: each message would wake every worker until it is taken
        OURS.own(self._epoll.fileno())
        self._retiring = False
        self._again = False  # whether to give more in a moment
        self._connections.make_room = self._make_room

    def begin(self) -> None:
        """Begin to give and to take."""
        self._connections.handover = self._handover  # under TLS, too: a full worker asks whether others have room
        if self._handover.possible:
            self._epoll.register(self._handover.fd, select.EPOLLIN | select.EPOLLET)
            self._context.loop.add_reader(self._epoll.fileno(), self._arrived)
            self._context.heartbeat.on_beat.append(self._even_out)
            self._app.handover, self._app.look, self._app.look_ns = self._handover, self._look, 0

    def retire(self) -> None:
        """Give every idle connection to others, or end each with a last response; repeated, as some still come."""
        self._retiring = True
        for member in self._connections.members:
            if isinstance(member, PreHttp):
                member.retire()
        self._context.loop.call_later(self._handover.give_all(self._app.context), self.retire)

    def _arrived(self) -> None:
        self._epoll.poll(0)
        self._connections.publish()
        self._even_out()

    def _look(self, connection: Idle, now_ns: int) -> None:
        """A connection has become idle."""
        if not self._retiring:
            self._even_out(now_ns)
        elif not self._app.context.draining and connection.idle:
            self._handover.give_one(connection, now_ns)

    def _even_out(self, now_ns: int = 0) -> None:
        now_ns = now_ns or monotonic_ns()
        self._app.look_ns = now_ns + LOOK_NS
        if self._handover.even_out(self._connections.held(), now_ns) and not self._again:
            self._again = True
            self._context.loop.call_later(AGAIN_S, self._even_out_again)

    def _even_out_again(self) -> None:
        self._again = False
        self._even_out()

    def _http(self) -> Iterator[HttpConnection]:
        return (member for member in self._connections.members if isinstance(member, HttpConnection))

    def _make_room(self, accept: Callable[[], bool]) -> bool:
        return self._handover.make_room(monotonic_ns(), accept)

    def _adopt(self, sock: _socket.socket, message: TransferMessage) -> None:
        """Go on with a connection of another worker."""
        self._context.connections.arriving += 1
        self._context.connections.publish()
        made = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self._context.adopt(made, partial(HttpConnection.of_message, self._app, message), message.client[0])


class AsgiService:
    """WORKER. Serves kind `asgi`."""

    takes_proxy_header = True

    def __init__(self, context: LoopContext) -> None:
        worker = context.worker
        self._context = context
        http = HttpContext(worker.config)
        self._app = AsgiApp(context, http, RequestLog(worker, context.errors, http.trusted))
        self._proxied = worker.config.proxy_protocol
        self._idle = IdleConnections(context, self._app)
        mode = worker.config.lifespan
        self._lifespan = Lifespan(worker.app.target, worker.app.name, worker.log, self._app.state, mode)
        context.heartbeat.on_wake.append(self._app.context.tick)
        context.heartbeat.oldest = self._app.oldest
        if self._app.log.slow_ns < NEVER:
            context.heartbeat.on_beat.append(SlowTasks(self._app.requests, self._app.log.slow_ns, worker.link).check)

    def accept(self, sock: socket.socket, listener: Listener, sockaddr: Any, queue_ms: int | None) -> None:
        """Serve a connection that was accepted."""
        app = self._app
        peer = app.peers.of(listener, sockaddr)
        peer.queue_ms = queue_ms
        if self._proxied and not peer.trusted:
            app.log.refuse_connection(PermissionError("it may not send a PROXY header; see --trusted-proxies"), peer)
            app.connections.lose()
            sock.close()
        elif self._proxied or app.tls:
            PreHttp(app, sock, peer, listener, proxied=self._proxied, adopt=self._adopt)
        else:
            self._adopt(sock, listener, peer)

    def protocol(self, listener: Listener) -> asyncio.BaseProtocol:
        """Return the protocol for a connection that the loop itself has accepted."""
        return HttpConnection(self._app, listener)

    async def begin(self) -> None:
        """Let the application start up. Raises BootError."""
        await self._lifespan.start()
        self._idle.begin()

    def retire(self, *, stopping: bool) -> None:
        """Give idle connections to others, or make every response its connection's last one; close WebSockets."""
        app = self._app
        app.retire_code = GOING_AWAY if stopping else SERVICE_RESTART
        self._idle.retire()
        for call in [*app.requests, *app.sockets]:
            call.retire()

    @property
    def busy(self) -> int:
        """The number of calls that have not returned."""
        return len(self._app.requests) + len(self._app.sockets)

    def names(self) -> dict[asyncio.Task[None], str]:
        """Return the request of each task."""
        names = {task: call.text for call, task in self._app.requests.items()}
        return names | {task: call.text for call, task in self._app.sockets.items()}

    def cut(self) -> None:
        """Cancel the calls of the application."""
        for call, task in [*self._app.requests.items(), *self._app.sockets.items()]:
            call.cut()
            task.cancel()

    async def end(self, timeout_s: float) -> None:
        """Let the application shut down."""
        await self._lifespan.stop(timeout_s)

    def _adopt(self, sock: socket.socket, listener: Listener, peer: AsgiPeer) -> None:
        self._context.adopt(sock, partial(HttpConnection, self._app, listener, peer), peer.text)


SERVICE = AsgiService
