"""What the open model is for: a server that stalls is charged for everybody who came meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefork.status.histogram import Histogram
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.loadtest.locust_process import Generator

pytestmark = pytest.mark.slow

RATE, RUN_S, STALL_S = 200, 10, 2.0


@pytest.mark.timing
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
    stall_s = time.monotonic() - began
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    result = run.wait().result()
    corrected, service = (Histogram.from_json(result[clock]) for clock in ("latency", "service_time"))
    arrivals = result["arrivals"]
    # A generator that gets no CPU may see the last arrivals too late, and misses those that it sees 0.1 s late. And the
    # schedule begins with the users, a moment after the window.
    late_s = Histogram.from_json(arrivals["lag"]).max_ns / 1e9
    asleep_s = max(result["generator"]["max_gap_s"], late_s)
    assert 0.9 * (result["duration_s"] - asleep_s) < arrivals["offered"] / RATE < result["duration_s"] + 0.01
    assert (result["completed"], result["failures"]) == (arrivals["offered"] - arrivals["missed"], {})
    assert arrivals["missed"] == 0 or late_s > 0.09, "missed, though the generator was awake"
    # Who came in the first part of the stall waited for the rest of it at least. A busy machine only adds to that.
    waited_s = stall_s - (0.1 * result["completed"] + arrivals["missed"]) / RATE
    assert corrected.quantile(0.9) / 1e9 > waited_s - 0.05
    assert service.quantile(0.9) < corrected.quantile(0.9) / 4
    assert service.max_ns / 1e9 > stall_s - asleep_s - 0.05
    assert corrected.quantile(0.5) < corrected.quantile(0.9) / 4
    assert result["busy_s"] == pytest.approx(corrected.sum_ns / 1e9, rel=0.05)  # Little's law holds for a stall too
