"""All that ties the lab to locust's inside: its events, its rounding, its master and its workers.

A run, in a process that has users (a local runner or a worker): test_start -> a Recorder listens to `request` ->
test_stopping closes the window -> locust drains the users -> test_stop makes the account. A local runner keeps it, a
worker sends it to its master. At `quitting` the local runner or the master concludes (see result.py).

A master that quits gives its workers half a second and then stops listening, so exchanges that take longer to drain
would be lost. At test_stop it therefore asks every worker for its account (_ASK) and waits, as long as a drain may
take. The worker stops its users if that has not begun, sends locust's own statistics, then the account (_ACCOUNT).

Users that record in bulk fire the event `batch` instead of `request`, and enter locust's statistics themselves.
"""

from __future__ import annotations

import gc
import inspect
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from locust import events
from locust.event import EventHook
from locust.exception import StopTest
from locust.runners import STATE_CLEANUP, MasterRunner, WorkerRunner

from ..generator.account import Account
from ..generator.failure import cause_of
from ..generator.recorder import CONNECT, Recorder
from .result import Conclusion

if TYPE_CHECKING:
    from locust.env import Environment

    from prefork.histogram import Histogram

    from ..generator.batch import Batch

logger = logging.getLogger("loadtest")

_ASK, _ACCOUNT = "prefork-ask", "prefork-account"
_GRACE_S = 5.0  # beyond the drain, for an account to be made and sent


@events.init.add_listener  # type: ignore[untyped-decorator]
def install(environment: Environment, **_: object) -> None:
    """Attach to an environment; the listeners keep what is made here alive."""
    environment.events.censored = EventHook()  # ours: fired with start_ns by a user whose exchange is cut off
    environment.events.batch = EventHook()  # also: fired with batch and latency (a Histogram) by a FastUser
    match environment.runner:
        case WorkerRunner():
            Worker(environment)
        case MasterRunner():
            Conclusion(environment, Master(environment))
        case _:
            Conclusion(environment, Local(environment))
    if not isinstance(environment.runner, WorkerRunner):
        environment.events.test_start.add_listener(share_rate)
    # Python raises Ctrl-C in whatever greenlet runs just then, often a user, which would die of it with a traceback.
    hub = gevent.get_hub()
    gevent.signal_handler(signal.SIGINT, hub.handle_system_error, KeyboardInterrupt, KeyboardInterrupt())
    # locust inspects its call stack before it fires test_stopping. The first time that takes 30 ms: no user would run,
    # although the window is still open.
    inspect.stack()
    # A user that ends the run with StopTest has said why; locust logs that, gevent would add the traceback.
    hub.NOT_ERROR = (*hub.NOT_ERROR, StopTest)
    # gevent counts timers from its loop's last turn, which lies before the imports: --run-time would be cut short.
    hub.loop.update_now()


def share_rate(environment: Environment, **_: object) -> None:
    """Note each user's part of `--rate`; workers get it with the options, and do not know how many users there are."""
    options = environment.parsed_options
    options.rate_per_user = options.rate / (options.num_users or 1)


class Local:
    """Records in the process that runs the users."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner = environment.runner
        self.account: Account | None = None  # of the last run, once it has ended
        self.started = False  # whether there was a run
        self.running = False  # from the first spawn until the window closes
        self.connections = 0  # clients of all users when the window closed
        self._recorder: Recorder | None = None  # of this run, until its account is made
        self._cpu_s = self._wall_s = 0.0  # clocks at the first spawn, then the time spent until the window closed
        environment.events.test_start.add_listener(self.on_start)
        environment.events.test_stopping.add_listener(self.on_stopping)
        environment.events.test_stop.add_listener(self.on_stop)

    def on_start(self, **_: object) -> None:
        """Begin to record, if a result file was asked for."""
        self.started = self.running = True
        self.account = None
        # A collection that walks through all of locust's modules would hold everybody up for 50 ms.
        gc.collect()
        gc.freeze()
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        options = self.environment.parsed_options
        if options.result:
            self._recorder = Recorder(first_spawn_ns=time.perf_counter_ns(), warmup_s=options.warmup)
            self.environment.events.request.add_listener(self.on_request)
            self.environment.events.batch.add_listener(self.on_batch)
            self.environment.events.censored.add_listener(self.on_censored)

    def on_request(self, request_type: str, response_time: float, exception: BaseException | None, **_: object) -> None:
        """Record an exchange that has just ended; locust gives its length in ms."""
        assert self._recorder is not None
        end_ns = time.perf_counter_ns()
        start_ns = end_ns - round(response_time * 1e6)
        if exception is not None:
            self._recorder.failed(start_ns, end_ns, cause_of(exception))
        elif request_type != CONNECT:
            self._recorder.completed(start_ns, end_ns)

    def on_batch(self, batch: Batch, latency: Histogram, **_: object) -> None:
        """Record exchanges that went well."""
        assert self._recorder is not None
        self._recorder.completed_batch(batch, latency)

    def on_censored(self, start_ns: int, **_: object) -> None:
        """Record an exchange that is cut off now."""
        assert self._recorder is not None
        self._recorder.censored(start_ns, time.perf_counter_ns())

    def on_stopping(self, **_: object) -> None:
        """Close the window, before any user is asked to stop."""
        if not self.running:
            return
        self.running = False
        users = [greenlet.args[0] for greenlet in self.runner.user_greenlets]
        self.connections = sum(getattr(user, "clients", 1) for user in users)
        self._cpu_s, self._wall_s = time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s
        if self._recorder is not None:
            self._recorder.close(time.perf_counter_ns())

    def on_stop(self, **_: object) -> None:
        """Make the account, now that all users have ended."""
        if self._recorder is not None:
            self.environment.events.request.remove_listener(self.on_request)
            self.environment.events.batch.remove_listener(self.on_batch)
            self.environment.events.censored.remove_listener(self.on_censored)
            self.account = self._recorder.account(connections=self.connections, cpu_s=self._cpu_s, wall_s=self._wall_s)
            self._recorder = None

    def finish(self) -> str:
        """End the run that still goes on; a further Ctrl-C cuts off what is in flight. Returns what went wrong."""
        if self.running:
            logger.info("waiting for the exchanges in flight; another Ctrl-C cuts them off")
            try:
                self.runner.stop()
            except KeyboardInterrupt:
                logger.warning("interrupted again: exchanges in flight are cut off")
        if self.runner.state == STATE_CLEANUP:  # that stop was interrupted, or we are, in the stop of another greenlet
            self.runner.user_greenlets.kill()
            self.runner.stop()
        return ""


class Worker(Local):
    """Records in a worker and reports to its master."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.runner.register_message(_ASK, self.on_ask, concurrent=True)
        environment.events.quitting.add_listener(self.on_quitting)

    def on_ask(self, **_: object) -> None:
        """The master wants the account: stop, which sends it; if that has happened, perhaps unheard, send it again."""
        if self.running:
            self.runner.stop()
        elif self.runner.state != STATE_CLEANUP:
            self.send()

    def on_stop(self, **_: object) -> None:
        """Make the account and send it."""
        super().on_stop()
        self.send()

    def on_quitting(self, **_: object) -> None:
        """Report before locust tells the master that this worker is gone."""
        self.finish()

    def send(self) -> None:
        """Send locust's own statistics, then the account: when that arrives, the master has both."""
        self.runner._send_stats()
        self.runner.send_message(_ACCOUNT, self.account.to_message() if self.account else None)


class Master:
    """Collects the accounts of the workers."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner = environment.runner
        self.account: Account | None = None  # of all workers together, once the run has ended
        self.started = False
        self._expected: set[str] = set()  # the workers of this run
        self._reports: dict[str, Account | None] = {}  # theirs; None without a result file
        self._came = Event()
        environment.runner.register_message(_ACCOUNT, self.on_account)
        environment.events.test_start.add_listener(self.on_start)
        environment.events.test_stop.add_listener(self.on_stop)

    def on_start(self, **_: object) -> None:
        """Begin a run with the workers that are connected."""
        self.started = True
        self.account = None
        self._reports.clear()
        self._expected = set(self.runner.clients)

    def on_account(self, msg: Any, **_: object) -> None:
        """A worker's account came (locust's Message)."""
        self._reports[msg.node_id] = Account.from_message(msg.data) if msg.data else None
        self._came.set()

    def on_stop(self, **_: object) -> None:
        """Ask all workers of this run for their accounts, and wait."""
        deadline = time.monotonic() + self.environment.stop_timeout + _GRACE_S
        for worker in self._expected - set(self._reports):
            self.runner.send_message(_ASK, client_id=worker)
        while self._expected - set(self._reports) and time.monotonic() < deadline:
            self._came.clear()
            self._came.wait(deadline - time.monotonic())
        accounts = [account for account in self._reports.values() if account]
        self.account = Account.merged(accounts) if accounts else None

    def finish(self) -> str:
        """End the run that still goes on. Returns what went wrong: what workers that died had measured is lost."""
        try:
            self.runner.stop(send_stop_to_client=False)  # the question for the account stops them
        except KeyboardInterrupt:
            logger.warning("interrupted again: not waiting for the workers any longer")
        lost = len(self._expected - set(self._reports))
        return f"{lost} of {len(self._expected)} workers ended without telling what they measured" if lost else ""
