"""WORKER. ASGI applications: HTTP/1.1, WebSocket and lifespan."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prefork.engines.asgi.app import AsgiSite
from prefork.engines.asgi.connection import HttpConnection
from prefork.engines.asgi.lifespan import Lifespan
from prefork.engines.asgi.slow_tasks import SlowTasks
from prefork.engines.timers import NEVER
from prefork.http.websocket_close import GOING_AWAY, SERVICE_RESTART

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.aio.service import Premises
    from prefork.engines.asgi.app import AsgiPeer


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
