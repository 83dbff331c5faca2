"""The scoreboard: shared memory in which every thread of every worker writes what it is doing.

An anonymous mmap, made before the first fork, of fixed rows of 64-bit cells. Rules:
- One row per thread of a worker; a worker owns a group of `threads` rows from its spawn until it is reaped.
- Every cell has one writer: the row's owner while it lives, the master before and after. Aligned 64-bit stores are
  whole on the machines that Linux runs on, so readers take no lock and see each cell old or new.
- Counters cover one worker's life. At reap the master folds them into its totals, which never fall.
- Times are CLOCK_MONOTONIC nanoseconds, comparable between processes. The master adds `--timeout` to two of them:
  `SINCE`, when the row's unit of work began (0 while it waits for a client), and `HEARTBEAT` of the group's first row,
  which the worker writes whether it is busy or idle, so that a process that stands still outside any unit is seen.
- A row's text names what is served: the client, and the request of HTTP. It is written before the application is
  called, as no one else can tell while that runs; a reader may find it half written. An event loop, which serves many,
  has two texts: the oldest as of its last heartbeat (OLDEST), and the one that began last (BEGAN). Neither is judged,
  as what an event loop serves may wait for anything.
- The application of one worker can write to the rows of all. So readers take a figure that cannot be, such as a count
  below 0 or a time to come, for 0, and a figure is only ever shown, added up, or compared with a time limit.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic_ns, time_ns

from prefork.core.log import printable
from prefork.status.histogram import ARRAY_DIGITS, BUCKETS, COUNT_MOST, Histogram

# --- the heartbeat of a process: how often it writes one, and when it counts as stuck

_PERIOD_S = 0.5


def heartbeat_s(timeout_s: float, slow_s: float = 0.0) -> float:
    """The time between two heartbeats: shorter than the limits that they are compared with. 0 is no limit."""
    return min(_PERIOD_S, timeout_s / 4 or _PERIOD_S, max(slow_s / 2, 0.05) if slow_s else _PERIOD_S)


def stuck_ns(heartbeat_ns: int, now_ns: int, period_s: float) -> int:
    """The last heartbeat, if it is more than two periods ago: the process, or its loop, is stuck. Else 0."""
    return heartbeat_ns if heartbeat_ns and now_ns - heartbeat_ns > 2e9 * period_s else 0


# Cells of a row. Plain integers: an IntEnum member costs a lookup more on each use (measured: 45 ns against 25).
PID = 0
SINCE = 1  # when the unit of work that --timeout judges began (ns), 0 = none
ACCEPTED = 2  # connections taken from the kernel, or from the master before in an upgrade
CLOSED = 3  # connections that have ended other than by a cut; written last, when the others are as they are to be
CUT = 4  # connections ended by --graceful-timeout
GIVEN = 5  # connections given to other workers (runtime/transfer.py)
RECEIVED = 6  # connections taken from other workers
COMPLETED = 7  # units of work done: connections of a stream handler
ERRORS = 8  # units of work whose handler failed
IDLE_CLOSED = 9  # connections closed because the client was silent for --idle-timeout
TOO_LONG = 10  # connections closed because a line passed its limit
GONE = 11  # connections whose client left while it was being served
BYTES_IN = 12
BYTES_OUT = 13
BUSY_NS = 14  # time inside units of work; of an event loop, what its thread has used of a processor
TOOK_NS = 15  # sum of what the histogram counts
HEARTBEAT = 16  # of the first row: when the loop, or the main thread, last had a turn (ns), 0 = it is not judged
REFUSED = 17  # requests that the server answered itself, with 4xx or 5xx
TIMED_OUT = 18  # requests or responses of which the rest did not come, or was not read, in time
ABORTED = 19  # of ERRORS: those of which the client had a part already
_SLOW = 20  # slow requests noted so far
QUEUE = 21  # from here on: connections by how long they waited to be taken; queue_bucket numbers the cells
QUEUE_BUCKETS = 16
_TEXT = QUEUE + QUEUE_BUCKETS  # filled up with NULs
TEXT_BYTES = 192
BEGAN = _TEXT + TEXT_BYTES // 8  # of event loops: when what is served since last began (ns), 0 once it has ended
OLDEST = BEGAN + 1  # of event loops: when the oldest work in progress began, as of the last heartbeat (ns), 0 = none
_RING = 64  # from here on: the latest slow requests, each of them when (epoch ns), how long (ns), and its text
_RING_ENTRIES = 8
_ENTRY = 2 + TEXT_BYTES // 8
_LATEST = _RING + _RING_ENTRIES * _ENTRY  # of event loops: the text of BEGAN
HISTOGRAM = _LATEST + TEXT_BYTES // 8  # units by their busy time, histogram.array_index numbers the cells
CELLS = HISTOGRAM + BUCKETS

COUNTERS = {
    "accepted": ACCEPTED,
    "closed": CLOSED,
    "cut": CUT,
    "given": GIVEN,
    "received": RECEIVED,
    "completed": COMPLETED,
    "errors": ERRORS,
    "idle_closed": IDLE_CLOSED,
    "too_long": TOO_LONG,
    "client_gone": GONE,
    "refused": REFUSED,
    "timed_out": TIMED_OUT,
    "aborted": ABORTED,
    "bytes_in": BYTES_IN,
    "bytes_out": BYTES_OUT,
    "busy_ns": BUSY_NS,
}

HELD_MOST = 1 << 40  # connections: above, an application has written over a worker's cell, which heals in a beat
_CANNOT_BE = 1 << 62  # one more of a figure that is larger could raise

_METHODS = {"GET": b"GET ", "POST": b"POST ", "HEAD": b"HEAD "}  # others are put into bytes each time


class Scoreboard:
    """MASTER makes it, workers inherit it. `groups` groups of `threads` rows."""

    def __init__(self, *, groups: int, threads: int) -> None:
        self.groups = groups
        self.threads = threads
        self._rows_at = 5 * groups
        self.memory = mmap.mmap(-1, 8 * (self._rows_at + groups * threads * CELLS))
        self._cells = memoryview(self.memory).cast("q")
        # Of event loops, side by side, as each reads all of them before it takes a connection (engines/accept.py):
        # one more than the connections held, 0 = takes none; since when it is out of epoll_wait (ns), 0 = inside; and
        # how many it has taken. And before it gives or takes one that has lived (engines/handover.py): one more than
        # those held, 0 = takes none, -1 = takes what others cannot; and for how long in all (ns) a newcomer would have
        # had to wait; below 0, it waits now, and this is that time less the time when that began.
        self.open_cells = self._cells[:groups]
        self.awake_cells = self._cells[groups : 2 * groups]
        self.taken_cells = self._cells[2 * groups : 3 * groups]
        self.serving_cells = self._cells[3 * groups : 4 * groups]
        self.delay_cells = self._cells[4 * groups : 5 * groups]
        self._zeros = memoryview(bytes(8 * CELLS)).cast("q")

    def row(self, group: int, thread: int = 0) -> Row:
        """The row of one thread. Index it with the cell constants."""
        if not (0 <= group < self.groups and 0 <= thread < self.threads):
            raise IndexError(f"row {group}.{thread} of {self.groups}.{self.threads}")
        start = self._rows_at + (group * self.threads + thread) * CELLS
        return Row(self.memory, self._cells[start : start + CELLS], start)

    def clear(self, group: int) -> None:
        """Set the rows to 0 for the next owner. Only the master calls it, when no process owns the group."""
        self.vacate(group)
        for thread in range(self.threads):
            row = self.row(group, thread)
            row.cells[:] = self._zeros

    def vacate(self, group: int) -> None:
        """Its owner is gone: event loops no longer compare themselves with it. Counters stay until `clear`."""
        for start in range(0, self._rows_at, self.groups):
            self._cells[start + group] = 0

    def read(self, group: int) -> Reading:
        """What the rows of the group say now, added up."""
        rows = [self.row(group, thread) for thread in range(self.threads)]
        since_ns, peer = min((found for row in rows if (found := row.serving)[0]), default=(0, ""))
        units = [began_ns for row in rows if (began_ns := _past(row.cells[SINCE]))]
        seen = [row.cells[:QUEUE].tolist() for row in rows]  # at once: what is counted belongs together
        heartbeat_ns = _past(rows[0].cells[HEARTBEAT])
        return Reading(
            since_ns=since_ns,
            unit_ns=min(units, default=0),
            moved_ns=max(heartbeat_ns, *units) if units and heartbeat_ns else heartbeat_ns,
            serving=peer,
            held=sum(map(held, seen)),
            counters={name: sum(_count(cells[cell]) for cells in seen) for name, cell in COUNTERS.items()},
        )

    def work(self, group: int) -> list[Work]:
        """What each thread of the group does now, without those that have no client."""
        found = []
        for thread in range(self.threads):
            row = self.row(group, thread)
            (since_ns, text), holds = row.serving, held(row.cells[:QUEUE].tolist())
            if since_ns or holds:
                unit_ns = _past(row.cells[SINCE])
                found.append(Work(thread=thread, since_ns=since_ns, unit_ns=unit_ns, held=holds, text=text))
        return found

    def histogram(self, group: int) -> Histogram:
        """The durations of the group's units of work, without the time that they waited for their clients."""
        merged = Histogram(ARRAY_DIGITS)
        for thread in range(self.threads):
            cells = self.row(group, thread).cells
            merged.merge(Histogram.from_array(cells[HISTOGRAM:], sum_ns=cells[TOOK_NS]))
        return merged

    def queue_waits(self, group: int) -> list[int]:
        """The waits of the group's connections in the kernel's queue: counts by `queue_bucket`."""
        rows = [self.row(group, thread).cells[QUEUE : QUEUE + QUEUE_BUCKETS] for thread in range(self.threads)]
        return [sum(map(_count, counts)) for counts in zip(*rows, strict=True)]

    def last(self, group: int) -> tuple[str, ...]:
        """The current or latest request or client of each thread of the group."""
        rows = [self.row(group, thread) for thread in range(self.threads)]
        return tuple(text for row in rows if (text := row.latest or row.peer))

    def begun(self, group: int) -> tuple[int, str]:
        """The unit of work that an event loop has begun last: since when (ns, 0 = it has ended), and its text."""
        row = self.row(group)
        began_ns = _past(row.cells[BEGAN])
        return began_ns, row.latest if began_ns else ""

    def slow(self, group: int) -> list[Slow]:
        """The group's latest slow requests, the latest last. They stay when the worker has ended."""
        found = [entry for thread in range(self.threads) for entry in self.row(group, thread).slow()]
        return sorted(found, key=lambda entry: entry.ended_ns)[-_RING_ENTRIES:]


class Row:
    """The row of one thread. `cells` is the 64-bit view; the owner indexes it directly, as that is the request path.

    `memory[place]` is the text: a slice of the mmap itself, as that is faster than a view (0.05 us instead of 0.2).
    `memory[latest_place]` is that of BEGAN.
    """

    __slots__ = ("_first", "cells", "latest_place", "memory", "place")

    def __init__(self, memory: mmap.mmap, cells: memoryview, first: int) -> None:
        self.cells = cells
        self.memory = memory
        self._first = first
        start = 8 * (first + _TEXT)
        self.place = slice(start, start + TEXT_BYTES)
        start = 8 * (first + _LATEST)
        self.latest_place = slice(start, start + TEXT_BYTES)

    def heal(self) -> None:
        """Set the owner's figures to 0 if they cannot be: an application has written over them."""
        counters = self.cells[ACCEPTED:_TEXT]
        values = counters.tolist()
        if min(values) < 0 or max(values) > _CANNOT_BE:
            for part in (counters, self.cells[HISTOGRAM:]):
                part[:] = memoryview(bytes(8 * len(part))).cast("q")

    def serve(self, peer: str) -> None:
        """Write what is being served; a text that is too long is cut."""
        self.memory[self.place] = row_text(peer)

    def note(self, text: bytes) -> None:
        """Write what is being served, as a `row_text`."""
        self.memory[self.place] = text

    def add_slow(self, took_ns: int, text: bytes = b"") -> None:
        """Add a slow request: what is being served, or `text`. Its time is written last, when the rest is there."""
        cells, count = self.cells, self.cells[_SLOW]
        at = _RING + count % _RING_ENTRIES * _ENTRY
        cells[at] = 0
        cells[at + 1] = took_ns
        start = 8 * (self._first + at + 2)
        self.memory[start : start + TEXT_BYTES] = text or self.memory[self.place]
        cells[at] = time_ns()
        cells[_SLOW] = count + 1

    def slow(self) -> list[Slow]:
        """The latest slow requests of this row."""
        found = []
        for at in range(_RING, _RING + _RING_ENTRIES * _ENTRY, _ENTRY):
            if ended_ns := self.cells[at]:
                start = 8 * (self._first + at + 2)
                text = _readable(self.memory[start : start + TEXT_BYTES])
                found.append(Slow(ended_ns=ended_ns, took_ns=_count(self.cells[at + 1]), text=text))
        return found

    @property
    def peer(self) -> str:
        """The current or latest client, and its request of HTTP."""
        return _readable(self.memory[self.place])

    @property
    def latest(self) -> str:
        """The unit of work that an event loop has begun last."""
        return _readable(self.memory[self.latest_place])

    @property
    def serving(self) -> tuple[int, str]:
        """Since when a unit of work is in progress (ns, 0 = none), and its text."""
        if since_ns := _past(self.cells[SINCE] or self.cells[OLDEST]):
            return since_ns, self.peer
        began_ns = _past(self.cells[BEGAN])
        return began_ns, self.latest if began_ns else self.peer


def row_text(text: str) -> bytes:
    """The text, cut or filled up to TEXT_BYTES."""
    return text.encode("utf-8", "backslashreplace")[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")


def row_prefix(peer: str) -> bytes:
    """The part of a row's text before the request; a long client name leaves at least a third for the request."""
    return peer.encode("utf-8", "backslashreplace")[: TEXT_BYTES * 2 // 3] + b" "


def request_text(prefix: bytes, method: str, target: bytes) -> bytes:
    """The `row_text` of a request. Method and target are of visible ASCII, or the parser had refused them."""
    text = prefix + (_METHODS.get(method) or method.encode() + b" ") + target
    return text.ljust(TEXT_BYTES, b"\0")[:TEXT_BYTES]


def _readable(text: bytes) -> str:
    """The text of a row. The name of a client on a Unix socket may be anything: control characters are escaped."""
    return printable(text.rstrip(b"\0").decode("utf-8", "replace"))


def held(cells: Sequence[int]) -> int:
    """The connections that the owner of a row has now: what came, less what has ended or was given away."""
    accepted, closed, cut, given, received = map(_count, cells[ACCEPTED : RECEIVED + 1])
    return _count(accepted + received - closed - cut - given)


def publish_held(cells: memoryview, count: int, ended: int = CLOSED) -> None:
    """Note how many connections the owner of a row has now. The others that came have ended: as CLOSED, or as CUT."""
    accepted, closed, cut, given, received = cells[ACCEPTED : RECEIVED + 1].tolist()
    gone = accepted + received - closed - cut - given - count
    if 0 <= gone <= COUNT_MOST >= cells[ended]:
        cells[ended] += gone
    else:  # an application has written over the figures
        cells[ACCEPTED], cells[CLOSED], cells[CUT], cells[GIVEN], cells[RECEIVED] = count, 0, 0, 0, 0


def _count(value: int) -> int:
    """What was counted, or 0 for what no worker can have counted."""
    return value if 0 <= value <= COUNT_MOST else 0


def _past(time_ns: int) -> int:
    """A time (CLOCK_MONOTONIC, ns), or 0 for one that has not come yet."""
    return time_ns if 0 < time_ns <= monotonic_ns() else 0


def queue_bucket(waited_ms: int) -> int:
    """The cell, from QUEUE on, that counts a wait: 0 ms, 1, 2 to 3, 4 to 7 and so on; the last has no end."""
    return min(waited_ms.bit_length(), QUEUE_BUCKETS - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A group at one moment. `since_ns`: the start of its oldest work (0 = none); `serving`: its text.

    `unit_ns`: the start of its oldest unit of work, 0 if there is none that --timeout judges. `moved_ns`: when its
    process last beat or began a unit, 0 while it is not judged.
    """

    since_ns: int
    unit_ns: int = 0
    moved_ns: int = 0
    serving: str
    held: int
    counters: dict[str, int]

    @property
    def judged_ns(self) -> int:
        """What --timeout counts from: the start of the oldest unit, or the last that was seen of the process."""
        return min(self.unit_ns or self.moved_ns, self.moved_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One thread at one moment. `since_ns`: when its unit of work began, 0 if it has none or waits for its client.

    Of an event loop it is the oldest, as it was at the last heartbeat. `unit_ns`: the same, but 0 of an event loop,
    whose work may wait for anything. `held`: connections that it, or its loop, holds.
    """

    thread: int
    since_ns: int
    unit_ns: int
    held: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A request that took longer than --slow. `ended_ns` is since the epoch."""

    ended_ns: int
    took_ns: int
    text: str
