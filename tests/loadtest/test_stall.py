"""What the open model is for: a server that stalls is charged for everybody who came meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefork.histogram import Histogram
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.loadtest.generator import Generator

RATE, RUN_S, STALL_S = 200, 10, 2.0


@pytest.mark.slow
def test_a_stall_shows_in_the_latency_from_the_schedule_and_hides_from_the_latency_of_what_was_sent(
    serve: Any, generate: Callable[..., Generator]
) -> None:
    """A fifth of the run is a stall: half of that fifth waits longer than a second, so p90 is a second.

    Without the schedule only the connections that hung in the stall would tell of it: 16 of 2,000 exchanges.
    """
    server = serve("talkback", "--workers", "2")
    options = ("--engine", "fast", "--connections", "16", "--rate", str(RATE), "-t", f"{RUN_S}s")
    run = generate("--host", server.address, *options)
    workers = server.wait_workers(2)
    eventually(lambda: "All users spawned" in run.log, within_s=20, what="load")
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    threading.Event().wait(STALL_S)  # the length of the stall is what is measured
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    stall_s = time.monotonic() - began
    result = run.wait().result()
    corrected, service = (Histogram.from_json(result[clock]) for clock in ("latency", "service_time"))
    arrivals = result["arrivals"]
    assert arrivals["offered"] == pytest.approx(RATE * result["duration_s"], abs=20)
    assert (result["completed"], arrivals["missed"], result["failures"]) == (arrivals["offered"], 0, {})
    expected_s = stall_s - 0.1 * result["duration_s"]
    assert corrected.quantile(0.9) / 1e9 == pytest.approx(expected_s, abs=0.3)
    assert service.quantile(0.9) < 100_000_000
    assert service.max_ns > 0.9e9 * stall_s
    assert corrected.quantile(0.5) < 100_000_000
    assert result["busy_s"] == pytest.approx(corrected.sum_ns / 1e9, rel=0.05)  # Little's law holds for a stall too
