"""WORKER. Deadlines of many connections, of which few are ever reached.

A connection's deadline moves with every request, so the heap is lazy: an entry says when to look, not when to act. A
later deadline costs an attribute; only an earlier one than that of its entry costs a push. Entries of connections that
are gone let go of them at once, and are cleared away when they are most of the heap.

Each connection that stays is looked at once too early. These looks are made together: one that wakes the loop settles
all that are to come soon (measured: for ten thousand connections 0.02 s instead of 1 s of CPU in asyncio).
"""

from __future__ import annotations

import heapq
from typing import Any, Generic, Protocol, TypeVar

NEVER = 1 << 62  # ns
_FEW = 16  # dead entries that are not worth clearing away
_SOON_NS = 1_000_000_000


class Bounded(Protocol):
    """Something that has a deadline. `watched_ns` and `entry` are this module's own; they begin as NEVER and None."""

    deadline_ns: int
    watched_ns: int
    entry: list[Any] | None


Thing = TypeVar("Thing", bound=Bounded)


class Deadlines(Generic[Thing]):
    """WORKER, of one event loop. Times are ns of whatever clock the caller keeps."""

    def __init__(self) -> None:
        self._heap: list[list[Any]] = []  # when to look, a number that breaks ties, the thing or None
        self._count = 0
        self._dead = 0  # entries without a thing

    def watch(self, thing: Thing) -> None:
        """Call when the deadline is earlier than `watched_ns`; later ones need no call."""
        self._drop(thing)
        self._count += 1
        thing.watched_ns = thing.deadline_ns
        thing.entry = [thing.deadline_ns, self._count, thing]
        heapq.heappush(self._heap, thing.entry)

    def forget(self, thing: Thing) -> None:
        """The thing has no deadline any more."""
        self._drop(thing)
        thing.deadline_ns = thing.watched_ns = NEVER
        if self._dead > _FEW + len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2] is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next_ns(self) -> int:
        """When to look again."""
        return self._heap[0][0] if self._heap else NEVER

    def due(self, now_ns: int) -> list[Thing]:
        """Whose deadline has passed; they are watched no more."""
        found: list[Thing] = []
        heap = self._heap
        while heap and (entry := heap[0])[0] <= now_ns + _SOON_NS:
            thing = entry[2]
            if thing is None:
                heapq.heappop(heap)
                self._dead -= 1
            elif now_ns < thing.deadline_ns < NEVER:
                if thing.deadline_ns <= entry[0]:
                    break
                entry[0] = thing.watched_ns = thing.deadline_ns
                heapq.heapreplace(heap, entry)
            else:
                heapq.heappop(heap)
                thing.watched_ns, thing.entry = NEVER, None
                if thing.deadline_ns <= now_ns:
                    found.append(thing)
        return found

    def _drop(self, thing: Thing) -> None:
        if thing.entry is not None:
            thing.entry[2] = None
            thing.entry = None
            self._dead += 1
