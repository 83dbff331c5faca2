"""CLIENT. What happened between two samples of a server: rates, processor time, latencies. Pure.

Counters are subtracted, and so are histograms, bucket by bucket: a quantile is that of the units that ended between the
samples. Where those are too few to bound it, that of the worker's whole life is shown instead, and marked as such. Time
is the server's own (`uptime_s`), so that a slow answer distorts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefork.status.histogram import ARRAY_DIGITS, Histogram, estimable, highest, lowest

Document = dict[str, Any]
Buckets = Mapping[int, int]  # count by bucket
_QUANTILES = {"p50_us": 0.5, "p99_us": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates of one worker, or of all. None = not known. `old`: quantiles that are not of the interval."""

    requests_per_s: float | None = None
    errors_per_s: float | None = None
    cpu_ratio: float | None = None  # of one processor
    quantiles: Mapping[str, int | None] = field(default_factory=dict)
    old: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The later sample, and what happened since the earlier one."""

    document: Document
    total: Rates
    workers: Mapping[int, Rates]  # by pid


def between(before: Document | None, now: Document) -> Interval:
    """Compare two samples; without an earlier one, or if that was of another server, there are no rates."""
    if before is not None and before["server"]["pid"] != now["server"]["pid"]:
        before = None
    spent_s = now["server"]["uptime_s"] - before["server"]["uptime_s"] if before is not None else 0.0
    if before is None or spent_s <= 0:
        workers = {worker["pid"]: Rates(**_quantiles({}, worker)) for worker in now["workers"]}
        return Interval(document=now, total=Rates(**_quantiles({}, now["totals"])), workers=workers)
    earlier = {(worker["pid"], worker["slot"]): worker for worker in before["workers"]}
    found: dict[int, Rates] = {}
    all_new: Counter[int] = Counter()
    for worker in now["workers"]:
        then = earlier.get((worker["pid"], worker["slot"]))
        new = _new(before, now, worker["pid"], known=then is not None)
        all_new.update(new)
        found[worker["pid"]] = Rates(
            requests_per_s=_rate(then, worker, "requests", spent_s),
            errors_per_s=_rate(then, worker, "errors", spent_s),
            cpu_ratio=_rate(then, worker, "cpu_s", spent_s),
            **_quantiles(new, worker),
        )
    total = Rates(
        requests_per_s=_rate(before["totals"], now["totals"], "requests", spent_s),
        errors_per_s=_rate(before["totals"], now["totals"], "errors", spent_s),
        **_quantiles(all_new, now["totals"]),
    )
    return Interval(document=now, total=total, workers=found)


def _rate(then: Document | None, now: Document, key: str, spent_s: float) -> float | None:
    """Change per second; the counters of a new worker start at 0."""
    before = 0 if then is None else then[key]
    return None if now[key] is None or before is None else max(0.0, (now[key] - before) / spent_s)


def _new(before: Document, now: Document, pid: int, *, known: bool) -> dict[int, int]:
    """The counts of the units that ended between the samples."""
    then = _buckets(before, pid) if known else {}
    counts = {bucket: count - then.get(bucket, 0) for bucket, count in _buckets(now, pid).items()}
    return {bucket: count for bucket, count in counts.items() if count > 0}


def _buckets(sample: Document, pid: int) -> Buckets:
    return dict(sample.get("latencies", {}).get(str(pid), ()))


def _quantiles(new: Buckets, whole: Document) -> dict[str, Any]:
    """Quantiles of the interval if it has enough units, else those of the document."""
    n = sum(new.values())
    recent = {key: q for key, q in _QUANTILES.items() if estimable(q, n)}
    quantiles: dict[str, int | None] = {key: whole[key] for key in _QUANTILES}
    if recent:
        values_ns = _histogram(new, n).quantiles(list(recent.values()))
        quantiles.update(zip(recent, (round(value / 1000) for value in values_ns), strict=True))
    return {"quantiles": quantiles, "old": frozenset(_QUANTILES.keys() - recent.keys())}


def _histogram(counts: Buckets, n: int) -> Histogram:
    low, high = lowest(min(counts), ARRAY_DIGITS), highest(max(counts), ARRAY_DIGITS)
    buckets = [list(pair) for pair in sorted(counts.items())]
    return Histogram.from_json(
        {"digits": ARRAY_DIGITS, "n": n, "sum_ns": 0, "min_ns": low, "max_ns": high, "buckets": buckets}
    )
