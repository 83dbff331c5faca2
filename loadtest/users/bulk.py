"""Puts batches of exchanges into locust's own statistics, which its console, web page and files show.

locust's way, an event for every exchange, costs 9 us each. Here a batch is counted under the keys of locust's tables
and added to them by locust's own `extend`, with which it adds up its workers. While that goes on no socket is looked
at, so it is done a few times a second only.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from locust.stats import StatsEntry

from prefork.status.histogram import Histogram

from ..generator.recorder import CONNECT
from .rounding import fine_bucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from locust.stats import RequestStats

    from ..generator.batch import Batch

_SHOW_S = 0.25
_UNIT_NS = 10_000  # in which response times are counted at first: the finest step of locust's keys (rounding.py)


class Ledger:
    """What one user's exchanges will be in locust's statistics."""

    def __init__(self, stats: RequestStats, method: str, name: str) -> None:
        self._exchanges = _Row(stats, method, name)
        self._connects = _Row(stats, CONNECT, name)
        self._shown_s = 0.0  # when, by the monotonic clock

    def enter(self, batch: Batch) -> Histogram:
        """Enter the batch, to be shown at once or soon; returns its latencies."""
        spans_ns = [end - start for start, end in zip(batch.start_ns, batch.end_ns, strict=True)]
        latency = self._exchanges.add(spans_ns, batch.received)
        self._connects.add([end - start for start, end in batch.connects], 0)
        if time.monotonic() >= self._shown_s + _SHOW_S:
            self.show()
        return latency

    def show(self) -> None:
        """Show what was entered since the last time."""
        self._shown_s = time.monotonic()
        self._exchanges.show()
        self._connects.show()


class _Row:
    """One row of the tables, and what is not in it yet."""

    def __init__(self, stats: RequestStats, method: str, name: str) -> None:
        self._stats = stats
        self._key = (name, method)
        self._clear()

    def _clear(self) -> None:
        self._pending = StatsEntry(self._stats, *self._key)
        self._pending.min_response_time = float("inf")
        self._units: Counter[int] = Counter()

    def add(self, spans_ns: Sequence[int], received: int) -> Histogram:
        """Add these response times."""
        latency = Histogram()
        if spans_ns:
            latency.record_many(spans_ns)
            entry = self._pending
            entry.num_requests += latency.n
            entry.total_content_length += received
            entry.total_response_time += latency.sum_ns / 1e6
            entry.min_response_time = min(entry.min_response_time, latency.min_ns / 1e6)
            entry.max_response_time = max(entry.max_response_time, latency.max_ns / 1e6)
            self._units.update([(span_ns + _UNIT_NS // 2) // _UNIT_NS for span_ns in spans_ns])
        return latency

    def show(self) -> None:
        """Put it into the row, and into the total."""
        entry = self._pending
        if not entry.num_requests:
            return
        now = time.time()
        entry.start_time = entry.last_request_timestamp = now
        entry.num_reqs_per_sec = {int(now): entry.num_requests}
        keys: Counter[float] = Counter()
        for units, count in self._units.items():
            keys[fine_bucket(units * _UNIT_NS / 1e6)] += count
        entry.response_times = keys
        self._stats.entries[self._key].extend(entry)
        self._stats.total.extend(entry)
        self._clear()
