"""The three kinds of charts: latency by percentile, a configuration over time, the shares of its workers.

Below them: scales, which map values to coordinates and say where an axis is marked; and frames, rectangles with a scale
along each side, into which curves, steps and bars are drawn.

Coordinates are those of the view box. Letters are 12 units high in every drawing; colours come from the style sheet, by
the class of the group that a shape is in.

Pure: numbers in, markup out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loadtest.report.html.evidence import NAMED
from loadtest.report.html.markup import Markup, coordinate, element, exact, join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loadtest.report.html.evidence import Part, Shares, Timeline

    Write = Callable[[float], str]

_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps low..high to start..end, evenly or by orders of magnitude."""

    low: float
    high: float  # above low
    ticks: tuple[float, ...]
    log: bool = False
    start: float = 0.0  # coordinates; end may be the smaller one
    end: float = 1.0

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value; a value beyond an end is drawn at that end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def between(self, start: float, end: float) -> Scale:
        """Return the same scale on other coordinates."""
        return replace(self, start=start, end=end)


def linear(high: float, most: int, *, least_step: float = 0.0) -> Scale:
    """Make a scale from 0 to a round value not below `high`, with at most `most` steps."""
    high = high if high > 0 else 1.0
    step = max(least_step, _round_up(high / most))
    count = math.ceil(high / step - 1e-9)
    return Scale(low=0.0, high=step * count, ticks=tuple(step * number for number in range(count + 1)))


def logarithmic(low: float, high: float, most: int) -> Scale:
    """Make a scale from a round value below `low` (> 0) to one above `high`, marked at 1, 2, 5 or powers of ten."""
    low, high = _round_down(low), _round_up(high)
    high = high if high > low else low * 10
    decades = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    ticks = [10.0**decade * step for decade in decades for step in _STEPS]
    ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    if len(ticks) > most:
        powers = [10.0**decade for decade in decades if low * (1 - 1e-9) <= 10.0**decade <= high * (1 + 1e-9)]
        ticks = powers[:: math.ceil(len(powers) / most)]
    return Scale(low=low, high=high, ticks=tuple(ticks), log=True)


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ... that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (*_STEPS, 10) if power * step >= value * (1 - 1e-9))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (5, 2, 1, 0.5) if power * step <= value * (1 + 1e-9))


LETTER = 6.8  # the width that is set aside for a letter
_GAP = 8.0  # between two labels of an axis
_FLOOR = 14.0  # from an axis down to the line that its labels stand on


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A value that holds from one coordinate to another; None where it is not known."""

    start: float
    end: float
    value: float | None


def drawing(width: int, height: int, title: str, description: str, *content: str, class_: str | None = None) -> Markup:
    """Draw a picture with a name, and a description for those who cannot see it."""
    named = join(element("title", title), element("desc", description))
    return element("svg", named, *content, viewBox=f"0 0 {width} {height}", role="img", class_=class_)


def group(class_: str, *content: str, title: str = "", **data: str | None) -> Markup:
    """Group shapes; the title shows under a pointer that rests on them."""
    return element("g", *([element("title", title)] if title else []), *content, class_=class_, **data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A rectangle with two scales: x from the left edge to the right, y from the bottom edge to the top."""

    x: Scale
    y: Scale

    def left_axis(self, write: Write, title: str) -> Markup:
        """Draw the grid, with a label for each line and a title above."""
        lines, labels = [], []
        for tick in self.y.ticks:
            y = self.y(tick)
            lines.append(element("path", d=f"M{coordinate(self.x.start)} {coordinate(y)}H{coordinate(self.x.end)}"))
            labels.append(_text(write(tick), self.x.start - 6, y + 4, "end"))
        name = _text(title, 0, self.y.end - 14, "start", class_="name")
        return join(group("grid", *lines), group("labels", *labels, name))

    def right_axis(self, scale: Scale, write: Write, title: str) -> Markup:
        """Draw a second scale for the same height, without grid lines."""
        labels = [_text(write(tick), self.x.end + 6, scale(tick) + 4, "start") for tick in scale.ticks]
        room = self.x.end + 6 + LETTER * max(len(write(tick)) for tick in scale.ticks)
        return group("labels", *labels, _text(title, room, self.y.end - 14, "end", class_="name"))

    def bottom_axis(self, write: Write) -> Markup:
        """Draw a label under each mark that has room for one."""
        line = element(
            "path", d=f"M{coordinate(self.x.start)} {coordinate(self.y.start)}H{coordinate(self.x.end)}", class_="axis"
        )
        labels, free = [], 0.0
        for tick in self.x.ticks:
            half = len(write(tick)) * LETTER / 2
            if self.x(tick) - half >= free:
                labels.append(_text(write(tick), self.x(tick), self.y.start + _FLOOR, "middle"))
                free = self.x(tick) + half + _GAP
        return join(line, group("labels", *labels))

    def curve(self, points: Sequence[tuple[float, float]], class_: str) -> Markup:
        """Draw a line through points."""
        path = "L".join(f"{coordinate(self.x(x))} {coordinate(self.y(y))}" for x, y in points)
        return element("path", d=f"M{path}", class_=f"line {class_}") if points else Markup()

    def steps(self, steps: Iterable[Step], class_: str) -> Markup:
        """Draw a line that is level where its value holds, with a gap where the value is not known."""
        path, pen_down = "", False
        for step in steps:
            if step.value is None:
                pen_down = False
                continue
            y = coordinate(self.y(step.value))
            path += f"V{y}" if pen_down else f"M{coordinate(self.x(step.start))} {y}"
            path += f"H{coordinate(self.x(step.end))}"
            pen_down = True
        return element("path", d=path, class_=f"line {class_}") if path else Markup()

    def area(self, steps: Iterable[Step], class_: str) -> Markup:
        """Draw the area under a stepped line."""
        bottom = coordinate(self.y.start)
        path = "".join(
            f"M{coordinate(self.x(step.start))} {bottom}V{coordinate(self.y(step.value))}"
            f"H{coordinate(self.x(step.end))}V{bottom}Z"
            for step in steps
            if step.value is not None
        )
        return element("path", d=path, class_=class_) if path else Markup()

    def dot(self, x: float, y: float, title: str = "", **data: str | None) -> Markup:
        """Draw a point; the title shows under a pointer that rests on it."""
        named = [element("title", title)] if title else []
        return element("circle", *named, cx=self.x(x), cy=self.y(y), r=3.5, **data)

    def bar(self, start: float, end: float, value: float, title: str, **data: str | None) -> Markup:
        """Draw a column from the bottom."""
        left, top = self.x(start), self.y(value)
        size = {"width": self.x(end) - left, "height": self.y.start - top}
        return element("rect", element("title", title), x=left, y=top, **size, **data)

    def level(self, value: float, class_: str) -> Markup:
        """Draw a line across the whole width."""
        d = f"M{coordinate(self.x.start)} {coordinate(self.y(value))}H{coordinate(self.x.end)}"
        return element("path", d=d, class_=class_)


def _text(text: str, x: float, y: float, anchor: str, class_: str | None = None) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


WIDE, NARROW = 960, 400
_LEFT, _RIGHT = 52.0, 14.0  # margins of a drawing; what needs more on the right says so
_STRIP = 92.0  # the height of each of the two strips of a timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One curve of the chart of percentiles."""

    name: str
    clock: str  # latency, or service_time
    colour: str  # a class of the style sheet
    points: tuple[tuple[float, int], ...]  # (share, ns)
    figures: tuple[tuple[float, int, str], ...]  # (share, ns, its place in the JSON), as in the table


def percentiles(curves: Sequence[Curve], width: int) -> Markup:
    """Draw latency by percentile: each step to the right has a tenth of the exchanges of the one before."""
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
    """Draw throughput above, latency below, and behind both the accept queue."""
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
    """Draw the rounds thin and their median thick."""

    def steps(parts: Iterable[Part]) -> list[Step]:
        return [Step(start=part.start_s, end=part.end_s, value=getattr(part, field)) for part in parts]

    thin = [frame.steps(steps(line), "round") for line in found.rounds]
    value = exact([(step.start, step.value) for step in steps(found.typical)])
    data = {"data_series": field, "data_value": value}
    return group("series", *thin, frame.steps(steps(found.typical), field), **data)


def shares(name: str, found: Shares) -> Markup:
    """Draw a column for each worker, a dot for each round, and the line at which all would be equal."""
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
    """Return the number of nines in a share: 0 for 0 %, 1 for 90 %, 2 for 99 %, and so on."""
    return -math.log10(1 - share)


def _percent(nines: float) -> str:
    return _share(1 - 10**-nines)


def _share(share: float) -> str:
    return f"{100 * share:.7g}%"


def _of_hundred(value: float) -> str:
    return f"{value:g}%"


def _time(ns: float) -> str:
    """Write a time in ns as short as an axis needs it."""
    unit, size = next(((unit, size) for unit, size in (("s", 1e9), ("ms", 1e6)) if ns >= size), ("µs", 1e3))
    return f"{ns / size:.3g} {unit}" if ns else "0"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value:g} s"


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"
