"""A drawing, and frames in it: a rectangle with a scale along its sides, into which curves, steps and bars are drawn.

Coordinates are those of the view box. Letters are 12 of them high, in every drawing; colours come from the style sheet,
by the class of the group that a shape is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .markup import Markup, coordinate, element, join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .scale import Scale

    Write = Callable[[float], str]

LETTER = 6.8  # the width that is set aside for a letter
_GAP = 8.0  # between two labels of an axis
_FLOOR = 14.0  # from an axis down to the line that its labels stand on


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A value that holds from one moment, or place, to another; None where it is not known."""

    start: float
    end: float
    value: float | None


def drawing(width: int, height: int, title: str, description: str, *content: str, class_: str | None = None) -> Markup:
    """A picture with a name and a description for those who cannot see it."""
    named = join(element("title", title), element("desc", description))
    return element("svg", named, *content, viewBox=f"0 0 {width} {height}", role="img", class_=class_)


def group(class_: str, *content: str, title: str = "", **data: str | None) -> Markup:
    """Shapes that belong together, with what a pointer resting on them shows."""
    return element("g", *([element("title", title)] if title else []), *content, class_=class_, **data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Two scales: x from the left edge to the right, y from the bottom edge to the top."""

    x: Scale
    y: Scale

    def left_axis(self, write: Write, title: str) -> Markup:
        """The grid, with a label for each line and a title above."""
        lines, labels = [], []
        for tick in self.y.ticks:
            y = self.y(tick)
            lines.append(element("path", d=f"M{coordinate(self.x.start)} {coordinate(y)}H{coordinate(self.x.end)}"))
            labels.append(_text(write(tick), self.x.start - 6, y + 4, "end"))
        name = _text(title, 0, self.y.end - 14, "start", class_="name")
        return join(group("grid", *lines), group("labels", *labels, name))

    def right_axis(self, scale: Scale, write: Write, title: str) -> Markup:
        """A second scale for the same height, without lines of its own."""
        labels = [_text(write(tick), self.x.end + 6, scale(tick) + 4, "start") for tick in scale.ticks]
        room = self.x.end + 6 + LETTER * max(len(write(tick)) for tick in scale.ticks)
        return group("labels", *labels, _text(title, room, self.y.end - 14, "end", class_="name"))

    def bottom_axis(self, write: Write) -> Markup:
        """A label under each mark that has room for one."""
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
        """A line through points."""
        path = "L".join(f"{coordinate(self.x(x))} {coordinate(self.y(y))}" for x, y in points)
        return element("path", d=f"M{path}", class_=f"line {class_}") if points else Markup()

    def steps(self, steps: Iterable[Step], class_: str) -> Markup:
        """A line that is level where its value holds, with a gap where there is none."""
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
        """What lies under a stepped line."""
        bottom = coordinate(self.y.start)
        path = "".join(
            f"M{coordinate(self.x(step.start))} {bottom}V{coordinate(self.y(step.value))}"
            f"H{coordinate(self.x(step.end))}V{bottom}Z"
            for step in steps
            if step.value is not None
        )
        return element("path", d=path, class_=class_) if path else Markup()

    def dot(self, x: float, y: float, title: str = "", **data: str | None) -> Markup:
        """A point, with what a pointer resting on it shows."""
        named = [element("title", title)] if title else []
        return element("circle", *named, cx=self.x(x), cy=self.y(y), r=3.5, **data)

    def bar(self, start: float, end: float, value: float, title: str, **data: str | None) -> Markup:
        """A column from the bottom."""
        left, top = self.x(start), self.y(value)
        size = {"width": self.x(end) - left, "height": self.y.start - top}
        return element("rect", element("title", title), x=left, y=top, **size, **data)

    def level(self, value: float, class_: str) -> Markup:
        """A line across the whole width."""
        d = f"M{coordinate(self.x.start)} {coordinate(self.y(value))}H{coordinate(self.x.end)}"
        return element("path", d=d, class_=class_)


def _text(text: str, x: float, y: float, anchor: str, class_: str | None = None) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=class_)
