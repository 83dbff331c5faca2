"""`--live FILE`: for whoever waits for the run, how much has been done so far, twice a second."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
from locust import events
from locust.runners import WorkerRunner

from ..generator.recorder import CONNECT

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.runners import Runner
    from locust.stats import RequestStats

_PERIOD_S = 0.5


@events.init.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def begin(environment: Environment, runner: Runner, **_: object) -> None:
    """Write from now until the process ends; a master writes for its workers."""
    path = getattr(environment.parsed_options, "live", "")
    if path and not isinstance(runner, WorkerRunner):
        gevent.spawn(_write, path, environment.stats)


def _write(path: str, stats: RequestStats) -> None:
    """One line, replaced each time: the monotonic clock in ns, exchanges that went well, exchanges that failed."""
    with Path(path).open("wb", buffering=0) as file:
        while True:
            gevent.sleep(_PERIOD_S)
            timed = [entry for (_, method), entry in stats.entries.items() if method != CONNECT]
            failed = sum(entry.num_failures for entry in stats.entries.values())
            well = sum(entry.num_requests - entry.num_failures for entry in timed)
            # The counts only grow, so the new line covers the old one.
            os.pwrite(file.fileno(), b"%d %d %d\n" % (time.monotonic_ns(), well, failed), 0)
