"""WORKER. How an asyncio worker comes by its connections.

CarefulDoor: entrance.py decides when to take what. On listeners that are everybody's its epoll stands in the loop's, so
a connection wakes every worker that is not off; what keeps them even is the mean (balance.py).

QuickDoor: listeners of this worker's own (--accept per-worker), so uvloop's way of accepting will do, which is cheaper
(measured: 11 of 47 us a connection). But libuv does not know how many are wanted, and where there is no descriptor for
a connection it takes those that wait and closes them. So the careful door stands in for it well before either limit:
a quarter of all descriptors, of thousands, is more than an application opens between two looks.
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from prefork.core.listener import Listener
from prefork.engines.accept import Balance, Entrance
from prefork.engines.aio.connections import Crowd
from prefork.engines.context import Station
from prefork.engines.error_log import Complaints
from prefork.engines.timers import NEVER

_LOOK_S = 0.2
_BETWEEN = 8  # connections that libuv may take from a listener until a turn ends and the crowd is counted: seen are 3
_SCARCE, _PLENTY = 0.75, 0.5  # of what is allowed: more than that, and the careful door opens; less, and it shuts
_SOME = 64  # connections more, and it is looked again
_FEWEST_FDS = 4096  # with less there is never plenty

Admit = Callable[[int, Any, Listener], None]
Factory = Callable[[Listener], Callable[[], asyncio.BaseProtocol]]


class CarefulDoor:
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
        self._balance = balance
        self._pass_on = admit
        self._epoll = select.epoll()
        self._timer: asyncio.TimerHandle | None = None
        self._entrance = Entrance(
            station.listeners,
            epoll=self._epoll,
            balance=balance,
            complaints=complaints,
            admit=self._admit,
            room=crowd.room,
            held=crowd.held,
        )
        self._handlers = self._entrance.handlers()

    def open(self) -> None:
        """Begin to accept."""
        self._entrance.open()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def shut(self) -> None:
        """Take nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._entrance.shut()
        self._arm()

    def heed(self, held: int) -> None:
        """Somebody came or went: there may be room again, long before it is time to look.

        All loops wake for a connection, and the fastest would take nearly all. So who is ahead stays off for its time.
        """
        if self._entrance.look_ns != NEVER and (not self._balance.ahead(held) or self._entrance.waits()):
            self._tend()

    def drain(self) -> bool:
        """Take what the kernel has accepted for a server that stops; False if that has to be tried again."""
        return self._entrance.drain()

    def _admit(self, fd: int, sockaddr: Any, listener: Listener) -> None:
        self._balance.took()
        self._pass_on(fd, sockaddr, listener)

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
        self._entrance.tend(monotonic_ns())
        self._arm()


class QuickDoor:
    """WORKER. `factory(listener)` gives the loop what makes a protocol for a connection. It must never raise."""

    def __init__(
        self,
        station: Station,
        loop: asyncio.AbstractEventLoop,
        *,
        crowd: Crowd,
        careful: CarefulDoor,
        factory: Factory,
    ) -> None:
        self._loop = loop
        self._listeners = station.listeners
        self._backlog = station.config.backlog
        self._most = station.config.max_connections - _BETWEEN * len(station.listeners)
        self._crowd = crowd
        self._log = station.log
        self._careful = careful
        self._factory = factory
        self._servers: list[asyncio.Server] = []  # none: the careful door is open
        self._changing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._most_fds = 0
        self._enough = 0.0  # connections, from which on it is time to look again

    def open(self) -> None:
        """Begin to accept."""
        self._careful.open()
        self._look()

    def shut(self) -> None:
        """Take nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._changing is not None:
            self._changing.cancel()
        self._close()
        self._careful.shut()

    def drain(self) -> bool:
        """Take what the kernel has accepted for a server that stops; False if that has to be tried again."""
        return self._careful.drain()

    def _look(self) -> None:
        """Look from time to time, as descriptors come and go without connections."""
        self._most_fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._consider()
        self._timer = self._loop.call_later(_LOOK_S, self._look)

    def heed(self, held: int) -> None:
        """Somebody came or went."""
        if not self._servers:
            self._careful.heed(held)
            self._consider()
        elif held >= self._enough:
            self._consider()

    def _consider(self) -> None:
        """Change to the other door if it is time."""
        if self._servers:
            if not self._plenty(_SCARCE):
                self._log.debug("accepting with care", connections=self._crowd.held(), descriptors=self._most_fds)
                self._close()
                self._careful.open()
        elif (self._changing is None or self._changing.done()) and self._plenty(_PLENTY):
            self._changing = self._loop.create_task(self._quicken())

    async def _quicken(self) -> None:
        if not self._plenty(_PLENTY):
            return  # many have come since it was decided
        self._careful.shut()
        try:
            for listener in self._listeners:
                # Its own copy, as the loop closes what it was given; and the backlog, or the loop would set another.
                copy = listener.copy()
                server = await self._loop.create_server(self._factory(listener), sock=copy, backlog=self._backlog)
                self._servers.append(server)
        except OSError:  # no descriptor for the copy, or for the loop
            self._close()
            self._careful.open()

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _plenty(self, share: float) -> bool:
        """Whether less than this share of the connections, and of the descriptors, is in use."""
        held, most = self._crowd.held(), share * self._most
        if held >= most or self._most_fds < _FEWEST_FDS:
            return False
        self._enough = min(held + _SOME, most)
        try:
            lowest_free = os.dup(self._listeners[0].sock.fileno())
        except OSError:
            return False
        os.close(lowest_free)
        return lowest_free < share * self._most_fds


Door = CarefulDoor | QuickDoor
