"""Puts batches of exchanges into locust's own statistics, which its console, web page and files show.

locust's way, an event for every exchange, costs 9 us each. Here the batch becomes a histogram once; its buckets become
the keys by which locust counts, and locust's own `extend`, by which it adds up its workers, does the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from locust.stats import StatsEntry

from prefork.histogram import Histogram, highest, lowest

from ..generator.recorder import CONNECT
from .rounding import fine_bucket

if TYPE_CHECKING:
    from locust.stats import RequestStats

    from ..generator.batch import Batch


def log_batch(stats: RequestStats, method: str, name: str, batch: Batch) -> Histogram:
    """Count the batch in locust's statistics; returns its latencies."""
    latency = Histogram()
    latency.record_many([end - start for start, end in zip(batch.start_ns, batch.end_ns, strict=True)])
    _log(stats, method, name, latency, batch.received)
    if batch.connects:
        connects = Histogram()
        connects.record_many([end - start for start, end in batch.connects])
        _log(stats, CONNECT, name, connects, 0)
    return latency


def _log(stats: RequestStats, method: str, name: str, latency: Histogram, received: int) -> None:
    if not latency.n:
        return
    entry = StatsEntry(stats, name, method)
    now = time.time()
    entry.start_time = entry.last_request_timestamp = now
    entry.num_requests = latency.n
    entry.num_reqs_per_sec = {int(now): latency.n}
    entry.total_content_length = received
    entry.total_response_time = latency.sum_ns / 1e6
    entry.min_response_time, entry.max_response_time = latency.min_ns / 1e6, latency.max_ns / 1e6
    entry.response_times = _keys(latency)
    stats.entries[name, method].extend(entry)
    stats.total.extend(entry)


def _keys(latency: Histogram) -> Counter[float]:
    """The counts under the keys of locust's statistics: response times in ms."""
    keys: Counter[float] = Counter()
    for bucket, count in latency.to_json()["buckets"]:  # type: ignore[attr-defined]
        middle_ns = (lowest(bucket, latency.digits) + highest(bucket, latency.digits)) / 2
        keys[fine_bucket(middle_ns / 1e6)] += count
    return keys
