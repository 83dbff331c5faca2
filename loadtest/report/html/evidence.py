"""What the charts show, computed from the rounds that entered the comparison. Pure.

Latency by percentile comes from the merged histograms of all rounds, up to the last percentile that their number of
samples can bear. Over time a round has a figure for each second of its window; the rounds of a configuration are laid
over each other, and their median is drawn. A window of more than 240 s is cut into parts of several seconds; such a
part has the rate of all its seconds, the median of their p50 and the worst of their p99.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

from prefork.status.histogram import Histogram, estimable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadtest.data.records import Client, Round, Signals, Worker

NAMED = (0.5, 0.9, 0.99, 0.999)
"""The percentiles that the tables show."""

_PER_DECADE = 24  # points of a curve from one nine to the next
_MOST_PARTS = 240  # of a window; more are thinner than a line
_LOOK_S = 0.25  # how long a depth of the accept queue is taken to hold: the probe looks every 0.1 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One second of a window, or several."""

    start_s: float
    end_s: float
    rate_per_s: float
    p50_ns: float | None  # None: too few exchanges to tell
    p99_ns: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The throughput and latency of a configuration over the window, and its accept queue."""

    duration_s: float
    rounds: tuple[tuple[Part, ...], ...]
    typical: tuple[Part, ...]  # the median of the rounds, for each figure by itself
    queue: tuple[tuple[float, float, float], ...]  # (from s, to s, median depth); empty when it could not be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of all work that one worker did."""

    slot: int
    mean: float  # over rounds
    rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How the workers of a configuration divided the work."""

    of: str  # what is counted: requests, or CPU time
    workers: tuple[Share, ...]  # two at least


def percentiles(histograms: Sequence[Histogram]) -> tuple[tuple[float, int], ...]:
    """Return points (share of the exchanges, ns that it does not exceed) of all samples together."""
    whole = Histogram(histograms[0].digits) if histograms else Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    if not estimable(0.5, whole.n):
        return ()
    last = 0.025 ** (1 / whole.n)  # where `estimable` ends
    grid = (1 - 10 ** (-number / _PER_DECADE) for number in itertools.count())
    shares = sorted({*itertools.takewhile(lambda share: share < last, grid), *(q for q in NAMED if q < last), last})
    return tuple(zip(shares, whole.quantiles(shares), strict=True))


def timeline(rounds: Sequence[Round]) -> Timeline | None:
    """Lay the rounds of one configuration over each other; None when they have no figures by the second."""
    shown = [done for done in rounds if done.client and done.client.seconds]
    clients = [done.client for done in shown if done.client]
    if not clients:
        return None
    duration_s = max(client.duration_s for client in clients)
    each = tuple(_parts(client, math.ceil(duration_s / _MOST_PARTS)) for client in clients)
    columns = itertools.zip_longest(*each)
    return Timeline(
        duration_s=duration_s,
        rounds=each,
        typical=tuple(_typical([part for part in column if part]) for column in columns),
        queue=_queue([done.signals for done in shown if done.signals], duration_s),
    )


def _parts(client: Client, width_s: int) -> tuple[Part, ...]:
    parts: list[Part] = []
    for _, found in itertools.groupby(client.seconds, lambda second: second.t_s // width_s):
        seconds = list(found)
        span_s = sum(second.span_s for second in seconds)
        if span_s < 0.5 and parts:
            continue  # a rest too short for a rate
        parts.append(
            Part(
                start_s=seconds[0].t_s,
                end_s=seconds[0].t_s + span_s,
                rate_per_s=sum(second.ended for second in seconds) / span_s if span_s else 0.0,
                p50_ns=_median(_borne(0.5, [(second.p50_ns, second.completed) for second in seconds])),
                p99_ns=max(_borne(0.99, [(second.p99_ns, second.completed) for second in seconds]), default=None),
            )
        )
    return tuple(parts)


def _borne(q: float, seconds: Iterable[tuple[int | None, int]]) -> list[int]:
    """Return the percentile of each second that has enough exchanges for it."""
    return [value for value, n in seconds if value is not None and estimable(q, n)]


def _typical(parts: Sequence[Part]) -> Part:
    return Part(
        start_s=parts[0].start_s,
        end_s=max(part.end_s for part in parts),
        rate_per_s=median(part.rate_per_s for part in parts),
        p50_ns=_median(part.p50_ns for part in parts),
        p99_ns=_median(part.p99_ns for part in parts),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _queue(seen: Iterable[Signals], duration_s: float) -> tuple[tuple[float, float, float], ...]:
    width_s = max(_LOOK_S, duration_s / _MOST_PARTS)
    looks: dict[int, list[int]] = {}
    for signals in seen:
        for t_s, _, depth in signals.series:
            if 0 <= t_s < duration_s and depth is not None:
                looks.setdefault(int(t_s / width_s), []).append(depth)
    return tuple(
        (number * width_s, min((number + 1) * width_s, duration_s), median(depths))
        for number, depths in sorted(looks.items())
    )


def shares(rounds: Sequence[Round]) -> Shares | None:
    """Return each worker's part of the requests, or of the CPU time; None without workers to compare.

    A round weighs as much as any other.
    """
    seen = [done.signals.workers for done in rounds if done.signals and done.signals.workers]
    for what, field in (("requests", "requests"), ("CPU time", "cpu_ns")):
        each = [_divided(workers, field) for workers in seen]
        slots = sorted(set().union(*each))
        if len(slots) > 1 and all(each):
            parts = {slot: tuple(divided.get(slot, 0.0) for divided in each) for slot in slots}
            workers = (Share(slot=slot, mean=fmean(found), rounds=found) for slot, found in parts.items())
            return Shares(of=what, workers=tuple(workers))
    return None


def _divided(workers: Sequence[Worker], field: str) -> dict[int, float]:
    """Return slot -> part of a figure; empty when it is not known of every worker, or all are 0."""
    counts: dict[int, int] = {}
    for worker in workers:
        value = getattr(worker, field)
        if value is None:
            return {}
        counts[worker.slot] = counts.get(worker.slot, 0) + value
    total = sum(counts.values())
    return {slot: count / total for slot, count in counts.items()} if total else {}
