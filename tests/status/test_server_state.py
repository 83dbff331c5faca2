"""What the master tells other processes: it comes through text unchanged, and says whether clients are welcome."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prefork.status.histogram import ARRAY_DIGITS, Histogram
from prefork.status.scoreboard import QUEUE_BUCKETS
from prefork.status.server_state import MasterState, WorkerState


def worker(**given: Any) -> WorkerState:
    known: dict[str, Any] = {
        "pid": 4242, "slot": 1, "generation": 3, "group": 7, "spawned_s": 4900.0, "ready_s": 4901.5, "retiring_s": None,
    }  # fmt: skip
    return WorkerState(**(known | given))


def state(**given: Any) -> MasterState:
    latencies = Histogram(ARRAY_DIGITS)
    latencies.record(5_000_000, 3)
    known: dict[str, Any] = {
        "pid": 77, "began": 1.75e9, "began_s": 4800.25, "kind": "stream", "engine": "blocking", "generation": 3,
        "wanted": 2, "booted": True, "reloading": False, "stopping": False, "last_reload": None, "control": None,
        "workers": (worker(),), "gone": {0: {"completed": 4, "cpu_ns": 5}}, "latencies": latencies,
        "waits": [1, 2, *[0] * (QUEUE_BUCKETS - 2)],
        "respawns": {'of "this"\n': 2},
        "deaths": {"count": 1, "last": {"slot": 0, "reason": None}},
    }  # fmt: skip
    return MasterState(**(known | given))


def test_a_state_comes_back_from_its_text() -> None:
    told = state(workers=(worker(), worker(ready_s=None)), last_reload={"generation": 2, "ok": False, "reason": "ü\n"})
    assert MasterState.from_text(told.to_text()) == told


def test_equal_states_have_equal_texts() -> None:
    assert state().to_text() == state().to_text() != state(generation=4).to_text()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, ""),
        ({"workers": (worker(retiring_s=1.0), worker())}, ""),
        ({"booted": False}, "the server is starting"),
        ({"stopping": True}, "the server is stopping"),
        ({"workers": ()}, "no worker serves"),
        ({"workers": (worker(retiring_s=4950.0), worker(ready_s=None))}, "no worker serves"),
    ],
)
def test_when_new_clients_are_welcome(given: dict[str, Any], why: str) -> None:
    assert replace(state(), **given).unready == why
