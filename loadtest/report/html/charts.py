"""The three kinds of charts: latency by percentile, a configuration over time, the shares of its workers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .chart import Frame, Step, drawing, group
from .evidence import NAMED
from .markup import Markup, exact, join
from .scale import Scale, linear, logarithmic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .evidence import Part, Shares, Timeline

WIDE, NARROW = 960, 400
_LEFT, _RIGHT = 52.0, 14.0  # margins of a drawing; what needs more on the right says so
_STRIP = 92.0  # the height of each of the two strips of a timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of the chart of percentiles."""

    name: str
    clock: str  # latency, or service_time
    colour: str  # a class of the style sheet
    points: tuple[tuple[float, int], ...]  # (share, ns)
    figures: tuple[tuple[float, int, str], ...]  # (share, ns, its place in the JSON), as in the table


def percentiles(curves: Sequence[Curve], width: int) -> Markup:
    """Latency by percentile: each step to the right has a tenth of the exchanges of the one before."""
    values = [ns for curve in curves for _, ns in curve.points]
    top = max(_nines(share) for curve in curves for share, _ in curve.points)
    height = 340 if width > NARROW else 300
    marks = (0.5, *(1 - 10.0**-nines for nines in range(1, math.ceil(top) + 1)))
    x = Scale(low=0.0, high=top, ticks=tuple(nines for nines in map(_nines, marks) if nines <= top))
    y = logarithmic(max(1, min(values)), max(values), 9)
    frame = Frame(x=x.between(_LEFT, width - _RIGHT), y=y.between(height - 24, 30))
    drawn = [frame.left_axis(_time, "latency"), frame.bottom_axis(_percent)]
    drawn += [_percentile_curve(frame, curve) for curve in curves]
    names = "; ".join(dict.fromkeys(curve.name for curve in curves))
    description = f"A curve for each of: {names}. The figures at {_and(map(_share, NAMED))} are those of the table."
    size = "wide" if width > NARROW else "narrow"
    return drawing(width, height, "Latency by percentile", description, *drawn, class_=size)


def _percentile_curve(frame: Frame, curve: Curve) -> Markup:
    line = frame.curve([(_nines(share), ns) for share, ns in curve.points], curve.clock)
    dots = [
        frame.dot(
            _nines(share), ns, f"{curve.name}: {_share(share)} {_time(ns)}", data_figure=place, data_value=f"{ns}"
        )
        for share, ns, place in curve.figures
    ]
    data = {"data_configuration": curve.name, "data_series": curve.clock, "data_value": exact(curve.points)}
    return group(f"series {curve.colour}", line, *dots, title=curve.name, **data)


def over_time(name: str, found: Timeline) -> Markup:
    """Throughput above, latency below, and behind both the accept queue."""
    height = int(2 * _STRIP + 88)
    x = linear(found.duration_s, 5)
    x = Scale(low=0.0, high=found.duration_s, ticks=tuple(tick for tick in x.ticks if tick <= found.duration_s))
    deepest = max((depth for _, _, depth in found.queue), default=None)
    queue = None if deepest is None else linear(deepest, 3, least_step=1)
    right = _RIGHT if queue is None else 46.0
    x = x.between(_LEFT, NARROW - right)
    parts = [part for line in found.rounds for part in line]
    rate = linear(max(part.rate_per_s for part in parts), 4)
    upper = Frame(x=x, y=rate.between(30 + _STRIP, 30))
    latencies = [ns for part in parts for ns in (part.p50_ns, part.p99_ns) if ns is not None]
    time = linear(max(latencies, default=1.0), 4)
    lower = Frame(x=x, y=time.between(height - 24, height - 24 - _STRIP))
    drawn = [upper.left_axis(_number, "requests/s"), lower.left_axis(_time, "latency"), lower.bottom_axis(_seconds)]
    if queue is not None:
        drawn += [_queue(frame, queue, found) for frame in (upper, lower)]
    drawn += [
        _lines(upper, found, "rate_per_s"),
        _lines(lower, found, "p50_ns"),
        _lines(lower, found, "p99_ns"),
    ]
    least, most = (_number(pick(part.rate_per_s for part in found.typical)) for pick in (min, max))
    waiting = "" if deepest is None else f", and at most {_number(deepest)} connections in the accept queue"
    description = f"By the second, in the median of the rounds: {least} to {most} requests/s{waiting}."
    return drawing(NARROW, height, f"{name} over time", description, *drawn)


def _queue(frame: Frame, scale: Scale, found: Timeline) -> Markup:
    scale = scale.between(frame.y.start, frame.y.end)
    steps = [Step(start=start, end=end, value=depth) for start, end, depth in found.queue]
    behind = Frame(x=frame.x, y=scale)
    drawn = [behind.area(steps, "area"), behind.steps(steps, "depth")]
    shaded = group("queue", *drawn, data_series="queue", data_value=exact(found.queue))
    return join(shaded, frame.right_axis(scale, _number, "accept queue"))


def _lines(frame: Frame, found: Timeline, field: str) -> Markup:
    """The rounds thin, their median thick."""

    def steps(parts: Iterable[Part]) -> list[Step]:
        return [Step(start=part.start_s, end=part.end_s, value=getattr(part, field)) for part in parts]

    thin = [frame.steps(steps(line), "round") for line in found.rounds]
    value = exact([(step.start, step.value) for step in steps(found.typical)])
    data = {"data_series": field, "data_value": value}
    return group("series", *thin, frame.steps(steps(found.typical), field), **data)


def shares(name: str, found: Shares) -> Markup:
    """A column for each worker, a dot for each round, and the line at which all would be equal."""
    height, workers = 200, found.workers
    y = linear(max(100 * part for share in workers for part in share.rounds), 4).between(height - 24, 30)
    middles = tuple(number + 0.5 for number in range(len(workers)))
    frame = Frame(x=Scale(low=0, high=len(workers), ticks=middles, start=_LEFT, end=NARROW - _RIGHT), y=y)
    drawn = [
        frame.left_axis(_of_hundred, f"{found.of} by worker"),
        frame.bottom_axis(lambda middle: str(workers[int(middle)].slot)),
    ]
    for number, share in enumerate(workers):
        label = f"worker {share.slot}: {100 * share.mean:.1f}% of the {found.of}"
        bar = frame.bar(number + 0.15, number + 0.85, 100 * share.mean, label)
        dots = [frame.dot(number + 0.5, 100 * part) for part in share.rounds]
        data = {"data_worker": str(share.slot), "data_value": exact(share.mean)}
        drawn.append(group("share", bar, *dots, **data))
    drawn.append(frame.level(100 / len(workers), "even"))
    least, most = (pick(share.mean for share in workers) for pick in (min, max))
    description = f"Of {len(workers)} workers the busiest did {100 * most:.1f}%, the least busy {100 * least:.1f}%."
    return drawing(NARROW, height, f"{name}: {found.of} by worker", description, *drawn)


def _nines(share: float) -> float:
    """0 for none, 1 for 90 %, 2 for 99 %, and so on."""
    return -math.log10(1 - share)


def _percent(nines: float) -> str:
    return _share(1 - 10**-nines)


def _share(share: float) -> str:
    return f"{100 * share:.7g}%"


def _of_hundred(value: float) -> str:
    return f"{value:g}%"


def _time(ns: float) -> str:
    """As short as an axis wants it."""
    unit, size = next(((unit, size) for unit, size in (("s", 1e9), ("ms", 1e6)) if ns >= size), ("µs", 1e3))
    return f"{ns / size:.3g} {unit}" if ns else "0"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:g} s"


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"
