"""How fast the generator is, and how true, beside wrk and beside locust's FastHttpUser, on the same CPU.

The machine has to be quiet: other work shifts any of them. Each claim is about the median of ratios of runs side by
side. `--results DIR` writes what was measured to DIR/wrk.json and DIR/wrk.txt.

Latencies can only be compared under the same load, so there the server sets the rate. Where the generator does, each of
them measures how long answers wait for itself.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from tabulate import tabulate

from loadtest.data import provenance
from prefork.status.histogram import Histogram
from tests.loadtest.generator.wrk import Bench, Measured, as_wrk_corrects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SECONDS = 5
PAIRS = 7
AGAINST_LOCUST = 3
CONNECTIONS = 64
OF_WRK, OF_LOCUST = 0.8, 15
SHIFT = 0.10  # of p50 and p99, at most
LOADS = {  # connections, microseconds that the server is busy with each request, so that it sets the rate
    "1 connection": (1, 0),
    "16 connections, server busy 50 us": (16, 50),
    "64 connections, server busy 50 us": (64, 50),
}
needs = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or not all(map(shutil.which, ("wrk", "gcc"))),
    reason="wrk, gcc and a CPU for each side are needed",
)


class Results:
    """What was measured, by claim."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        document = {"provenance": provenance.collect(), "seconds": SECONDS, "claims": self.claims}
        (folder / "wrk.json").write_text(json.dumps(document, indent=1, default=asdict) + "\n")
        rows = [
            (claim, *(f"{figure:.3g}" for figure in found["ratios"].values())) for claim, found in self.claims.items()
        ]
        (folder / "wrk.txt").write_text(tabulate(rows, ("median of ratios", "rate", "p50", "p99")) + "\n")


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    made = Results()
    yield made
    if (folder := request.config.getoption("--results")) and made.claims:
        made.write(folder)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, SECONDS)


def in_turns(ours: Callable[[], Measured], theirs: Callable[[], Measured]) -> list[tuple[Measured, Measured]]:
    """Pairs; every second one begins with the other."""
    pairs = []
    for number in range(PAIRS):
        if number % 2:
            other = theirs()
            pairs.append((ours(), other))
        else:
            pairs.append((ours(), theirs()))
    return pairs


def medians(pairs: list[tuple[Measured, Measured]]) -> dict[str, float]:
    return {
        figure: median(getattr(ours, figure) / getattr(theirs, figure) for ours, theirs in pairs)
        for figure in ("rate_per_s", "p50_ns", "p99_ns")
    }


@needs
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_fast_engine_is_nearly_as_fast_as_wrk(bench: Bench, results: Results) -> None:
    with bench.serving(0):
        pairs = in_turns(lambda: bench.ours(CONNECTIONS), lambda: bench.wrk(CONNECTIONS))
    ratios = medians(pairs)
    results.claims[f"fast engine / wrk, {CONNECTIONS} connections"] = {"ratios": ratios, "pairs": pairs}
    assert ratios["rate_per_s"] >= OF_WRK, pairs


@needs
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_fast_engine_is_many_times_as_fast_as_a_user_of_locust(bench: Bench, results: Results) -> None:
    with bench.serving(0):
        pairs = [(bench.ours(CONNECTIONS).rate_per_s, bench.plain_locust(CONNECTIONS)) for _ in range(AGAINST_LOCUST)]
    ratio = median(ours / theirs for ours, theirs in pairs)
    claim = f"fast engine / FastHttpUser, {CONNECTIONS} connections"
    results.claims[claim] = {"ratios": {"rate_per_s": ratio}, "pairs": pairs}
    assert ratio >= OF_LOCUST, pairs


@needs
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("load", LOADS)
def test_its_latencies_are_those_of_wrk(load: str, bench: Bench, results: Results) -> None:
    connections, busy_us = LOADS[load]
    with bench.serving(busy_us):
        pairs = in_turns(lambda: bench.ours(connections), lambda: bench.wrk(connections))
    ratios = medians(pairs)
    results.claims[f"fast engine / wrk, {load}"] = {"ratios": ratios, "pairs": pairs}
    for figure in ("p50_ns", "p99_ns"):
        assert abs(ratios[figure] - 1) <= SHIFT, (figure, ratios, pairs)


def test_what_wrk_adds_to_its_latencies() -> None:
    latency = Histogram()
    latency.record_many([1000] * 8 + [3500, 2000])
    # Two connections and 10 requests in 5 us: one each 1,000 ns.
    assert {round(at, -2): count for at, count in as_wrk_corrects(latency, 5e-6, 2).items()} == {
        1000: 8,
        2000: 1,
        2500: 1,
        1500: 1,
        3500: 1,
    }
