"""The recording side of a process that runs users: a local runner, or a worker (distributed.py).

A run: test_start -> a Recorder listens to `request` and `batch` -> test_stopping closes the window -> locust drains the
users -> test_stop makes the account.

Users that record in bulk fire the event `batch` instead of `request`, and enter locust's statistics themselves.
"""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING

from locust.runners import STATE_CLEANUP

from ..generator.crew import Crew, shares
from ..generator.failure import cause_of
from ..generator.recorder import CONNECT, Recorder

if TYPE_CHECKING:
    from locust.env import Environment

    from prefork.histogram import Histogram

    from ..generator.account import Account
    from ..generator.link import Batch

logger = logging.getLogger("loadtest")


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
        """Number the users, and begin to record if a result file was asked for."""
        self.started = self.running = True
        self.account = None
        options = self.environment.parsed_options
        self.environment.shares = shares(options, self.runner.client_id)
        gc.collect()  # of the run before; what was imported is frozen (adapter.py)
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        if options.result:
            times = {"warmup_s": options.warmup, "window_s": options.window}
            self._recorder = Recorder(first_spawn_ns=time.perf_counter_ns(), **times)
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

    def finish(self) -> Crew:
        """End the run that still goes on; a further Ctrl-C cuts off what is in flight. Returns what was measured."""
        if self.running:
            logger.info("waiting for the exchanges in flight; another Ctrl-C cuts them off")
            try:
                self.runner.stop()
            except KeyboardInterrupt:
                logger.warning("interrupted again: exchanges in flight are cut off")
        if self.runner.state == STATE_CLEANUP:  # that stop was interrupted, or we are, in the stop of another greenlet
            self.runner.user_greenlets.kill()
            self.runner.stop()
        return Crew(accounts={"local": self.account} if self.account else {})
