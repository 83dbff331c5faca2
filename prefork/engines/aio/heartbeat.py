"""WORKER. The pulse of an asyncio worker: what its loop tells the scoreboard, once a turn and once a beat.

Nothing of asyncio says when a loop enters or leaves epoll_wait. So whoever is called because something has come in
begins the turn, if nobody has, and the turn ends with a callback behind those that are ready by then: there the
counters are flushed, and the worker counts as waiting again.

The beat is a timer. A loop whose last beat is --timeout ago is blocked by a callback, and the master judges it as it
judges a handler that hangs. At each beat the oldest work in hand is noted, for people who ask what a worker does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import monotonic_ns, thread_time_ns

from prefork.engines.accept import Balance
from prefork.engines.context import Station
from prefork.status.scoreboard import BUSY_NS, BYTES_IN, BYTES_OUT, COMPLETED, HEARTBEAT, SINCE, heartbeat_s

_NOBODY = 0, b""

Oldest = Callable[[], tuple[int, bytes]]


class Pulse:
    """WORKER. `on`: a turn has begun. `bytes_in`, `bytes_out`: of this turn.

    `ticks` are called when a turn begins, `tocks` when it ends, `beats` with each beat; `oldest` says since when (ns,
    0 = not) the oldest work is in hand, and its mark for the scoreboard.
    """

    def __init__(self, station: Station, loop: asyncio.AbstractEventLoop, balance: Balance) -> None:
        self._life = station.life
        self._row = station.rows[0]
        self._cells = station.rows[0].cells
        self._loop = loop
        self._call_soon = loop.call_soon
        self._balance = balance if any(listener.slot is None for listener in station.listeners) else None
        self._period_s = heartbeat_s(station.config.timeout_s, station.config.slow_s)
        most = station.config.max_requests
        self._most = most and most + random.randint(0, station.config.max_requests_jitter)  # noqa: S311
        self._began_ns = 0
        self.ticks: list[Callable[[], None]] = []
        self.tocks: list[Callable[[], None]] = []
        self.beats: list[Callable[[], None]] = []
        self.oldest: Oldest = _nobody
        self.on = False
        self.bytes_in = 0
        self.bytes_out = 0

    def begin(self) -> None:
        """Something has come in. Call it only if not `on`."""
        self.on = True
        if self._balance is not None:
            self._balance.woke()
        self._call_soon(self._end)
        for tick in self.ticks:
            tick()

    def start(self) -> None:
        """Begin to beat."""
        self._began_ns = thread_time_ns()
        self._beat()

    def stop(self) -> None:
        """The loop ends: what comes now is not its fault."""
        self._flush()
        self._period_s = 0.0
        self._cells[BUSY_NS] = thread_time_ns() - self._began_ns
        self._cells[HEARTBEAT] = self._cells[SINCE] = 0

    def _end(self) -> None:
        self.on = False
        if self.bytes_in or self.bytes_out or self._most:
            self._flush()
        for tock in self.tocks:
            tock()
        if self._balance is not None:
            self._balance.sleeps()

    def _flush(self) -> None:
        cells = self._cells
        if self.bytes_in:
            cells[BYTES_IN] += self.bytes_in
            self.bytes_in = 0
        if self.bytes_out:
            cells[BYTES_OUT] += self.bytes_out
            self.bytes_out = 0
        if self._most and cells[COMPLETED] >= self._most:
            self._most = 0
            self._life.enough("max-requests")

    def _beat(self) -> None:
        if not self._period_s:
            return
        self._loop.call_later(self._period_s, self._beat)  # first: a fault below must not look like a blocked loop
        self._flush()  # what was sent without that anything came
        cells = self._cells
        cells[HEARTBEAT] = monotonic_ns()
        cells[BUSY_NS] = thread_time_ns() - self._began_ns  # of an event loop: what its thread has used of a processor
        since_ns, mark = self.oldest()
        if since_ns:
            self._row.note(mark)
        cells[SINCE] = since_ns
        for beat in self.beats:
            beat()


def _nobody() -> tuple[int, bytes]:
    return _NOBODY
