"""The user of the fast engine: many clients in one greenlet; all users together are `--connections`.

Every other user is one client; this one is as many as the engine drives for it (generator/engine.py), and that engine
works with sockets and an epoll that gevent has not patched. What is left here is the life of a locust user around it:
to give way to other greenlets, to stop, to be killed, and to tell locust's statistics and the recorder what happened.

locust's own statistics, which its console, web page and files show, take an event for every exchange, 9 us each. Here a
batch is counted under the keys of locust's tables and added to them by locust's own `extend`, with which it adds up its
workers. While that goes on no socket is looked at, so it is done a few times a second only.
"""

from __future__ import annotations

import logging
import random
import resource
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import Waiter
from gevent.monkey import get_original
from locust import User, constant, task
from locust.exception import StopTest, StopUser
from locust.stats import StatsEntry
from locust.user.users import LOCUST_STATE_STOPPING

from loadtest.generator import link as model
from loadtest.generator.dialer import HINTS, Dialer
from loadtest.generator.engine import PATIENCE_S, Engine
from loadtest.generator.failure import ExchangeError
from loadtest.generator.http import Target, TargetsLink, WebLink
from loadtest.generator.lines import EchoLink, TalkbackLink, numbered
from loadtest.generator.recorder import CONNECT
from loadtest.generator.websocket import OPCODES, WebSocketLink
from loadtest.users.adapter import fine_bucket
from loadtest.users.options import ECHOES, chance, scenario_of, target
from loadtest.users.web import expectation_of, in_turn, name_of, opening_of, requests_of, retries, tls_of
from prefork.status.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from locust.env import Environment
    from locust.stats import RequestStats

    from loadtest.generator.link import Batch, Link


logger = logging.getLogger("loadtest")

_OTHER_FILES = 64  # descriptors that are not connections
_ONE_SEGMENT = 1000  # bytes that are surely sent as one


class FastUser(User):  # type: ignore[misc]  # locust ships no types
    """Plays `--scenario` on its share of `--connections`; with `--rate`, by a schedule of its own."""

    wait_time = constant(0)
    engine = "fast"
    protocol = ""  # the scenario's
    unix = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.options = environment.parsed_options
        self.scenario = scenario_of(type(self), self.options)
        self.request_type = {"http": str(self.options.method), "websocket": "WS"}.get(self.scenario, "TCP")
        self.name = self.scenario if self.request_type == "TCP" else name_of(self.options)
        self.address, self.family, self.socket_address = target(self)
        self.share = next(environment.shares)
        self.clients = self.share.part(self.options.connections)
        self.ledger = BatchedStatistics(environment.stats, self.request_type, self.name)
        self._hinted: set[str] = set()
        if not self.clients:
            raise StopTest(f"--connections {self.options.connections}: fewer than the {self.share.of} users")
        _allow_open_files(self.clients + _OTHER_FILES)

    @task  # type: ignore[untyped-decorator]
    def drive(self) -> None:
        """Drive the clients until this user is asked to stop and all exchanges have ended, or it is killed."""
        with closing(get_original("select", "epoll")()) as poller:
            engine = self._engine(poller)
            try:
                self._run(engine, LoopYield(poller.fileno()))
            finally:
                engine.report()
                self.ledger.show()
                for start_ns in engine.model.unfinished_ns():
                    self.environment.events.censored.fire(start_ns=start_ns)
                for link in engine.links:
                    link.drop()
        raise StopUser

    def _run(self, engine: Engine, give_way: LoopYield) -> None:
        for idle_s in engine.run():
            give_way(idle_s)
            engine.patience_s = PATIENCE_S if self.environment.runner.user_count <= 1 else 0.0
            if self._state == LOCUST_STATE_STOPPING and not engine.model.stopping:
                engine.model.stop()

    def _engine(self, poller: Any) -> Engine:
        select = get_original("select", "select")
        tls = (tls_of(self.options), self.address.host) if self.address.tls else None
        engine = Engine(
            poller=poller,
            wait=lambda seconds: select([poller], (), (), seconds),
            dialer=Dialer(self.family, self.socket_address, tls=tls),
            deadline_s=self.options.timeout,
            observer=self,
        )
        engine.links = list(self._links(engine))
        several = len(engine.links[0].request) > _ONE_SEGMENT or self.scenario == "websocket"  # a pong, and a message
        engine.dialer.no_delay |= several
        if rate_per_s := self.options.rate:
            _want_precise_timers()
            most = max(1, self.share.part(self.options.max_in_flight))
            engine.model = model.OpenModel(engine, self._schedule(rate_per_s), most)
        else:
            engine.model = model.ClosedModel(engine)
        return engine

    def _schedule(self, rate_per_s: float) -> Iterator[int]:
        """Return when this user's exchanges come due, from now on."""
        now_ns = time.perf_counter_ns()
        own_per_s = rate_per_s / self.share.of
        if self.options.arrivals == "poisson":
            return model.poisson(now_ns, own_per_s, chance(self.options, self.share, "arrivals"))
        return model.constant(self.share.first_ns(now_ns, rate_per_s), own_per_s)

    def _links(self, engine: Engine) -> Iterator[Link]:
        """Yield a link for each client. No two send the same line or message, so that a foreign reply is noticed."""
        options = self.options
        if self.scenario == "http":
            yield from self._web(engine)
            return
        first = random.getrandbits(48)
        lines = (numbered(first + number, options.payload) for number in range(self.clients))
        if self.scenario == "websocket":
            yield from (self._web_socket(engine, line[:-1]) for line in lines)
        elif self.scenario == "echo":
            yield from (EchoLink(engine, line, options.exchanges or ECHOES) for line in lines)
        else:
            yield from (TalkbackLink(engine, line) for line in lines)

    def _web(self, engine: Engine) -> Iterator[Link]:
        options = self.options
        sent = [request.encode(self.address.name) for request in requests_of(options)]
        engine.dialer.no_delay |= max(map(len, sent)) > _ONE_SEGMENT
        expected = expectation_of(options)
        exchanges = options.exchanges if options.keep_alive else 1
        again = retries(options)
        if len(sent) == 1:
            yield from (WebLink(engine, sent[0], expected, exchanges, retry=again) for _ in range(self.clients))
            return
        targets = in_turn(options, self.share, Target.made(sent))
        yield from (TargetsLink(engine, targets, expected, exchanges, retry=again) for _ in range(self.clients))

    def _web_socket(self, engine: Engine, payload: bytes) -> Link:
        options = self.options
        opening = opening_of(options, self.address.name)
        return WebSocketLink(engine, opening, OPCODES[options.message], payload, options.exchanges)

    def on_batch(self, batch: Batch) -> None:
        """Enter a batch of successful exchanges, and fire it for the recorder."""
        latency = self.ledger.enter(batch)
        self.environment.events.batch.fire(batch=batch, latency=latency)

    def on_failure(self, start_ns: int, cause: str, *, connecting: bool) -> None:
        """Fire locust's event for an exchange that failed, or a connect that is timed on its own."""
        elapsed_ns = time.perf_counter_ns() - start_ns
        self.environment.events.request.fire(
            request_type=CONNECT if connecting else self.request_type,
            name=self.name,
            response_time=elapsed_ns / 1e6,
            response_length=0,
            exception=ExchangeError(cause),
            context={},
            start_time=time.time() - elapsed_ns / 1e9,
        )
        if cause in HINTS and cause not in self._hinted:
            self._hinted.add(cause)
            logger.warning("%s: %s", cause, HINTS[cause])


class LoopYield:
    """Lets other greenlets run: for one iteration of gevent's loop, or until the epoll has events or time is up."""

    def __init__(self, fd: int) -> None:
        self._hub = gevent.get_hub()
        self._events = self._hub.loop.io(fd, 1)

    def __call__(self, idle_s: float) -> None:
        """Give way for `idle_s` seconds or until there are events; 0: for one iteration."""
        waiter = Waiter(self._hub)
        # A timer also for no time at all: callbacks, as gevent.sleep(0) uses, would run before timers and sockets do.
        timer = self._hub.loop.timer(idle_s)
        timer.start(waiter.switch, None)
        try:
            if idle_s:
                self._events.start(waiter.switch, None)
            waiter.get()
        finally:
            self._events.stop()
            timer.stop()
            timer.close()


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files. Raises StopTest when that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise StopTest(
            f"--connections: {count} open files needed, {hard} allowed: raise `ulimit -Hn`, or use --processes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _want_precise_timers() -> None:
    """Make this thread's waits end on time: by default the kernel adds up to 50 us to save wake-ups."""
    try:
        Path("/proc/thread-self/timerslack_ns").write_text("1")
    except OSError:
        pass  # a sandbox that hides /proc: the lag shows it


_SHOW_S = 0.25
_UNIT_NS = 10_000  # in which response times are counted at first: the finest step of locust's keys (fine_bucket)


class BatchedStatistics:
    """Enters one user's exchanges into locust's statistics, in batches."""

    def __init__(self, stats: RequestStats, method: str, name: str) -> None:
        self._exchanges = _Row(stats, method, name)
        self._connects = _Row(stats, CONNECT, name)
        self._shown_s = 0.0  # when, by the monotonic clock

    def enter(self, batch: Batch) -> Histogram:
        """Enter the batch, to be shown at once or soon; return its latencies."""
        spans_ns = [end - start for start, end in zip(batch.start_ns, batch.end_ns, strict=True)]
        latency = self._exchanges.add(spans_ns, batch.received)
        self._connects.add([end - start for start, end in batch.connects], 0)
        if time.monotonic() >= self._shown_s + _SHOW_S:
            self.show()
        return latency

    def show(self) -> None:
        """Add what was entered since the last time to locust's statistics."""
        self._shown_s = time.monotonic()
        self._exchanges.show()
        self._connects.show()


class _Row:
    """One row of locust's tables, and what is not yet in it."""

    def __init__(self, stats: RequestStats, method: str, name: str) -> None:
        self._stats = stats
        self._key = (name, method)
        self._clear()

    def _clear(self) -> None:
        self._pending = StatsEntry(self._stats, *self._key)
        self._pending.min_response_time = float("inf")
        self._units: Counter[int] = Counter()

    def add(self, spans_ns: Sequence[int], received: int) -> Histogram:
        """Add these response times."""
        latency = Histogram()
        if spans_ns:
            latency.record_many(spans_ns)
            entry = self._pending
            entry.num_requests += latency.n
            entry.total_content_length += received
            entry.total_response_time += latency.sum_ns / 1e6
            entry.min_response_time = min(entry.min_response_time, latency.min_ns / 1e6)
            entry.max_response_time = max(entry.max_response_time, latency.max_ns / 1e6)
            self._units.update([(span_ns + _UNIT_NS // 2) // _UNIT_NS for span_ns in spans_ns])
        return latency

    def show(self) -> None:
        """Add the pending times to the row and to the total."""
        entry = self._pending
        if not entry.num_requests:
            return
        now = time.time()
        entry.start_time = now
        entry.last_request_timestamp = now
        entry.num_reqs_per_sec = {int(now): entry.num_requests}
        keys: Counter[float] = Counter()
        for units, count in self._units.items():
            keys[fine_bucket(units * _UNIT_NS / 1e6)] += count
        entry.response_times = keys
        self._stats.entries[self._key].extend(entry)
        self._stats.total.extend(entry)
        self._clear()
