"""When a link begins its next exchange: the closed model and the open one.

Closed: a client begins the next exchange as soon as the one before has ended. A slow server gets fewer of them; latency
counts from the send.

Open: exchanges come due by an absolute schedule, whatever the server does, as they do when many people do not know of
each other. One that comes due takes a link that is free; when all are busy it waits for one, in order. Its latency
counts from when it was due, so a server that stalls is charged for all that came due meanwhile; the service time, from
the send, is kept beside it. What is in flight, waiting ones included, is capped: at the cap an arrival is missed, and
counted. So is one that the engine itself sees more than 0.1 s late (the generator was stopped, or is overloaded): to
send what piled up would be a burst that the schedule does not have. How late the engine saw each arrival is noted.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .engine import Engine
    from .link import Link

NEVER = 1 << 63
LATE_NS = 100_000_000
_AT_ONCE = 256  # arrivals to look at before the sockets are looked at again


class Model:
    """What both models share: the end. After `stop` nothing begins that is not due already."""

    next_ns = NEVER  # when `arrive` wants to be called

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.stopping = False

    def start(self) -> None:
        """Begin, now."""
        raise NotImplementedError

    def stop(self) -> None:
        """Let what is in flight end, and begin nothing new."""
        self.stopping = True

    @property
    def ended(self) -> bool:
        """Whether it was stopped and nothing is in flight any more."""
        return self.stopping and not any(link.sent_ns for link in self.engine.links)

    def arrive(self, now_ns: int) -> None:
        """Begin what is due."""
        raise NotImplementedError

    def finished(self, links: Sequence[Link]) -> None:
        """The exchanges of these links ended well, and are noted: go on."""
        raise NotImplementedError

    def go_on(self, link: Link) -> None:
        """The link is free again after a failure, which has been reported."""
        raise NotImplementedError

    def unfinished_ns(self) -> list[int]:
        """The starts of all exchanges that have not ended."""
        return [link.due_ns or link.sent_ns for link in self.engine.links if link.sent_ns]


class ClosedModel(Model):
    """Every link always has an exchange in flight."""

    def start(self) -> None:
        """Begin with all links."""
        self.engine.again.extend(link.begin for link in self.engine.links)

    def finished(self, links: Sequence[Link]) -> None:
        """Go on at once."""
        for link in links:
            if self.stopping:
                link.drop()
            else:
                link.begin()

    def go_on(self, link: Link) -> None:
        """Go on."""
        self.finished([link])


class OpenModel(Model):
    """Exchanges begin by the schedule (times in ns, ascending, without end), on whatever link is free."""

    def __init__(self, engine: Engine, schedule: Iterator[int], max_in_flight: int) -> None:
        super().__init__(engine)
        self._schedule = schedule
        self._cap = max_in_flight
        self._free: deque[Link] = deque()
        self._waiting: deque[int] = deque()  # when they were due

    def start(self) -> None:
        """Wait for the first arrival."""
        self._free.extend(self.engine.links)
        self.next_ns = next(self._schedule)

    def stop(self) -> None:
        """Let what has come due end."""
        super().stop()
        self.next_ns = NEVER

    @property
    def ended(self) -> bool:
        """Whether it was stopped and nothing that came due is left."""
        return self.stopping and not self._waiting and len(self._free) == len(self.engine.links)

    def arrive(self, now_ns: int) -> None:
        """Begin what is due, or let it wait; miss it if it is too late or too much."""
        batch = self.engine.batch
        for _ in range(_AT_ONCE):
            due_ns = self.next_ns
            if due_ns > now_ns:
                return
            self.next_ns = next(self._schedule)
            late_ns = clock() - due_ns
            batch.offered.append((due_ns, late_ns))
            busy = len(self.engine.links) - len(self._free)
            if late_ns > LATE_NS or busy + len(self._waiting) >= self._cap:
                batch.missed_ns.append(due_ns)
            elif self._free:
                self._begin(self._free.popleft(), due_ns)
            else:
                self._waiting.append(due_ns)

    def finished(self, links: Sequence[Link]) -> None:
        """Note when the exchanges were due, and go on."""
        for link in links:
            self.engine.batch.due_ns.append(link.due_ns)
            self.go_on(link)

    def go_on(self, link: Link) -> None:
        """Begin what has waited longest, if anything waits."""
        if self._waiting:
            self._begin(link, self._waiting.popleft())
        else:
            link.sent_ns = 0
            self._free.append(link)

    def unfinished_ns(self) -> list[int]:
        """Those that wait have not ended either."""
        return super().unfinished_ns() + list(self._waiting)

    def _begin(self, link: Link, due_ns: int) -> None:
        link.due_ns = due_ns
        link.begin()


def constant(start_ns: int, rate_per_s: float) -> Iterator[int]:
    """Arrivals at equal distances, without end; computed each from the start, so that no error adds up."""
    return (start_ns + round(number * 1e9 / rate_per_s) for number in itertools.count())


def poisson(start_ns: int, rate_per_s: float) -> Iterator[int]:
    """Arrivals of people who do not know of each other: exponential gaps, without end."""
    at_ns = float(start_ns)
    while True:
        at_ns += random.expovariate(rate_per_s) * 1e9
        yield round(at_ns)
