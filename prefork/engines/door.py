"""WORKER. How an asyncio worker comes by its connections.

SharedDoor: the listeners are everybody's, and entrance.py decides who takes what. Its epoll stands in the loop's, so a
connection wakes every worker that is not off; what keeps them even is the mean (balance.py).

OwnDoor: listeners of this worker's own (--accept per-worker), so the loop's way of accepting will do, which is the
cheapest. Full, it closes its copy of the socket; connections then wait in the queue, which is the master's as well.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from ..listener import Listener
from .balance import Balance
from .complaints import Complaints
from .crowd import Crowd
from .deadlines import NEVER
from .entrance import Entrance
from .station import Station

Admit = Callable[[int, Any, Listener], None]
Factory = Callable[[Listener], Callable[[], asyncio.BaseProtocol]]


class SharedDoor:
    """WORKER. `admit(descriptor, sockaddr, listener)` gets each connection."""

    def __init__(
        self,
        station: Station,
        loop: asyncio.AbstractEventLoop,
        *,
        crowd: Crowd,
        balance: Balance,
        complaints: Complaints,
        admit: Admit,
    ) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._timer: asyncio.TimerHandle | None = None
        self._entrance = Entrance(
            station.listeners,
            epoll=self._epoll,
            balance=balance,
            complaints=complaints,
            admit=admit,
            room=crowd.room,
            held=crowd.held,
        )
        self._handlers = self._entrance.handlers()

    async def open(self) -> None:
        """Begin to accept."""
        self._entrance.open()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def shut(self) -> None:
        """Take nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._entrance.shut()
        self._arm()

    def drain(self) -> bool:
        """Take what the kernel has accepted for a server that stops; False if that has to be tried again."""
        return self._entrance.drain()

    def _look(self) -> None:
        now_ns = monotonic_ns()
        for fd, _mask in self._epoll.poll(0):
            self._handlers[fd](fd, now_ns)
        self._arm()

    def _arm(self) -> None:
        """Be there when the entrance wants to look again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._entrance.look_ns != NEVER:
            left_s = (self._entrance.look_ns - monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(max(0.0, left_s), self._tend)

    def _tend(self) -> None:
        self._timer = None
        self._entrance.tend(monotonic_ns())
        self._arm()


class OwnDoor:
    """WORKER. `factory(listener)` gives the loop what makes a protocol for a connection."""

    def __init__(
        self,
        station: Station,
        loop: asyncio.AbstractEventLoop,
        *,
        crowd: Crowd,
        drain: SharedDoor,
        factory: Factory,
    ) -> None:
        self._loop = loop
        self._listeners = station.listeners
        self._backlog = station.config.backlog
        self._crowd = crowd
        self._drain = drain
        self._factory = factory
        self._servers: list[asyncio.Server] = []
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to accept."""
        for listener in self._listeners:
            listener.sock.setblocking(False)
        await self._open()
        self._crowd.changed = self._consider

    def shut(self) -> None:
        """Take nothing any more."""
        self._crowd.changed = _nothing
        if self._opening is not None:
            self._opening.cancel()
        self._close()

    def drain(self) -> bool:
        """Take what the kernel has accepted for a server that stops; False if that has to be tried again."""
        return self._drain.drain()

    async def _open(self) -> None:
        for listener in self._listeners:
            # Its own copy, as the loop closes what it was given; and the backlog, or the loop would set another.
            copy = listener.sock.dup()
            server = await self._loop.create_server(self._factory(listener), sock=copy, backlog=self._backlog)
            self._servers.append(server)

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _consider(self) -> None:
        room = self._crowd.room()
        if not room and self._servers:
            self._close()
        elif room and not self._servers and (self._opening is None or self._opening.done()):
            self._opening = self._loop.create_task(self._open())


def _nothing() -> None:
    pass


Door = SharedDoor | OwnDoor
