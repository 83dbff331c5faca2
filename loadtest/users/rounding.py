"""locust's tables round latencies to whole milliseconds; the import of this module makes them finer.

It has to be imported in master and workers alike, since the keys by which they count have to be the same.
"""

from __future__ import annotations

import locust.stats

_coarse_bucket = locust.stats.bucket_response_time


def fine_bucket(response_time_ms: float) -> float:
    """The key under which locust's statistics count a response time: to 10 us below 10 ms, to 3 digits below 1 s."""
    if response_time_ms < 10:
        return round(response_time_ms, 2)
    if response_time_ms < 100:
        return round(response_time_ms, 1)
    if response_time_ms < 1000:
        return round(response_time_ms)
    return _coarse_bucket(response_time_ms)  # type: ignore[no-any-return]  # locust ships no types


locust.stats.bucket_response_time = fine_bucket
