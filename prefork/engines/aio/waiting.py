"""WORKER. Deadlines on an asyncio loop: one timer for all that are watched (deadlines.py).

The loop runs timers before it looks at sockets. So when one is due, the loop has its look first: who has sent in time
must not lose a deadline to a callback that kept the loop busy.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import Generic, Protocol, TypeVar

from prefork.engines.timers import NEVER, Bounded, Deadlines

# --- A wait for something to happen that may happen again.
#
# What asyncio.Event does, with a bare future for each wait (measured: 2 of 14 us for a message of a WebSocket).


class Bell:
    """WORKER. Whoever waits hears the next ring."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        """It has happened."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():  # cancelled
                    future.set_result(None)

    def heard(self) -> asyncio.Future[None]:
        """The next ring, to be awaited."""
        if self._waiting:  # without those that were cancelled: some look in for a moment, again and again
            self._waiting = [future for future in self._waiting if not future.done()]
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future


class Expiring(Bounded, Protocol):
    """Something that can be told that it is late."""

    def expire(self) -> None:
        """Its deadline has passed."""


Thing = TypeVar("Thing", bound=Expiring)


class Timekeeper(Generic[Thing]):
    """WORKER, of one loop. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._deadlines: Deadlines[Thing] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._at_ns = NEVER  # when the timer goes off

    def watch(self, thing: Thing) -> None:
        """Call when its deadline is earlier than its `watched_ns`; later ones need no call."""
        self._deadlines.watch(thing)
        if thing.deadline_ns < self._at_ns:
            self._arm()

    def forget(self, thing: Thing) -> None:
        """It has no deadline any more."""
        self._deadlines.forget(thing)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at_ns = self._deadlines.next_ns()
        if self._at_ns < NEVER:
            self._timer = self._loop.call_later(max(0.0, (self._at_ns - monotonic_ns()) / 1e9), self._go_off)

    def _go_off(self) -> None:
        self._timer = None
        # Run in this turn; what that asks for is run in the next one, which is behind the look at the sockets.
        self._loop.call_soon(self._loop.call_soon, self._look)

    def _look(self) -> None:
        for late in self._deadlines.due(monotonic_ns()):
            late.expire()
        self._arm()
