"""WORKER. What asyncio tasks and connections wait for: a notification, or a deadline."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import Generic, Protocol, TypeVar

from prefork.engines.timers import NEVER, Bounded, Deadlines


class Notify:
    """WORKER. Wakes all tasks that wait for something that can happen again and again.

    Like asyncio.Event without its state, and with one bare future a wait (measured: 2 of 14 us for a message of a
    WebSocket).
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        """Wake all that wait now."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():  # cancelled
                    future.set_result(None)

    def wait(self) -> asyncio.Future[None]:
        """Return a future that the next `set` completes."""
        if self._waiting:  # cancelled futures are removed here: some applications wait for a moment, again and again
            self._waiting = [future for future in self._waiting if not future.done()]
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future


class Expiring(Bounded, Protocol):
    """An object with a deadline (engines/timers.py)."""

    def expire(self) -> None:
        """Act: the deadline has passed."""


Thing = TypeVar("Thing", bound=Expiring)


class LoopTimers(Generic[Thing]):
    """WORKER, of one loop. One timer of the loop for all deadlines. Times are CLOCK_MONOTONIC ns.

    A loop runs its timers before it reads sockets. So when the timer fires, the loop reads the sockets first: a client
    that has sent in time must not miss its deadline because a callback kept the loop busy.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._deadlines: Deadlines[Thing] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._at_ns = NEVER  # when the timer fires

    def watch(self, thing: Thing) -> None:
        """Call this when a deadline is earlier than its `watched_ns`; later ones need no call."""
        self._deadlines.watch(thing)
        if thing.deadline_ns < self._at_ns:
            self._arm()

    def forget(self, thing: Thing) -> None:
        """Remove the deadline of an object."""
        self._deadlines.forget(thing)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at_ns = self._deadlines.next_ns()
        if self._at_ns < NEVER:
            self._timer = self._loop.call_later(max(0.0, (self._at_ns - monotonic_ns()) / 1e9), self._fire)

    def _fire(self) -> None:
        self._timer = None
        # The inner call_soon runs in this turn; what it schedules runs in the next one, after the sockets were read.
        self._loop.call_soon(self._loop.call_soon, self._expire_due)

    def _expire_due(self) -> None:
        for late in self._deadlines.due(monotonic_ns()):
            late.expire()
        self._arm()
