"""locust rounds latencies to whole milliseconds, and cuts them off in its CSV files; the import makes both finer.

It has to be imported in master and workers alike, since the keys by which they count have to be the same.
"""

from __future__ import annotations

from typing import Any

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


def fine_percentiles(csv: Any, entry: Any, use_current: bool = False) -> list[Any]:
    """The percentiles of a row of the CSV files, as locust's other columns are written."""
    if not entry.num_requests:
        return list(csv.percentiles_na)
    recent = use_current and entry.use_response_times_cache
    at = entry.get_current_response_time_percentile if recent else entry.get_response_time_percentile
    return [at(percentile) or 0 for percentile in csv.percentiles_to_report]


locust.stats.bucket_response_time = fine_bucket
locust.stats.StatsCSV._percentile_fields = fine_percentiles
