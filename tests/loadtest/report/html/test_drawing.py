"""The drawings, by their coordinates: a line is where the labels of its axes say that its figures are."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from loadtest.report import render
from tests.loadtest.report.pages import RUNS, Page, run

if TYPE_CHECKING:
    from collections.abc import Callable

UNITS = {"s": 1e9, "ms": 1e6, "µs": 1e3, "%": 1.0, "": 1.0}
NEAR = 0.11  # coordinates are written to a tenth


@dataclass
class Drawing:
    """An svg element: the labels of its axes in the order left, left, ..., bottom, right; and its groups of shapes."""

    kind: str
    axes: list[list[tuple[str, float, float]]] = field(default_factory=list)  # text, x, y
    groups: list[tuple[dict[str, str], list[dict[str, str]]]] = field(default_factory=list)


def drawings(page: Page) -> list[Drawing]:
    found: list[Drawing] = []
    for each in page.elements:
        if each["tag"] == "svg":
            found.append(Drawing(kind=each.get("class", "")))
        elif each["tag"] == "g" and each["class"] == "labels":
            found[-1].axes.append([])
        elif each["tag"] == "g":
            found[-1].groups.append((each, []))
        elif each["tag"] == "text" and each.get("class") != "name":
            found[-1].axes[-1].append((each["text"], float(each["x"]), float(each["y"])))
        elif each["tag"] in ("path", "circle", "rect"):
            found[-1].groups[-1][1].append(each)
    return found


def value_of(label: str) -> float:
    number, unit = re.fullmatch(r"([\d.,]+) ?(s|ms|µs|%|)", label).groups()  # type: ignore[union-attr]
    return float(number.replace(",", "")) * UNITS[unit]


def along(labels: list[tuple[float, float]], bend: Callable[[float], float]) -> Callable[[float], float]:
    """Value -> coordinate, from the first and the last label of an axis (value, coordinate); the others must fit."""
    (low, start), (high, end) = labels[0], labels[-1]

    def place(value: float) -> float:
        return start + (end - start) * (bend(value) - bend(low)) / (bend(high) - bend(low))

    for value, coordinate in labels:
        assert place(value) == pytest.approx(coordinate, abs=NEAR)
    return place


def nines(share: float) -> float:
    return -math.log10(1 - share)


@pytest.fixture(params=RUNS, scope="module")
def drawn(request: pytest.FixtureRequest) -> list[Drawing]:
    report = run(request.param)
    return drawings(Page(render(report, "html")))


def test_percentiles_are_where_the_axes_say(drawn: list[Drawing]) -> None:
    shown = [drawing for drawing in drawn if drawing.kind]
    assert {drawing.kind for drawing in shown} == {"wide", "narrow"}
    for drawing in shown:
        left, bottom = drawing.axes
        y = along([(value_of(text), y - 4) for text, _, y in left], math.log)
        x = along([(value_of(text) / 100, x) for text, x, _ in bottom], nines)
        for group, shapes in drawing.groups:
            if "data-series" not in group:
                continue
            line, *dots = shapes
            points = [tuple(map(float, point.split())) for point in line["d"].removeprefix("M").split("L")]
            wanted = [(x(share), y(ns)) for share, ns in json.loads(group["data-value"])]
            assert [part for point in points for part in point] == pytest.approx(
                [part for point in wanted for part in point], abs=NEAR
            )
            for dot in dots:
                share = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}[
                    dot["data-figure"].rpartition(".")[2].removesuffix("_ns")
                ]
                centre = (float(dot["cx"]), float(dot["cy"]))
                assert centre == pytest.approx((x(share), y(int(dot["data-value"]))), abs=NEAR)


def test_figures_over_time_are_where_the_axes_say(drawn: list[Drawing]) -> None:
    shown = [drawing for drawing in drawn if any("data-series" in g for g, _ in drawing.groups) and not drawing.kind]
    assert shown
    for drawing in shown:
        rate, latency, bottom, *queue = drawing.axes
        axes = {"rate_per_s": rate, "p50_ns": latency, "p99_ns": latency, "queue": queue[0] if queue else []}
        x = along([(value_of(text) / 1e9, x) for text, x, _ in bottom], float)
        seen = []
        for group, shapes in drawing.groups:
            if (name := group.get("data-series", "")) not in axes or (name == "queue" and "queue" in seen):
                continue
            seen.append(name)
            y = along([(value_of(text), y - 4) for text, _, y in axes[name]], float)
            figures = [figure for figure in json.loads(group["data-value"]) if figure[-1] is not None]
            if not figures:
                assert not shapes
                continue
            steps = levels(shapes[-1]["d"])
            assert [start for start, _ in steps] == pytest.approx([x(start) for start, *_ in figures], abs=NEAR)
            assert [level for _, level in steps] == pytest.approx([y(figure[-1]) for figure in figures], abs=NEAR)
        assert {"rate_per_s", "p50_ns", "p99_ns"} <= set(seen)


def levels(path: str) -> list[tuple[float, float]]:
    """Where each level of a stepped line begins, and its height."""
    found, x, y = [], 0.0, 0.0
    for kind, first, second in re.findall(r"([MHV])([\d.]+)(?: ([\d.]+))?", path):
        if kind == "M":
            x, y = float(first), float(second)
        elif kind == "V":
            y = float(first)
        else:
            found.append((x, y))
            x = float(first)
    return found


def test_shares_are_where_the_axis_says(drawn: list[Drawing]) -> None:
    for drawing in drawn:
        bars = [(group, shapes) for group, shapes in drawing.groups if "data-worker" in group]
        if not bars:
            continue
        left, bottom = drawing.axes
        y = along([(value_of(text) / 100, y - 4) for text, _, y in left], float)
        assert [text for text, _, _ in bottom] == [group["data-worker"] for group, _ in bars]
        for (group, (bar, *_)), (_, middle, _) in zip(bars, bottom, strict=True):
            top, height = float(bar["y"]), float(bar["height"])
            assert top == pytest.approx(y(json.loads(group["data-value"])), abs=NEAR)
            assert top + height == pytest.approx(y(0), abs=2 * NEAR)
            assert float(bar["x"]) + float(bar["width"]) / 2 == pytest.approx(middle, abs=NEAR)
