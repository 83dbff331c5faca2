"""The definitions of the figures: one for each, told completely."""

from __future__ import annotations

from collections import Counter

import prefork.status.document
from prefork.status.definitions import FIGURES, MEANING, explanation
from prefork.status.document import totals
from prefork.status.histogram import ARRAY_DIGITS, Histogram
from prefork.status.scoreboard import COUNTERS


def test_each_figure_has_one_definition() -> None:
    assert {key: count for key, count in Counter(figure.key for figure in FIGURES).items() if count > 1} == {}
    for figure in FIGURES:
        assert figure.unit, figure
        assert figure.over, figure
        assert figure.meaning.endswith("."), figure
        assert not figure.null.endswith("."), figure


def test_every_counter_of_the_scoreboard_has_a_definition() -> None:
    told = totals(dict.fromkeys(COUNTERS, 0), Histogram(ARRAY_DIGITS), connections=0, respawns={})
    assert {f"totals.{key}" for key in told} <= MEANING.keys()
    assert {f"totals.errors_by_kind.{kind}" for kind in told["errors_by_kind"]} <= MEANING.keys()


def test_units_agree_with_the_names() -> None:
    units = {"s": "seconds", "us": "microseconds", "ms": "milliseconds", "bytes": "bytes", "ratio": "0 to 1"}
    for figure in FIGURES:
        key = figure.key.rpartition(".")[2]
        end = key.rpartition("_")[2]
        if "_" in key and end in units:
            assert figure.unit == units[end], figure


def test_the_columns_of_the_tables_are_those_of_the_figures() -> None:
    for part, columns in (
        ("workers[].", prefork.status.document._COLUMNS), ("listeners[].", prefork.status.document._LISTENER_COLUMNS),
    ):  # fmt: skip
        explained = {f.column: f.key.removeprefix(part) for f in FIGURES if f.key.startswith(part) and f.column}
        assert explained == columns
    of_all = {f.column: f.key.removeprefix("totals.") for f in FIGURES if f.key.startswith("totals.") and f.column}
    assert of_all.items() <= prefork.status.document._COLUMNS.items()


def test_the_text_names_every_figure_and_fits_the_page() -> None:
    text = explanation(80)
    for figure in FIGURES:
        assert f"\n{figure.key}  " in text
    assert max(len(line) for line in text.split("\n") if line.startswith("    ")) <= 80
    assert "workers[].p99_us  (P99)  microseconds, since the worker started\n" in text
    assert "Null: no unit is in progress." in text
