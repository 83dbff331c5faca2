"""Drives the fast engine without locust: links on a real epoll against a real server, until enough has happened."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

from loadtest.generator.dialer import Dialer
from loadtest.generator.engine import Engine
from loadtest.generator.link import ClosedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from loadtest.generator.link import Batch, Link

WITHIN_S = 20.0


class Driving:
    """`Driving(address)`, then links and a model, then `until(...)`; tells what happened."""

    def __init__(self, address: Any, *, deadline_s: float = 10.0) -> None:
        self.batches: list[Batch] = []
        self.failures: Counter[str] = Counter()
        self.failed_connects = 0
        self.failed_ns: list[int] = []  # how long each failure took
        self.poller = select.epoll()
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        self.engine = Engine(
            poller=self.poller,
            wait=lambda seconds: select.select([self.poller], [], [], seconds),
            dialer=Dialer(family, address),
            deadline_s=deadline_s,
            observer=self,
        )
        self.engine.model = ClosedModel(self.engine)

    def link(self, make: Callable[[Engine], Link]) -> Driving:
        self.engine.links.append(make(self.engine))
        return self

    def until(self, enough: Callable[[Driving], bool]) -> Driving:
        """Run until that is true, then let what is in flight end."""
        deadline = time.monotonic() + WITHIN_S
        for idle_s in self.engine.run():
            assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {self.completed} {self.failures}"
            self.engine.report()
            if enough(self):
                self.engine.model.stop()
            if not self.engine.model.ended:
                select.select([self.poller], [], [], idle_s)
        self.engine.report()
        return self

    def close(self) -> None:
        for link in self.engine.links:
            link.drop()
        self.poller.close()

    @property
    def completed(self) -> int:
        return sum(len(batch.end_ns) for batch in self.batches)

    @property
    def received(self) -> int:
        return sum(batch.received for batch in self.batches)

    def on_batch(self, batch: Batch) -> None:
        assert len(batch.sent_ns) == len(batch.end_ns)
        assert len(batch.due_ns) in (0, len(batch.end_ns))
        self.batches.append(batch)

    def on_failure(self, start_ns: int, cause: str, *, connecting: bool) -> None:
        self.failed_ns.append(time.perf_counter_ns() - start_ns)
        assert self.failed_ns[-1] >= 0
        self.failures[cause] += 1
        self.failed_connects += connecting


def completed(count: int) -> Callable[[Driving], bool]:
    """Return the condition that so many exchanges have completed."""
    return lambda driving: driving.completed >= count


def failed(count: int) -> Callable[[Driving], bool]:
    """Return the condition that so many exchanges have failed."""
    return lambda driving: driving.failures.total() >= count
