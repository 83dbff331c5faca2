"""CLIENT. The table of workers: which columns fit, what is in a cell, in which order the rows are. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefork.cli.top.interval import Document, Interval, Rates
from prefork.status.document import cell

Span = tuple[str, str]  # text and style
Line = list[Span]
Value = float | str | None
_SERVING_LEAST = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`width` 0 takes what is left. `drop`: left out of a screen that is narrower. `old`: the quantile that it shows,
    dim where that is of another time (Rates.old)."""

    title: str
    width: int
    value: Callable[[Document, Rates], Value]
    show: Callable[[Value], str]
    drop: int = 0
    left: bool = False
    sorts: bool = False
    old: str = ""


def _of(key: str) -> Callable[[Document, Rates], Value]:
    return lambda worker, _rates: worker[key]


def _quantile(key: str) -> Callable[[Document, Rates], Value]:
    return lambda _worker, rates: rates.quantiles.get(key)


def _as(key: str) -> Callable[[Value], str]:
    return lambda value: cell(key, value)


def rate(value: Value) -> str:
    """`0`, `0.5`, `12.3`, `1234`, `1.2M`."""
    if not isinstance(value, (int, float)):
        return "-"
    if value < 100:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.0f}" if value < 1e6 else f"{value / 1e6:.3g}M"


COLUMNS = (
    Column(title="SLOT", width=4, value=_of("slot"), show=_as("slot"), left=True, sorts=True),
    Column(title="PID", width=7, value=_of("pid"), show=_as("pid")),
    Column(title="GEN", width=3, value=_of("generation"), show=_as("generation"), drop=100),
    Column(title="STATE", width=8, value=_of("state"), show=_as("state"), left=True),
    Column(title="REQ/S", width=6, value=lambda _, rates: rates.requests_per_s, show=rate, sorts=True),
    Column(title="ERR/S", width=6, value=lambda _, rates: rates.errors_per_s, show=rate, drop=110),
    Column(title="P50", width=6, value=_quantile("p50_us"), show=_as("p50_us"), drop=90, old="p50_us"),
    Column(title="P99", width=6, value=_quantile("p99_us"), show=_as("p99_us"), old="p99_us", sorts=True),
    Column(title="CPU", width=5, value=lambda _, rates: rates.cpu_ratio, show=_as("cpu_ratio"), sorts=True),
    Column(title="PSS", width=6, value=_of("pss_bytes"), show=_as("pss_bytes"), sorts=True),
    Column(title="CONN", width=5, value=_of("connections"), show=_as("connections"), sorts=True),
    Column(title="AGE", width=7, value=_of("age_s"), show=_as("age_s"), drop=100),
    Column(title="FOR", width=6, value=_of("serving_s"), show=_as("serving_s"), sorts=True),
    Column(title="SERVING", width=0, value=_of("serving"), show=_as("serving"), left=True),
)  # fmt: skip
SORTS = [column.title for column in COLUMNS if column.sorts]


def rows(interval: Interval, sort: str) -> list[Document]:
    """The workers, in order: by slot from the lowest, by anything else from the highest."""
    workers = sorted(interval.document["workers"], key=lambda worker: (worker["slot"], worker["generation"]))
    column = next(column for column in COLUMNS if column.title == sort)
    if column.title == "SLOT":
        return workers

    def rank(worker: Document) -> float:
        value = column.value(worker, interval.workers[worker["pid"]])
        return -value if isinstance(value, (int, float)) else 1.0  # what is not known comes last

    return sorted(workers, key=rank)


def heading(width: int, sort: str) -> Line:
    """The titles; that of the order is marked."""
    line: Line = [(" ", "reverse")]
    for column, size in fitting(width):
        title = f"{column.title:{'<' if column.left else '>'}{size}.{size}}"
        line += [(title, "reverse bold underline" if column.title == sort else "reverse"), (" ", "reverse")]
    return line


def row(worker: Document, rates: Rates, width: int, *, selected: bool) -> Line:
    """One worker."""
    line: Line = [(">" if selected else " ", "bold")]
    for column, size in fitting(width):
        text = column.show(column.value(worker, rates))
        if len(text) > size:
            text = text[: size - 1] + "~"
        style = _style(column, worker, rates)
        line += [(f"{text:{'<' if column.left else '>'}{size}}", f"{style} reverse" if selected else style)]
        line += [(" ", "reverse" if selected else "")]
    return line


def fitting(width: int) -> Sequence[tuple[Column, int]]:
    """The columns for a screen this wide, with their widths; the last takes what is left."""
    chosen = [column for column in COLUMNS if width >= column.drop]
    used = 1 + sum(column.width + 1 for column in chosen)
    return [(column, column.width or max(_SERVING_LEAST, width - used)) for column in chosen]


_STATES = {"STARTING": "cyan", "BUSY": "green", "DRAINING": "yellow"}
_LATE_S = 5.0  # to the deadline


def _style(column: Column, worker: Document, rates: Rates) -> str:
    if column.title == "STATE":
        return _STATES.get(worker["state"], "")
    if column.title == "FOR" and (left_s := worker["deadline_in_s"]) is not None and left_s < _LATE_S:
        return "bold red"
    return "dim" if column.old in rates.old or _empty(column.value(worker, rates)) else ""


def _empty(value: Any) -> bool:
    return value in (None, 0)
