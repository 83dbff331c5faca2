"""The scoreboard: shared memory that says what every thread of every worker is doing.

An anonymous mmap, made before the first fork, of fixed rows of 64-bit cells. Rules:
- One row per thread of a worker; a worker owns a group of `threads` rows from its spawn until it is reaped.
- Every cell has one writer: the row's owner while it lives, the master before and after. Aligned 64-bit stores are
  whole on the machines that Linux runs on, so readers take no lock and see each cell old or new.
- Counters cover one worker's life. At reap the master folds them into its totals, which never fall.
- Times are CLOCK_MONOTONIC nanoseconds, comparable between processes. `SINCE` is when the row's unit of work began,
  0 while it waits for a client: the master adds `--timeout` and compares, so that idle rows need no heartbeat.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from .histogram import ARRAY_DIGITS, BUCKETS, Histogram

# Cells of a row. Plain integers: an IntEnum member costs a lookup more on each use (measured: 45 ns against 25).
PID = 0
SINCE = 1  # when the unit of work began (ns), 0 = none
HELD = 2  # connections open now
ACCEPTED = 3  # connections taken from the kernel
COMPLETED = 4  # units of work done: connections of a stream handler
ERRORS = 5  # units of work whose handler failed
IDLE_CLOSED = 6  # connections closed because the client was silent for --idle-timeout
TOO_LONG = 7  # connections closed because a line passed its limit
GONE = 8  # connections whose client left while it was being served
BYTES_IN = 9
BYTES_OUT = 10
BUSY_NS = 11  # time inside units of work; of an event loop, what its thread has used of a processor
TOOK_NS = 12  # sum of what the histogram counts, where that is not BUSY_NS
BEAT = 13  # when an asyncio loop last had a turn (ns), 0 = there is none
_PEER = 14  # text, filled up with NULs
_MARK_BYTES = 144
HISTOGRAM = _PEER + _MARK_BYTES // 8  # from here on: units by their busy time, histogram.array_index numbers the cells
CELLS = HISTOGRAM + BUCKETS

COUNTERS = {
    "accepted": ACCEPTED,
    "completed": COMPLETED,
    "errors": ERRORS,
    "idle_closed": IDLE_CLOSED,
    "too_long": TOO_LONG,
    "client_gone": GONE,
    "bytes_in": BYTES_IN,
    "bytes_out": BYTES_OUT,
    "busy_ns": BUSY_NS,
}

# Cells of the header, written by the master only.
STOPPING = 0  # 1: the whole server stops, so a retiring worker drains the accept queue
IN_USE = 1  # groups from here on have never had an owner
_HEADER_CELLS = 8


class Scoreboard:
    """MASTER makes it, workers inherit it. `groups` groups of `threads` rows."""

    def __init__(self, *, groups: int, threads: int) -> None:
        self.groups = groups
        self.threads = threads
        self._rows_at = _HEADER_CELLS + 2 * groups
        self._memory = mmap.mmap(-1, 8 * (self._rows_at + groups * threads * CELLS))
        self._cells = memoryview(self._memory).cast("q")
        self.header = self._cells[:_HEADER_CELLS]
        # Of event loops, side by side, as each reads all of them before it takes a connection (engines/balance.py):
        # one more than the connections held, 0 = takes none; and since when it is out of epoll_wait (ns), 0 = inside.
        self.open_cells = self._cells[_HEADER_CELLS : _HEADER_CELLS + groups]
        self.awake_cells = self._cells[_HEADER_CELLS + groups : self._rows_at]
        self._zeros = memoryview(bytes(8 * CELLS)).cast("q")

    def row(self, group: int, thread: int = 0) -> Row:
        """The row of one thread. Index it with the cell constants."""
        if not (0 <= group < self.groups and 0 <= thread < self.threads):
            raise IndexError(f"row {group}.{thread} of {self.groups}.{self.threads}")
        start = self._rows_at + (group * self.threads + thread) * CELLS
        return Row(self._memory, self._cells[start : start + CELLS], start)

    def clear(self, group: int) -> None:
        """Forget the last owner, before the next one. Only the master calls it, when no process owns the group."""
        self.header[IN_USE] = max(self.header[IN_USE], group + 1)
        self.vacate(group)
        for thread in range(self.threads):
            row = self.row(group, thread)
            row.cells[:] = self._zeros

    def vacate(self, group: int) -> None:
        """Its owner is gone: no event loop shall wait for it. What it has counted stays until the next owner comes."""
        self.open_cells[group] = self.awake_cells[group] = 0

    def read(self, group: int) -> Reading:
        """What the group says now."""
        rows = [self.row(group, thread) for thread in range(self.threads)]
        busy = [(row.cells[SINCE], row.peer) for row in rows if row.cells[SINCE]]
        since_ns, peer = min(busy, default=(0, ""))
        return Reading(
            since_ns=since_ns,
            beat_ns=max(row.cells[BEAT] for row in rows),
            serving=peer,
            held=sum(row.cells[HELD] for row in rows),
            counters={name: sum(row.cells[cell] for row in rows) for name, cell in COUNTERS.items()},
        )

    def histogram(self, group: int) -> Histogram:
        """How long the group's units of work took, without the time that they waited for their clients."""
        merged = Histogram(ARRAY_DIGITS)
        for thread in range(self.threads):
            cells = self.row(group, thread).cells
            merged.merge(Histogram.from_array(cells[HISTOGRAM:], sum_ns=cells[TOOK_NS] or cells[BUSY_NS]))
        return merged


class Row:
    """One thread's line. `cells` is the 64-bit view; the owner indexes it directly, as that is the request path."""

    __slots__ = ("_end", "_memory", "_start", "cells")

    def __init__(self, memory: mmap.mmap, cells: memoryview, first: int) -> None:
        self.cells = cells
        self._memory = memory
        self._start = 8 * (first + _PEER)
        self._end = self._start + _MARK_BYTES

    def serve(self, peer: str) -> None:
        """Note who is being served; what is too long is cut."""
        self._memory[self._start : self._end] = mark(peer)

    def note(self, peer: bytes) -> None:
        """The same, of a `mark` (a slice of the mmap itself: 0.05 us instead of 0.2 with a length and a view)."""
        self._memory[self._start : self._end] = peer

    @property
    def peer(self) -> str:
        """Who is, or was last, being served."""
        return self._memory[self._start : self._end].rstrip(b"\0").decode("utf-8", "replace")


def mark(peer: str) -> bytes:
    """Make the text as long as its place in a row."""
    return peer.encode("utf-8", "backslashreplace")[:_MARK_BYTES].ljust(_MARK_BYTES, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A group at one moment: `since_ns` is its oldest unit of work in progress (0 = none), `serving` whose it is.

    `beat_ns`: when its loop last had a turn, 0 if it has none that says so.
    """

    since_ns: int
    beat_ns: int = 0
    serving: str
    held: int
    counters: dict[str, int]

    @property
    def judged_ns(self) -> int:
        """Since when it may be late: a unit of work, or, as that may wait for whatever it likes, the loop's turn."""
        return self.beat_ns or self.since_ns
