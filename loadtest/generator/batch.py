"""What the fast engine notes of its exchanges between two reports: flat lists, filled in the hot path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class Batch:
    """All times are CLOCK_MONOTONIC in ns. sent, end and due have one entry for each exchange that ended well."""

    sent_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)
    due_ns: list[int] = field(default_factory=list)  # when it should have started; the closed model keeps none
    received: int = 0  # bytes
    connects: list[tuple[int, int]] = field(default_factory=list)  # start and end of those with a clock of their own
    gap_ns: int = 0  # the longest time without a look at the sockets
    gap_at_ns: int = 0  # when that began
    offered: list[tuple[int, int]] = field(default_factory=list)  # arrivals of the open model: when due, how late seen
    missed_ns: list[int] = field(default_factory=list)  # those of them that never started: when due

    @property
    def start_ns(self) -> Sequence[int]:
        """From where latencies count: in the closed model a client starts as soon as it may."""
        return self.due_ns or self.sent_ns
