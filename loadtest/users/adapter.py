"""Attaches the lab to locust: to a local runner, a master or a worker, and changes what would distort a run.

`--live FILE` shows the progress of a run to the person who waits: twice a second, how many exchanges there were.

locust rounds latencies to whole milliseconds, and cuts them off in its CSV files; importing this module makes both
finer. Master and workers alike have to import it, since they must count by the same keys.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import inspect
import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gevent
import locust
import locust.stats
from gevent.event import Event
from locust import argument_parser, events
from locust.event import EventHook
from locust.exception import CatchResponseError, StopTest
from locust.runners import STATE_CLEANUP, STATE_MISSING, MasterRunner, WorkerRunner

from loadtest.generator.account import SCHEMA, Account, ProcessAccounts, note, shares
from loadtest.generator.failure import ExchangeError, cause_of
from loadtest.generator.recorder import CONNECT, Recorder
from loadtest.users.options import engine_of, scenario_of, stop_timeout_s

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.runners import Runner

    from loadtest.generator.link import Batch
    from prefork.status.histogram import Histogram


# --- Records a run in the processes of locust: in the only one, or in the workers with a master; and writes the result.
#
# A run: test_start -> a Recorder listens to `request` and `batch` -> test_stopping closes the window -> locust drains
# the users -> test_stop makes the account. Users that record in bulk fire the event `batch` instead of `request`, and
# enter locust's statistics themselves.
#
# Several processes. A worker tells its master when it begins (_BEGAN), so that the master can place one that joins late
# beside the others by its own clock: the clocks of several machines have nothing in common. When its users have ended a
# worker sends locust's own statistics, then its account (_ACCOUNT).
#
# A master that quits gives its workers half a second and then stops listening, so exchanges that take longer to drain
# would be lost. At test_stop it therefore asks every worker for its account (_ASK) and waits, as long as a drain may
# take; the worker stops its users if that has not begun. A worker that locust misses gets no more than the grace: it is
# dead, and what it measured is lost. The result names it.
#
# The end: the result document, and locust's exit code when nothing was measured that may be used.


logger = logging.getLogger("loadtest")


class LocalRecording:
    """Records in the process that runs the users."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner = environment.runner
        self.account: Account | None = None  # of the last run, once it has ended
        self.started = False  # whether there was a run
        self.running = False  # from the first spawn until the window closes
        self.connections = 0  # clients of all users when the window closed
        self._recorder: Recorder | None = None  # of this run, until its account is made
        # Clocks at the first spawn, then the time spent until the window closed.
        self._cpu_s = 0.0
        self._wall_s = 0.0
        environment.events.test_start.add_listener(self.on_start)
        environment.events.test_stopping.add_listener(self.on_stopping)
        environment.events.test_stop.add_listener(self.on_stop)

    def on_start(self, **_: object) -> None:
        """Number the users, and begin to record if a result file was asked for."""
        self.started = True
        self.running = True
        self.account = None
        options = self.environment.parsed_options
        self.environment.shares = shares(options, self.runner.client_id)
        self.environment.share = next(shares(options, self.runner.client_id))  # of the first user
        self.environment.paths_in_turn = None  # the first user that sends requests makes it
        gc.collect()  # of the run before; what was imported is frozen (adapter.py)
        self._cpu_s = time.process_time()
        self._wall_s = time.perf_counter()
        if options.result:
            times = {"warmup_s": options.warmup, "window_s": options.window}
            self._recorder = Recorder(first_spawn_ns=time.perf_counter_ns(), **times)
            opens_ns = self._recorder.opens_ns
            self.environment.window_ns = (opens_ns, opens_ns + round(options.window * 1e9))
            self.environment.events.request.add_listener(self.on_request)
            self.environment.events.batch.add_listener(self.on_batch)
            self.environment.events.censored.add_listener(self.on_censored)
            self.environment.events.retried.add_listener(self.on_retried)

    def on_request(
        self, request_type: str, response_time: float | None, exception: BaseException | str | None, **_: object
    ) -> None:
        """Record an exchange that has just ended; locust gives its length in ms, or None where it has none."""
        assert self._recorder is not None
        end_ns = time.perf_counter_ns()
        start_ns = end_ns - round((response_time or 0.0) * 1e6)
        if exception:
            self._recorder.failed(start_ns, end_ns, cause_for(exception))
        elif request_type != CONNECT:
            self._recorder.completed(start_ns, end_ns)

    def on_batch(self, batch: Batch, latency: Histogram, **_: object) -> None:
        """Record a batch of exchanges that succeeded."""
        assert self._recorder is not None
        self._recorder.completed_batch(batch, latency)

    def on_censored(self, start_ns: int, **_: object) -> None:
        """Record an exchange that the end of the run cuts off now."""
        assert self._recorder is not None
        self._recorder.censored(start_ns, time.perf_counter_ns())

    def on_retried(self, start_ns: int, **_: object) -> None:
        """Record that an exchange is sent once more."""
        assert self._recorder is not None
        self._recorder.retried(start_ns)

    def on_stopping(self, **_: object) -> None:
        """Close the window, before any user is asked to stop."""
        if not self.running:
            return
        self.running = False
        users = [greenlet.args[0] for greenlet in self.runner.user_greenlets]
        self.connections = sum(getattr(user, "clients", 1) for user in users)
        self._cpu_s = time.process_time() - self._cpu_s
        self._wall_s = time.perf_counter() - self._wall_s
        if self._recorder is not None:
            self._recorder.close(time.perf_counter_ns())

    def on_stop(self, **_: object) -> None:
        """Make the account, now that all users have ended."""
        if self._recorder is not None:
            self.environment.events.request.remove_listener(self.on_request)
            self.environment.events.batch.remove_listener(self.on_batch)
            self.environment.events.censored.remove_listener(self.on_censored)
            self.environment.events.retried.remove_listener(self.on_retried)
            self.account = self._recorder.account(connections=self.connections, cpu_s=self._cpu_s, wall_s=self._wall_s)
            self._recorder = None

    def finish(self) -> ProcessAccounts:
        """End a run that still goes on; a further Ctrl-C cuts off exchanges in flight. Return what was measured."""
        if self.running:
            logger.info("waiting for the exchanges in flight; another Ctrl-C cuts them off")
            try:
                self.runner.stop()
            except KeyboardInterrupt:
                logger.warning("interrupted again: exchanges in flight are cut off")
        if self.runner.state == STATE_CLEANUP:  # that stop was interrupted, or we are, in the stop of another greenlet
            self.runner.user_greenlets.kill()
            self.runner.stop()
        return ProcessAccounts(accounts={"local": self.account} if self.account else {})


_MOST_CAUSE = 60  # letters of a cause in a user's own words


def cause_for(failure: BaseException | str) -> str:
    """Return the cause of a failure, whichever user says so: users of other locustfiles have errors of their own."""
    if isinstance(failure, str | CatchResponseError):
        return str(failure).partition("\n")[0][:_MOST_CAUSE] or "failure"
    status = getattr(getattr(failure, "response", None), "status_code", 0) or getattr(failure, "code", 0)
    if isinstance(status, int) and 100 <= status < 600:
        return f"status {status}"
    # requests and urllib3 wrap the error of the socket several times.
    error: BaseException | None = failure
    while error is not None and not isinstance(error, ExchangeError):
        if isinstance(error, TimeoutError) or isinstance(getattr(error, "errno", None), int):
            return cause_of(error)
        error = getattr(error, "original", None) or error.__cause__ or error.__context__
    return cause_of(failure)


_BEGAN = "prefork-began"
_ASK = "prefork-ask"
_ACCOUNT = "prefork-account"
_GRACE_S = 5.0  # beyond the drain, for an account to be made and sent
_LOOK_S = 0.5  # between two looks at who is missing


class WorkerRecording(LocalRecording):
    """Records in a worker and reports to its master."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.runner.register_message(_ASK, self.on_ask, concurrent=True)
        environment.events.quitting.add_listener(self.on_quitting)
        if hasattr(environment, "begun_early"):  # before we could listen (adapter.py)
            self.on_start()

    def on_start(self, **_: object) -> None:
        """Begin to record, and tell the master."""
        self.runner.send_message(_BEGAN)
        super().on_start()

    def on_ask(self, **_: object) -> None:
        """Answer the master's question for the account: stop, which sends it; if already stopped, send it again."""
        if self.running:
            self.runner.stop()
        elif self.runner.state != STATE_CLEANUP:
            self.send()

    def on_stop(self, **_: object) -> None:
        """Make the account and send it."""
        super().on_stop()
        self.send()

    def on_quitting(self, **_: object) -> None:
        """Send the account before locust tells the master that this worker is gone."""
        self.finish()

    def send(self) -> None:
        """Send locust's own statistics, then the account: when it arrives, the master has both."""
        self.runner._send_stats()
        self.runner.send_message(_ACCOUNT, self.account.to_message() if self.account else None)


class MasterRecording:
    """Collects the accounts of the workers."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner = environment.runner
        self.started = False  # whether there was a run
        self._start_s = 0.0  # of the run, by our clock
        self._expected: dict[str, float] = {}  # the workers of this run -> when they began, in s after its start
        self._reports: dict[str, Account | None] = {}  # theirs; None without a result file
        self._came = Event()
        environment.runner.register_message(_BEGAN, self.on_began)
        environment.runner.register_message(_ACCOUNT, self.on_account)
        environment.events.test_start.add_listener(self.on_start)
        environment.events.test_stop.add_listener(self.on_stop)

    def on_start(self, **_: object) -> None:
        """Begin a run with the workers that are connected."""
        self.started = True
        self._start_s = time.monotonic()
        self._reports.clear()
        clients = self.runner.clients
        self._expected = {client.id: 0.0 for client in clients.ready + clients.spawning + clients.running}

    def on_began(self, msg: Any, **_: object) -> None:
        """Note when a worker began (locust's Message), which may have joined late."""
        self._expected[msg.node_id] = time.monotonic() - self._start_s

    def on_account(self, msg: Any, **_: object) -> None:
        """Keep the account of a worker (locust's Message)."""
        self._reports[msg.node_id] = Account.from_message(msg.data) if msg.data else None
        self._came.set()

    def on_stop(self, **_: object) -> None:
        """Ask all workers of this run for their accounts, and wait."""
        asked_s = time.monotonic()
        for worker in self._silent():
            self.runner.send_message(_ASK, client_id=worker)
        while silent := self._silent():
            patience_s = _GRACE_S + (0 if all(map(self._missing, silent)) else self.environment.stop_timeout)
            if time.monotonic() > asked_s + patience_s:
                return
            self._came.clear()
            self._came.wait(_LOOK_S)

    def finish(self) -> ProcessAccounts:
        """End a run that still goes on. Return what was measured, and the workers that sent no account."""
        try:
            self.runner.stop(send_stop_to_client=False)  # the question for the account stops them
        except KeyboardInterrupt:
            logger.warning("interrupted again: not waiting for the workers any longer")
        accounts = {
            worker: dataclasses.replace(account, began_s=self._expected.get(worker, 0.0))
            for worker, account in self._reports.items()
            if account
        }
        return ProcessAccounts(accounts=accounts, lost=tuple(sorted(self._silent())))

    def _silent(self) -> set[str]:
        return set(self._expected) - set(self._reports)

    def _missing(self, worker: str) -> bool:
        return worker not in self.runner.clients or self.runner.clients[worker].state == STATE_MISSING


NOTHING_MEASURED = 1
"""The exit code."""


class Source(Protocol):
    """Where the result comes from: the local runner's side, or the master's."""

    started: bool

    def finish(self) -> ProcessAccounts:
        """End a run that still goes on, and return what was measured."""


class ResultWriter:
    """Writes the result and sets the exit code when locust quits, by itself, by Ctrl-C or by SIGTERM."""

    def __init__(self, environment: Environment, source: Source) -> None:
        self.environment = environment
        self.source = source
        self.alone = not isinstance(environment.runner, MasterRunner)
        # locust calls these in reverse order: ours comes before its own, which ends the connection to the workers.
        environment.events.quitting.add_listener(self.on_quitting)

    def on_quitting(self, **_: object) -> None:
        """Write the result of the last run, if there was one: a web page that nobody used is no failure."""
        processes = self.source.finish()
        if not self.source.started:
            return
        account = processes.account
        flaws = [_loss(processes), self._emptiness(account), self._write(processes, account) if account else ""]
        for flaw in filter(None, flaws):
            logger.error(flaw)
            self.environment.process_exit_code = self.environment.process_exit_code or NOTHING_MEASURED

    def _emptiness(self, account: Account | None) -> str:
        """Say why a run has no exchange; empty when it has some."""
        if self.environment.stats.total.num_requests == 0:
            why = "the run was too short, or the server does not answer"
            why += "" if self.alone else "; the workers' logs may say more"
            return f"no exchange ended on {self.environment.host}: {why}"
        if account and not account.failures and not account.latency.n:
            warmup_s = self.environment.parsed_options.warmup
            return f"no exchange began in the {account.duration_s:g} s that followed the warm-up of {warmup_s:g} s"
        return ""

    def _write(self, processes: ProcessAccounts, account: Account) -> str:
        """Write the result document in one step, so that a reader finds all of it or nothing.

        Return what went wrong.
        """
        options = self.environment.parsed_options
        path = Path(options.result)
        classes = self.environment.user_classes
        scenarios = {scenario_of(user_class, options) for user_class in classes}
        engines = {engine_of(user_class) for user_class in classes}
        document = {
            "schema": SCHEMA,
            "generator": {
                "engine": "+".join(sorted(engines)),
                "locust": locust.__version__,
                "cpu_s": account.cpu_s,
                "wall_s": account.wall_s,
                "max_gap_s": None if account.gap_ns is None else account.gap_ns / 1e9,
                **processes.to_result(),
            },
            "scenario": "+".join(sorted(scenarios)),
            "address": self.environment.host,
            "warmup_s": options.warmup,
            **account.to_result(),
        }
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_text(json.dumps(document) + "\n")
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            return f"cannot write the result to {path}: {error.strerror}"
        return ""


def _loss(processes: ProcessAccounts) -> str:
    """Say which part of what was measured is missing; empty when nothing is."""
    if not processes.lost:
        return ""
    count = f"{len(processes.lost)} of {len(processes.lost) + len(processes.accounts)} workers"
    return (
        f"{count} ended without telling what they measured, which is missing in the result: {', '.join(processes.lost)}"
    )


_READY_S = 30.0  # until a worker has been made
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl

# A worker that is told of users looks this up for every option, 5 ms each; no user would run meanwhile.
argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)


@events.init.add_listener  # type: ignore[untyped-decorator]
def install(environment: Environment, **_: object) -> None:
    """Attach the lab to locust's environment; its event listeners keep the objects alive."""
    environment.events.censored = EventHook()  # ours: fired with start_ns by a user whose exchange is cut off
    environment.stop_timeout = stop_timeout_s(environment.parsed_options)  # a worker gets its master's
    environment.events.retried = EventHook()  # also: fired with start_ns by a user that sends an exchange once more
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
        gevent.spawn(_write, path, environment)


def _write(path: str, environment: Environment) -> None:
    """Write one line again and again.

    The monotonic clock in ns, exchanges that succeeded, exchanges that failed, and when the window opens and closes (0:
    not known, or when the run ends).
    """
    stats = environment.stats
    with Path(path).open("wb", buffering=0) as file:
        while True:
            gevent.sleep(_PERIOD_S)
            timed = [entry for (_, method), entry in stats.entries.items() if method != CONNECT]
            failed = sum(entry.num_failures for entry in stats.entries.values())
            well = sum(entry.num_requests - entry.num_failures for entry in timed)
            # The counts only grow, so the new line covers the old one.
            opens_ns, closes_ns = getattr(environment, "window_ns", (0, 0))
            line = b"%d %d %d %d %d\n" % (time.monotonic_ns(), well, failed, opens_ns, closes_ns)
            os.pwrite(file.fileno(), line, 0)


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


class CompleteCsv(locust.stats.StatsCSVFileWriter):  # type: ignore[misc]  # locust ships no types
    """locust's CSV files, with a last look when the run is over.

    locust writes them once a second and never again, so what ended in the last second would be missing. By the time it
    closes them, --json-file has emptied the statistics.
    """

    def __init__(self, environment: Environment, *args: Any, **keywords: Any) -> None:
        super().__init__(environment, *args, **keywords)
        self._greenlet: Any = None  # that writes once a second
        # locust calls these in reverse order: the ones that end the run were added later, and come before.
        environment.events.quitting.add_listener(self.on_quitting)

    def stats_writer(self) -> None:
        """Write the files once a second."""
        self._greenlet = gevent.getcurrent()
        super().stats_writer()

    def on_quitting(self, **_: object) -> None:
        """Write all rows once more, and a last one of the history."""
        if self._greenlet is None:  # there is not even a heading
            return
        self._greenlet.kill()
        tables = (
            (self.requests_csv_filehandle, self.requests_csv_writer, self.requests_csv),
            (self.failures_csv_filehandle, self.failures_csv_writer, self.failures_csv),
            (self.exceptions_csv_filehandle, self.exceptions_csv_writer, self.exceptions_csv),
        )
        for file, writer, write in tables:
            file.seek(0)
            write(writer)
            file.truncate()
        self._stats_history_data_rows(self.stats_history_csv_writer, time.time())


locust.stats.StatsCSVFileWriter = CompleteCsv
