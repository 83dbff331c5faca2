"""WORKER. The connections of an asyncio worker: how many it holds, and whether there is room for one more.

Who comes or goes is noted in a set, and told to the others once a turn (measured: 3 of 38 us a connection less). Only
where workers share a listener, a newcomer is told at once, as the others' next decision depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from prefork.engines.accept import Balance
from prefork.engines.aio.heartbeat import Pulse
from prefork.engines.context import Station
from prefork.status.scoreboard import ACCEPTED, HELD


class Member(Protocol):
    """Whatever stands for a connection."""

    def abort(self) -> None:
        """Cut it."""


class Crowd:
    """WORKER. `changed(held)` is called after a turn in which somebody came or went.

    `arriving` are taken from the kernel, and will join in a moment. `able` is False once no more are taken.
    """

    def __init__(self, station: Station, balance: Balance, pulse: Pulse) -> None:
        self._cells = station.rows[0].cells
        self._most = station.config.max_connections
        self._balance = balance
        self._pulse = pulse
        self._told = 0  # the number that the others know
        self._emptied: asyncio.Event | None = None
        self._joined = 0  # in this turn
        self._shared = any(listener.slot is None for listener in station.listeners)
        self.arriving = 0
        self.members: set[Member] = set()
        self.changed: Callable[[int], None] = nothing
        self.able = True
        pulse.tocks.append(self._tell)

    def room(self) -> bool:
        """Whether one more may come."""
        return self.held() < self._most

    def held(self) -> int:
        """How many there are."""
        return len(self.members) + self.arriving

    def lose(self) -> None:
        """One that was taken will not join."""
        self.arriving -= 1
        if not self._pulse.on:
            self._pulse.begin()

    def join(self, member: Member) -> None:
        """A connection begins to be served."""
        if not self._pulse.on:
            self._pulse.begin()
        if self.arriving:
            self.arriving -= 1
        self._joined += 1
        self.members.add(member)

    def leave(self, member: Member) -> None:
        """It has ended."""
        if not self._pulse.on:
            self._pulse.begin()
        self.members.discard(member)

    def replace(self, member: Member, successor: Member) -> None:
        """Something else stands for the connection now."""
        self.members.discard(member)
        self.members.add(successor)

    def announce(self) -> None:
        """Tell the scoreboard and the other workers."""
        held = len(self.members) + self.arriving
        self._told = self._cells[HELD] = held
        if self._shared:
            self._balance.publish(held, able=self.able and held < self._most)

    async def gone(self, timeout_s: float) -> bool:
        """Wait until all have left, and nobody arrives any more; False if that has not come by then."""
        if self.held():
            self._emptied = asyncio.Event()
            try:
                await asyncio.wait_for(self._emptied.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def cut(self) -> None:
        """Cut who is still there."""
        for member in list(self.members):
            member.abort()

    def _tell(self) -> None:
        if self._joined:
            self._cells[ACCEPTED] += self._joined
            self._joined = 0
        held = len(self.members) + self.arriving
        if held != self._told:
            self.announce()
            self.changed(held)
        if self._emptied is not None and not held:
            self._emptied.set()


def nothing(_held: int) -> None:
    """What there is to be done when nobody wants to know who comes or goes."""
