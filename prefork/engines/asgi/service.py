"""WORKER. ASGI applications: HTTP/1.1, WebSocket and lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.core.log import Log
from prefork.engines.aio.tasks import stack_of
from prefork.engines.asgi.app import AsgiSite
from prefork.engines.asgi.connection import HttpConnection
from prefork.engines.timers import NEVER
from prefork.errors import BootError
from prefork.http.websocket_close import GOING_AWAY, SERVICE_RESTART

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.aio.service import Premises
    from prefork.engines.asgi.app import AsgiPeer
    from prefork.engines.asgi.request import Exchange
    from prefork.runtime.master_link import MasterLink


# --- The lifespan of an ASGI application: it is told when the worker begins to serve, and when it has ended.
#
# An application need not know of it: an exception on its scope means that. Only lifespan.startup.failed keeps a worker
# from serving.


_STARTUP, _SHUTDOWN = "lifespan.startup", "lifespan.shutdown"


class Lifespan:
    """WORKER. `state` is the application's: what it puts there, each request gets."""

    def __init__(self, app: Any, name: str, log: Log, state: dict[str, Any]) -> None:
        self._app = app
        self._name = name
        self._log = log
        self._state = state
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._over = asyncio.Event()  # it has returned, or asks for an order behind the last one
        self._failure: str | None = None
        self._asked = False  # it has asked for the first order: it knows of lifespans
        self._last = False  # it was given the last one
        self._stopping = False

    async def start(self) -> None:
        """Have it start up. Raises BootError if it says that it cannot."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._tell(_STARTUP)
        if self._failure is not None:
            lines = self._failure.splitlines()
            what = f": {lines[-1]}" if lines else ""
            raise BootError(f"{self._name!r} says that it cannot start{what}", self._failure if len(lines) > 1 else "")

    async def stop(self, timeout_s: float) -> None:
        """Have it shut down, for at most so long."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._tell(_SHUTDOWN)
                await self._over.wait()  # what is wrapped around the application may have its own things to close
        except TimeoutError:
            self._log.warning("lifespan cut", app=self._name, after=f"{timeout_s:.1f}s")
        if self._failure is not None:
            self._log.error("lifespan shutdown failed", app=self._name, reason=self._failure)

    async def _tell(self, order: str) -> None:
        self._answered.clear()
        self._orders.put_nowait(order)
        await self._answered.wait()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            if self._stopping and isinstance(error, asyncio.CancelledError):
                pass  # there was no more to do, or it was cut, which is told
            elif not self._asked:
                self._log.debug("no lifespan", app=self._name, error=repr(error))
            elif "\n" not in (self._failure or "").strip():  # else it has told its traceback itself
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
        elif what not in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            raise RuntimeError(f"a message of type {what!r} cannot be sent here")
        self._answered.set()


# --- Which requests of an event loop are slow, and what they await: looked at with each beat.
#
# They are told to the master, which writes the slow log (slow_log.py): one a beat with its stack, of the others how
# many. Streams of events are meant to last. Those of coroutine handlers: see streams.py.


class SlowTasks:
    """WORKER. `running`: the calls of the application, in the order of their beginnings."""

    def __init__(self, running: Mapping[Exchange, asyncio.Task[None]], slow_ns: int, life: MasterLink) -> None:
        self._running = running
        self._slow_ns = slow_ns
        self._life = life
        self._until_ns = 0  # what began before was judged

    def look(self) -> None:
        """Tell the master who has become slow."""
        now_ns = monotonic_ns()
        since_ns, self._until_ns = self._until_ns, now_ns - self._slow_ns
        found = [(exchange, task) for exchange, task in self._old() if exchange.began_ns > since_ns]
        if found:
            exchange, task = found[0]
            elapsed_s = (now_ns - exchange.began_ns) / 1e9
            self._life.slow(exchange.text, elapsed_s, stack_of(task), also=len(found) - 1)

    def _old(self) -> Iterator[tuple[Exchange, asyncio.Task[None]]]:
        for exchange, task in self._running.items():
            if exchange.began_ns > self._until_ns:
                return
            if not exchange.response.done and not exchange.response.streams_events:
                yield exchange, task


class AsgiService:
    """WORKER. Serves kind `asgi`."""

    def __init__(self, premises: Premises) -> None:
        station = premises.station
        self.site = AsgiSite(premises)
        self._crowd = premises.crowd
        self._lifespan = Lifespan(station.app.target, station.app.name, station.log, self.site.state)
        premises.pulse.ticks.append(self.site.tick)
        premises.pulse.oldest = self.site.oldest
        if self.site.slow_ns < NEVER:
            premises.pulse.beats.append(SlowTasks(self.site.running, self.site.slow_ns, station.life).look)

    def protocol(self, listener: Listener, peer: AsgiPeer | None = None) -> asyncio.BaseProtocol:
        """What serves the next connection."""
        return HttpConnection(self.site, listener, peer)

    async def begin(self) -> None:
        """Let the application start up. Raises BootError."""
        await self._lifespan.start()

    def retire(self, *, stopping: bool) -> None:
        """Every response is its connection's last one from here on; WebSockets are closed."""
        site = self.site
        site.draining = True
        site.retire_code = GOING_AWAY if stopping else SERVICE_RESTART
        for exchange in site.running:
            exchange.retire()
        for socket in list(site.sockets):
            socket.retire()
        for member in list(self._crowd.members):
            if isinstance(member, HttpConnection):
                member.retire()

    @property
    def busy(self) -> int:
        """Calls of the application that have not returned."""
        return len(self.site.running) + len(self.site.sockets)

    def names(self) -> dict[asyncio.Task[None], str]:
        """Which task serves whom."""
        names = {task: exchange.text for exchange, task in self.site.running.items()}
        return names | {task: socket.text for socket, task in self.site.sockets.items()}

    def cut(self) -> None:
        """Cancel the calls of the application."""
        for exchange, task in list(self.site.running.items()):
            exchange.lose()
            task.cancel()
        for socket, task in list(self.site.sockets.items()):
            socket.cut()
            task.cancel()

    async def end(self, timeout_s: float) -> None:
        """Let the application shut down."""
        await self._lifespan.stop(timeout_s)
