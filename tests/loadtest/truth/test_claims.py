"""Whole runs of the lab about servers whose difference is known: what is alike is not told apart, 5 % is found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.loadtest.truth.claims import SLOWER, Tally, compared, table

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 5
ROUNDS = 8

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="server and load need a CPU each"),
]


def tallied(kind: str, folder: Path) -> Tally:
    tally = Tally(kind)
    for number in range(RUNS):
        place = folder / str(number)
        place.mkdir()
        tally.add(compared(kind, rounds=ROUNDS, seconds=1, folder=place))
    print(table([tally]))  # shown if the test fails
    return tally


@pytest.mark.parametrize(("kind", "metric"), [("cpu", "cpu"), ("wait", "rate"), ("wait", "p50")])
def test_a_server_that_takes_5_percent_longer_is_found(tmp_path: Path, kind: str, metric: str) -> None:
    tally = tallied(kind, tmp_path)
    assert sorted(tally.true["cpu" if kind == "cpu" else "rate"])[RUNS // 2] == pytest.approx(
        SLOWER if kind == "cpu" else 1 / SLOWER, abs=0.01
    )  # by what the servers counted
    assert tally.found[metric] >= RUNS - 1
    assert tally.any_wrong == 0


@pytest.mark.parametrize("kind", ["equal-cpu", "equal-wait"])
def test_servers_that_are_alike_are_not_told_apart(tmp_path: Path, kind: str) -> None:
    """Fewer than 1 in 100 figures of one run is claimed, and a run has four."""
    assert tallied(kind, tmp_path).any_wrong <= 1
