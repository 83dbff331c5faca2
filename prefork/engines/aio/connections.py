"""WORKER. The connections of an asyncio worker: how many are open, and whether one more may come.

The set changes at once; the scoreboard and the acceptor hear of it at the end of the loop's turn (measured: 3 of 38 us
a connection less). Only where workers share a listener, a new connection is published at once, as the decision of the
other workers depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from prefork.engines.accept import AcceptBalance
from prefork.engines.aio.heartbeat import Heartbeat
from prefork.engines.context import WorkerContext
from prefork.engines.handover import HandOver
from prefork.engines.linger import unread
from prefork.status.scoreboard import ACCEPTED, CLOSED, CUT, publish_held


class ConnectionLike(Protocol):
    """The object that represents a connection in the set: a protocol of ours, or a transport."""

    def abort(self) -> None:
        """Close the connection at once; unsent bytes are lost."""


class ConnectionSet:
    """WORKER. `on_change(held)` is called after a turn of the loop in which connections came or went.

    `arriving` counts connections that were accepted and have no protocol yet. `accepting` is False once the worker
    takes no new ones.
    """

    def __init__(self, worker: WorkerContext, balance: AcceptBalance, heartbeat: Heartbeat) -> None:
        self._cells = worker.rows[0].cells
        self._most = worker.config.max_connections
        self._balance = balance
        self._heartbeat = heartbeat
        self._published = 0  # the number that the other workers know
        self._emptied: asyncio.Event | None = None
        self._accepted = 0  # in this turn
        self._ended = CLOSED  # as what connections that end are counted
        self._shared = any(listener.slot is None for listener in worker.listeners)
        self.arriving = 0
        self.members: set[ConnectionLike] = set()
        self.on_change: Callable[[int], None] = ignore
        self.make_room: Callable[[Callable[[], bool]], bool] = no_room
        self.handover: HandOver | None = None  # of connections that are idle between two requests
        self.accepting = True
        heartbeat.on_sleep.append(self._end_turn)

    def room(self) -> bool:
        """Return whether --max-connections allows one more."""
        return self.held() < self._most

    def held(self) -> int:
        """Return the number of connections, those that arrive included."""
        return len(self.members) + self.arriving

    def arrive(self) -> None:
        """Count a connection that was accepted; `join` or `lose` follows."""
        self.arrived()
        self.publish()

    def arrived(self) -> None:
        """Count one that the loop itself has accepted: it is published with the others of this turn."""
        self.arriving += 1
        self._accepted += 1

    def lose(self) -> None:
        """Forget an arriving connection: it has ended before a protocol got it."""
        self.arriving -= 1
        if not self._heartbeat.awake:
            self._heartbeat.wake()

    def join(self, member: ConnectionLike) -> None:
        """Add a connection that a protocol begins to serve."""
        if not self._heartbeat.awake:
            self._heartbeat.wake()
        if self.arriving:
            self.arriving -= 1
        self.members.add(member)

    def leave(self, member: ConnectionLike) -> None:
        """Remove a connection that has ended."""
        if not self._heartbeat.awake:
            self._heartbeat.wake()
        self.members.discard(member)

    def replace(self, member: ConnectionLike, successor: ConnectionLike) -> None:
        """Let another object represent the connection from now on."""
        self.members.discard(member)
        self.members.add(successor)

    def publish(self) -> None:
        """Write the number to the scoreboard, for the other workers as well."""
        held = len(self.members) + self.arriving
        self._published = held
        cells = self._cells
        cells[ACCEPTED] += self._accepted
        self._accepted = 0
        publish_held(cells, held, self._ended)
        if self._shared:
            self._balance.publish(held, able=self.accepting and held < self._most)
        if self.handover is not None:
            self.handover.publish(held, serves=self.accepting)

    async def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no connection is left; return False if that takes longer than the timeout."""
        if self.held():
            self._emptied = asyncio.Event()
            try:
                await asyncio.wait_for(self._emptied.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def abort_all(self) -> None:
        """Close every connection at once."""
        self._ended = CUT
        for member in list(self.members):
            member.abort()

    def _end_turn(self) -> None:
        held = len(self.members) + self.arriving
        if held != self._published or self._accepted:
            self.publish()
            self.on_change(held)
        if self._emptied is not None and not held:
            self._emptied.set()


def ignore(_held: int) -> None:
    """Do nothing: the `on_change` of a worker that does not accept."""


def no_room(_accept: Callable[[], bool]) -> bool:
    """Return that no connection can make room for another."""
    return False


def has_unread_input(transport: asyncio.BaseTransport) -> bool:
    """Return whether the kernel holds bytes of the client that the transport has not read."""
    sock: Any = transport.get_extra_info("socket")
    try:
        return bool(unread(sock))
    except OSError:
        return False  # the client has left
