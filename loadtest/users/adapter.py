"""Attaches the lab to locust: to a local runner, a master or a worker, and changes what would distort a run.

`--live FILE` shows the progress of a run to the person who waits: twice a second, how many exchanges there were.

locust rounds latencies to whole milliseconds, and cuts them off in its CSV files; importing this module makes both
finer. Master and workers alike have to import it, since they must count by the same keys.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import locust.stats
from locust import argument_parser, events
from locust.event import EventHook
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtest.generator.crew import note
from loadtest.generator.recorder import CONNECT
from loadtest.users.options import engine_of
from loadtest.users.recording import LocalRecording, MasterRecording, ResultWriter, WorkerRecording

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.runners import Runner
    from locust.stats import RequestStats


logger = logging.getLogger("loadtest")

_READY_S = 30.0  # until a worker has been made
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl

# A worker that is told of users looks this up for every option, 5 ms each; no user would run meanwhile.
argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)


@events.init.add_listener  # type: ignore[untyped-decorator]
def install(environment: Environment, **_: object) -> None:
    """Attach the lab to locust's environment; its event listeners keep the objects alive."""
    environment.events.censored = EventHook()  # ours: fired with start_ns by a user whose exchange is cut off
    environment.events.batch = EventHook()  # also: fired with batch and latency (a Histogram) by a FastUser
    if not isinstance(environment.runner, WorkerRunner):
        environment.events.test_start.add_listener(divide)  # before the listener that numbers the users
    match environment.runner:
        case WorkerRunner():
            WorkerRecording(environment)
        case MasterRunner():
            ResultWriter(environment, MasterRecording(environment))
        case _:
            ResultWriter(environment, LocalRecording(environment))
    # Python raises Ctrl-C in whatever greenlet runs just then, often a user, which would die of it with a traceback.
    hub = gevent.get_hub()
    gevent.signal_handler(signal.SIGINT, hub.handle_system_error, KeyboardInterrupt, KeyboardInterrupt())
    argument_parser.default_args_dict()
    # A collection that walks through all of locust's modules, when users start, would hold everybody up for 50 ms.
    gc.collect()
    gc.freeze()
    # locust inspects its call stack before it fires test_stopping. The first time that takes 30 ms: no user would run,
    # although the window is still open.
    inspect.stack()
    # A user that ends the run with StopTest has said why; locust logs that, gevent would add the traceback.
    hub.NOT_ERROR = (*hub.NOT_ERROR, StopTest)
    # gevent counts timers from its loop's last turn, which lies before the imports: --run-time would be cut short.
    hub.loop.update_now()


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def hold(environment: Environment, **_: object) -> None:
    """Let a worker begin only when it is ready: its master may start it before locust fires `init` in it."""
    if environment.runner is None:
        environment.begun_early = True
        with gevent.Timeout(_READY_S):
            while not hasattr(environment, "shares"):
                gevent.sleep(0.001)


def divide(environment: Environment, **_: object) -> None:
    """Note how the users of the fast engine divide the load; the notes go to the workers with the options."""
    runner = environment.runner
    # A master has made its dispatcher just before; whose order is the one in which the workers get users.
    workers = [node.id for node in runner._users_dispatcher._worker_nodes] if isinstance(runner, MasterRunner) else []
    users = runner.target_user_count
    note(environment.parsed_options, users=users, workers=workers)
    if 0 < users < len(workers) and all(engine_of(user_class) == "fast" for user_class in environment.user_classes):
        said = "%d of %d workers will do nothing: the fast engine needs a user for each, --users %d"
        logger.warning(said, len(workers) - users, len(workers), len(workers))


def end_with_the_parent() -> None:
    """A worker that `--processes` forked gets SIGINT when its master ends: locust forgets it if that ends early.

    Until `install` handles it, it just ends the worker: Python would raise it in the midst of gevent, which prints it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


os.register_at_fork(after_in_child=end_with_the_parent)


_PERIOD_S = 0.5


@events.init.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def begin(environment: Environment, runner: Runner, **_: object) -> None:
    """Write the progress file from now until the process ends; a master writes for its workers."""
    path = getattr(environment.parsed_options, "live", "")
    if path and not isinstance(runner, WorkerRunner):
        gevent.spawn(_write, path, environment.stats)


def _write(path: str, stats: RequestStats) -> None:
    """Write one line again and again: the monotonic clock in ns, exchanges that succeeded, exchanges that failed."""
    with Path(path).open("wb", buffering=0) as file:
        while True:
            gevent.sleep(_PERIOD_S)
            timed = [entry for (_, method), entry in stats.entries.items() if method != CONNECT]
            failed = sum(entry.num_failures for entry in stats.entries.values())
            well = sum(entry.num_requests - entry.num_failures for entry in timed)
            # The counts only grow, so the new line covers the old one.
            os.pwrite(file.fileno(), b"%d %d %d\n" % (time.monotonic_ns(), well, failed), 0)


_coarse_bucket = locust.stats.bucket_response_time


def fine_bucket(response_time_ms: float) -> float:
    """Return locust's key for a response time in ms: rounded to 10 us below 10 ms, to 3 digits below 1 s."""
    if response_time_ms < 10:
        return round(response_time_ms, 2)
    if response_time_ms < 100:
        return round(response_time_ms, 1)
    if response_time_ms < 1000:
        return round(response_time_ms)
    return _coarse_bucket(response_time_ms)  # type: ignore[no-any-return]  # locust ships no types


def fine_percentiles(csv: Any, entry: Any, use_current: bool = False) -> list[Any]:
    """Return the percentiles of a row of the CSV files, written as locust's other columns."""
    if not entry.num_requests:
        return list(csv.percentiles_na)
    recent = use_current and entry.use_response_times_cache
    at = entry.get_current_response_time_percentile if recent else entry.get_response_time_percentile
    return [at(percentile) or 0 for percentile in csv.percentiles_to_report]


locust.stats.bucket_response_time = fine_bucket
locust.stats.StatsCSV._percentile_fields = fine_percentiles
