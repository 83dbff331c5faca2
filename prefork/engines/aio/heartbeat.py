"""WORKER. What the loop of an asyncio worker writes to the scoreboard: once a turn of the loop, and once a heartbeat.

asyncio does not report when a loop enters or leaves epoll_wait. So the first I/O callback of a turn calls `wake`, which
schedules the end of the turn behind all callbacks that are ready by then, and behind the tasks that these begin: an
application that blocks the loop does so there. Then the counters are flushed, and the worker counts as waiting again.

The heartbeat is a timer. A loop whose last heartbeat is older than --timeout is blocked by a callback, and the master
treats it like a handler that hangs. Each heartbeat also notes the oldest work in progress, for `status` and death
reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns, thread_time_ns

from prefork.engines.accept import AcceptBalance
from prefork.engines.context import WorkerContext, most_units
from prefork.status.scoreboard import BUSY_NS, BYTES_IN, BYTES_OUT, COMPLETED, HEARTBEAT, OLDEST, heartbeat_s

_NO_WORK = 0, b""

OldestWork = Callable[[], tuple[int, bytes]]


class Heartbeat:
    """WORKER. `awake`: a turn has begun. `bytes_in`, `bytes_out`: bytes received and sent in this turn.

    The callbacks in `on_wake` are called when a turn begins, in `on_sleep` when it ends, in `on_beat` with each
    heartbeat. `oldest` returns when the oldest work in progress began (ns, 0 = there is none) and its text for the
    scoreboard.
    """

    def __init__(self, worker: WorkerContext, loop: asyncio.AbstractEventLoop, balance: AcceptBalance) -> None:
        self._link = worker.link
        self._row = worker.rows[0]
        self._cells = worker.rows[0].cells
        self._loop = loop
        self._call_soon = loop.call_soon
        self._balance = balance
        self._period_s = heartbeat_s(worker.config.timeout_s, worker.config.slow_s)
        self._most = most_units(worker.config)
        self._began_ns = 0
        self.on_wake: list[Callable[[], None]] = []
        self.on_sleep: list[Callable[[], None]] = []
        self.on_beat: list[Callable[[], None]] = []
        self.oldest: OldestWork = _no_work
        self.awake = False
        self._bytes_before_sleep = 0  # of those of this turn: their tasks come before its end
        self.bytes_in = 0
        self.bytes_out = 0

    def wake(self) -> None:
        """Begin a turn. Call it only if not `awake`."""
        self.awake = True
        self._balance.woke()
        self._call_soon(self._before_sleep)  # behind the tasks, else the others wait for a blocked loop
        for callback in self.on_wake:
            callback()

    def start(self) -> None:
        """Begin to beat."""
        self._began_ns = thread_time_ns()
        self._beat()

    def stop(self) -> None:
        """Stop beating: nobody is served any more, and --graceful-timeout alone judges the end of the worker."""
        self._flush()
        self._period_s = 0.0
        self._cells[BUSY_NS] = thread_time_ns() - self._began_ns
        self._cells[HEARTBEAT] = self._cells[OLDEST] = 0

    def check(self) -> None:
        """Call what is called with each heartbeat."""
        for callback in self.on_beat:
            callback()

    def _before_sleep(self) -> None:
        self._bytes_before_sleep = self.bytes_in
        self._call_soon(self._sleep)

    def _sleep(self) -> None:
        new_input = self.bytes_in != self._bytes_before_sleep  # its tasks come after this: the next turn has begun
        self.awake = False
        if self.bytes_in or self.bytes_out or self._most:
            self._flush()
        self._balance.sleeps()
        for callback in self.on_sleep:
            callback()
        if new_input and not self.awake:
            self.wake()

    def _flush(self) -> None:
        cells = self._cells
        if self.bytes_in:
            cells[BYTES_IN] += self.bytes_in
            self.bytes_in, self._bytes_before_sleep = 0, -1  # some may have just come: another turn follows
        if self.bytes_out:
            cells[BYTES_OUT] += self.bytes_out
            self.bytes_out = 0
        if self._most and cells[COMPLETED] >= self._most:
            self._most = 0
            self._link.enough("max-requests")

    def _beat(self) -> None:
        if not self._period_s:
            return
        self._loop.call_later(self._period_s, self._beat)  # first: a fault below must not look like a blocked loop
        self._row.heal()
        self._flush()  # what was sent in turns that no input had begun
        cells = self._cells
        cells[HEARTBEAT] = monotonic_ns()
        cells[BUSY_NS] = thread_time_ns() - self._began_ns  # of an event loop: what its thread has used of a processor
        since_ns, row_text = self.oldest()
        if since_ns:
            self._row.note(row_text)
        cells[OLDEST] = since_ns
        self.check()


def _no_work() -> tuple[int, bytes]:
    return _NO_WORK
