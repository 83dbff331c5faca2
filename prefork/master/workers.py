"""MASTER. The worker processes: fork them, read their messages, signal them, and keep the counters of the dead.

The master tells a worker something by its orders (runtime/orders.py), and asks for stacks by signals. A worker sends
messages through its pipe (runtime/master_link.py) and shows what it does in its rows of the scoreboard. Rows survive
their owner: when it is reaped, its counters are added to those of its slot in `gone`, which never fall, and the rows
stay as they are until the next owner comes. So a reader of `gone` and of the rows of live workers counts everything
once, also in another process that learns of a death a moment later (status/snapshot.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from prefork.config.config import Config
from prefork.core.cgroup import OomKills
from prefork.core.listener import Listener
from prefork.core.log import Log, utc
from prefork.core.proc import stopped
from prefork.core.process import Exit, spawn
from prefork.core.signals import FAULT, STACKS
from prefork.errors import FORK_REFUSED, ConfigError, PreforkError
from prefork.master.children import REAP_AT_ONCE_S, REAP_S, Children
from prefork.master.roster import Roster, Spawn, Unit, WorkerHandle
from prefork.master.templates import Templates
from prefork.runtime.inherited import Inherited
from prefork.runtime.master_link import NO_MESSAGE, OF_WORKER, READ_MOST, REST_MOST, Kind, Receiver
from prefork.runtime.orders import ANOTHER, STOPPING, TAKING, Orders
from prefork.runtime.transfer import TransferQueue
from prefork.status.deaths import DeathRecord
from prefork.status.histogram import ARRAY_DIGITS, Histogram
from prefork.status.scoreboard import COUNTERS, QUEUE_BUCKETS, Scoreboard
from prefork.worker.process import Worker

ROWS_LEAST = 64
ROWS_PER_WORKER = 4
SETTLE_S = 0.1  # between looks at what a dead worker had in its hands
_LOOKS = 20  # that all find it missing
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker has sent. `fields` depend on the kind: see MasterLink, which sends them."""

    worker: WorkerHandle
    kind: str  # of Kind
    fields: dict[str, Any]
    received_s: float  # monotonic


@dataclass(slots=True, kw_only=True)
class Workers:
    """MASTER. The live workers and what is known of them."""

    config: Config
    log: Log
    close_others: Callable[[], None]  # closes in a child what else only the master may hold
    inherited: Inherited
    transfer: TransferQueue
    children: Children = field(init=False)
    listeners: list[Listener] = field(default_factory=list)
    roster: Roster = field(default_factory=Roster)
    gone: dict[int, dict[str, int]] = field(default_factory=dict)  # by slot: COUNTERS of workers that are gone, cpu_ns
    latencies: Histogram = field(default_factory=lambda: Histogram(ARRAY_DIGITS))  # of workers that are gone
    waits: list[int] = field(default_factory=lambda: [0] * QUEUE_BUCKETS)  # of their connections, to be taken
    board: Scoreboard = field(init=False)
    orders: Orders = field(init=False)
    _receivers: dict[int, Receiver] = field(default_factory=dict)  # by pid
    _orders_fds: dict[int, int] = field(default_factory=dict)  # by pid: the write end of its pipe
    _failures: dict[int, dict[str, Any]] = field(default_factory=dict)  # by pid: the message FAILED, if it sent one
    _served: dict[int, int] = field(default_factory=dict)  # by generation: completed by workers that are gone
    _lifeline: tuple[int, int] = field(init=False)  # workers poll the first; only the master holds the second
    account: TransferAccount = field(init=False)
    _wake_fd: int = field(init=False)  # eventfd through which workers wake each other
    templates: Templates = field(init=False)
    oom: OomKills = field(default_factory=OomKills)

    def __post_init__(self) -> None:
        self.children = Children(self.log)
        groups = capacity(self.config.workers)
        threads = self.config.threads
        try:
            self.board = Scoreboard(groups=groups, threads=threads)
            self.orders = Orders(groups)
        except OSError as error:
            raise PreforkError(f"no memory for {groups} workers of {threads} threads: {error.strerror}") from None
        self._lifeline = os.pipe2(os.O_CLOEXEC)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.templates = Templates(known=self.children)
        self.account = TransferAccount(self)

    # --- start and end

    def spawn(self, order: Spawn) -> WorkerHandle | None:
        """Fork a worker; None if there is no row for it. Raises OSError if the system has no process left."""
        group = self.roster.free_group(self.board.groups)
        if group is None:
            return None
        self.board.clear(group)
        self.orders.begin(group)
        orders_end, orders_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        report, report_end = os.pipe2(os.O_CLOEXEC)
        worker = replace(
            self._prototype(lambda: self.close_in_child(report, orders_fd)),
            slot=order.slot,
            generation=order.generation,
            group=group,
            report=report_end,
            orders_fd=orders_end,
        )
        try:
            pid = self.templates.fork(worker) if self.config.preload else spawn(worker.run)
        except OSError:
            os.close(report)
            os.close(orders_fd)
            raise
        finally:
            os.close(report_end)
            os.close(orders_end)
        self._receivers[pid] = Receiver(report, OF_WORKER)
        self._orders_fds[pid] = orders_fd
        handle = WorkerHandle(
            pid=pid, slot=order.slot, generation=order.generation, group=group, spawned_s=time.monotonic()
        )
        self.roster.add(handle)
        return handle

    def prepare(self, generation: int) -> str:
        """Get ready what workers of a generation are made from: with --preload, a template; return why not, if so."""
        try:
            if self.inherited.tls and generation > 1:
                self.inherited.tls.renew()
            if self.config.preload:
                self.templates.prepare(generation, self._prototype(_nothing), self.close_in_child)
        except ConfigError as error:
            return str(error)
        except OSError as error:
            if error.errno not in FORK_REFUSED:
                raise
            self.log.error("cannot fork the template", reason=error.strerror)
            return str(error.strerror)
        return ""

    def _prototype(self, close_in_child: Callable[[], None]) -> Worker:
        """A worker that has no place yet."""
        return Worker(
            slot=0,
            generation=0,
            group=0,
            report=-1,
            orders_fd=-1,
            config=self.config,
            log=self.log,
            board=self.board,
            orders=self.orders,
            transfer=self.transfer,
            wake_fd=self._wake_fd,
            listeners=self.listeners,
            lifeline=self.lifeline,
            master=os.getpid(),
            close_in_child=close_in_child,
            inherited=self.inherited,
        )

    @property
    def lifeline(self) -> int:
        """The end for children: its EOF is the master's death."""
        return self._lifeline[0]

    def close_in_child(self, *own: int) -> None:
        """CHILD, first thing: close what only the master may hold."""
        self.close_others()
        self.templates.close_in_child()
        os.close(self._lifeline[1])
        for fd in own:  # of the child itself
            os.close(fd)
        for receiver in self._receivers.values():
            receiver.close()
        for orders_fd in self._orders_fds.values():
            os.close(orders_fd)
        self.orders.close_in_child()

    def remove(self, child: Exit) -> tuple[WorkerHandle, DeathRecord]:
        """A worker was reaped: take its counters, free its rows, and return what is known of its death."""
        worker = self.roster.remove(child.pid)
        now_s = time.monotonic()
        receiver = self._receivers.pop(child.pid)
        receiver.close()
        os.close(self._orders_fds.pop(child.pid))
        reading = self.board.read(worker.group)
        began_ns, begun = self.board.begun(worker.group)
        since_ns = began_ns or reading.since_ns
        serving = begun or reading.serving
        if worker.hang is not None:  # of an event loop it may know better than the rows
            since_ns = since_ns or (max(0, worker.hang.since_ns) if worker.hang.serving else 0)
            serving = worker.hang.serving or serving
        counted = self.gone.setdefault(worker.slot, dict.fromkeys((*COUNTERS, "cpu_ns"), 0))
        reading.counters["cut"] += reading.held  # what it still held has ended with it
        for name, value in {**reading.counters, "cpu_ns": child.cpu_ns}.items():
            counted[name] += value
        self.latencies.merge(self.board.histogram(worker.group))
        waits = zip(self.waits, self.board.queue_waits(worker.group), strict=True)
        self.waits = [gone + here for gone, here in waits]
        self._served[worker.generation] = self._served.get(worker.generation, 0) + reading.counters["completed"]
        self.board.vacate(worker.group)
        self.account.reopen(now_s)
        hang = worker.hang
        killed = worker.killed or self.children.stopped.get(child.pid)
        return worker, DeathRecord(
            worker=worker,
            killed=killed,
            hung=hang is not None,
            verdict=hang.verdict if hang and worker.pending else "",
            stacks=hang.stacks if hang else "",
            exit=child,
            time=utc(time.time()),
            age_s=now_s - worker.spawned_s,
            serving=serving if since_ns else "",
            serving_s=now_s - since_ns / 1e9 if since_ns else None,
            asked=worker.stale,
            cut=reading.held,
            requests=reading.counters["completed"],
            last=self.board.last(worker.group),
            slow=tuple(self.board.slow(worker.group)),
            oom=self.oom.claim() if child.signum == signal.SIGKILL and not killed else False,
            message=self._failures.pop(child.pid, None),
            fault=receiver.text,
        )

    def close(self) -> None:
        """After the last worker: a caller in Python may start another server."""
        self.account.close()
        for fd in (*self._lifeline, self._wake_fd, *self._orders_fds.values()):
            os.close(fd)
        for receiver in self._receivers.values():
            receiver.close()
        self.orders.close()
        self.transfer.close()
        self.templates.close_in_child()

    # --- orders

    def retire(self, worker: WorkerHandle) -> None:
        """Tell the worker to finish the requests in flight and exit."""
        self.orders.retire(worker.group)
        _wake(self._orders_fds[worker.pid])

    def choose_takers(self, generation: int) -> None:
        """Let connections that change hands go to workers of this generation, once one of them serves."""
        if self.orders.cells[TAKING] != generation and any(
            worker.serving and worker.generation >= generation for worker in self.roster
        ):
            self.orders.take_over(generation)
            self._wake_all()

    def stop(self, *, drain: bool) -> None:
        """Tell all workers, those to come included, to leave; with `drain` they serve what waits before they do."""
        self.orders.stop(drain=drain)
        self._wake_all()

    def reopen_logs(self) -> None:
        """Tell all workers and templates to open the log file again."""
        self.orders.reopen_logs()
        self._wake_all()
        for pid in self.templates.pids():
            os.kill(pid, signal.SIGUSR1)

    def _wake_all(self) -> None:
        for orders_fd in self._orders_fds.values():
            _wake(orders_fd)

    def ask_stacks(self, worker: WorkerHandle) -> None:
        """Ask for its Python stacks; they come as a message."""
        os.kill(worker.pid, STACKS)

    def ask_fault(self, worker: WorkerHandle) -> None:
        """Ask faulthandler, in a worker that is about to be killed."""
        os.kill(worker.pid, FAULT)

    def kill(self, worker: WorkerHandle) -> None:
        """SIGKILL. Its pid is ours until it is reaped, so this cannot hit a stranger."""
        worker.killed_s = worker.killed_s or time.monotonic()
        os.kill(worker.pid, signal.SIGKILL)

    def over_s(self, now_s: float, *, at_once: bool) -> float:
        """Return until when a stop has to wait (monotonic seconds); not later than now: it is over.

        For all workers, but not for long for one that was killed and is not seen to end; then for the templates.
        """
        reap_s = REAP_AT_ONCE_S if at_once else REAP_S
        until_s = max((each.killed_s + reap_s if each.killed_s else _NEVER for each in self.roster), default=0.0)
        if until_s <= now_s and not at_once:
            until_s = self.templates.leave(now_s)
        if until_s <= now_s:
            self.children.reap_s = REAP_AT_ONCE_S  # they have had their time
        return until_s

    # --- what is known

    def queued(self) -> bool:
        """Return whether connections wait that a worker could still take, after the last one has ended."""
        return not self.templates.leaving and any(listener.waiting() for listener in self.listeners)

    def pids(self) -> list[int]:
        """The live workers, and the templates that they are forked from."""
        return self.templates.pids() + [worker.pid for worker in self.roster]

    def fds(self) -> list[int]:
        """What is readable when a worker or a template has sent a message."""
        return self.templates.fds() + [each.fd for each in self._receivers.values() if not each.closed]

    def read_messages(self) -> Iterator[Message]:
        """Yield what workers have sent since the last call, a part if it is much. Never blocks."""
        for pid in list(self._receivers):
            yield from self._read(pid, READ_MOST)

    def last_messages(self, pid: int) -> Iterator[Message]:
        """Yield what a worker that has ended had sent. Never blocks."""
        return self._read(pid, REST_MOST)

    def _read(self, pid: int, most: int) -> Iterator[Message]:
        worker, receiver = self.roster.workers[pid], self._receivers[pid]
        for message in receiver.read(most):
            match message["kind"]:
                case Kind.FAILED if not worker.pending:
                    receiver.refuse("failed after ready")
                case Kind.READY if not worker.pending:
                    pass  # it has said so
                case kind:
                    if kind == Kind.FAILED:
                        self._failures[pid] = message
                    yield Message(worker, kind, message, time.monotonic())

    def liars(self) -> list[tuple[WorkerHandle, str]]:
        """The workers that have sent what is no message, and why they are to be killed for it."""
        faults = ((self.roster.workers[pid], each.fault) for pid, each in self._receivers.items() if each.fault)
        return [(worker, f"{NO_MESSAGE}: {fault}") for worker, fault in faults if not worker.killed]

    def units(self) -> dict[int, Unit]:
        """By pid, what the policy judges."""
        units = {}
        for worker in self.roster:
            reading = self.board.read(worker.group)
            # In a stop, workers end their heartbeat before they are known to retire.
            never_beat = worker.serving and not reading.moved_ns and not self.orders.cells[STOPPING]
            units[worker.pid] = Unit(
                since_ns=round((worker.ready_s or 0.0) * 1e9) if never_beat else reading.judged_ns,
                serving=reading.serving,
                silent=not reading.unit_ns,
                completed=0 if reading.unit_ns else reading.counters["completed"],
                stopped=worker.hang is not None and stopped(worker.pid),
            )
        return units

    def completed(self, generation: int, *, but: WorkerHandle | None = None) -> int:
        """Units of work that the generation has completed, without what this worker has; it never falls."""
        others = (worker for worker in self.roster if worker.generation == generation and worker is not but)
        counts = (self.board.read(worker.group).counters["completed"] for worker in others)
        return self._served.get(generation, 0) + sum(counts)

    @property
    def totals(self) -> dict[str, int]:
        """What workers that are gone have counted."""
        return {name: sum(counted[name] for counted in self.gone.values()) for name in COUNTERS}


class TransferAccount:
    """MASTER. Counts as cut the connections that were lost between two workers."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._look_s = _NEVER  # when to look whether a worker that died had some in its hands
        self._missing: list[int] = []  # at each look so far that could be relied upon

    def reopen(self, now_s: float) -> None:
        """Look again from now on: a worker has died."""
        self._look_s, self._missing = now_s, []

    def settle(self, now_s: float) -> float:
        """Count what a worker had in its hands when it died: given and not in the queue, or just taken.

        A look at figures that move meanwhile does not count. Who is about to give or take, and has no processor for a
        moment, makes one too many of it; so the least that was found is what is missing for good. Return when to come
        again (monotonic seconds).
        """
        if now_s < self._look_s:
            return self._look_s
        self._look_s = now_s + SETTLE_S
        given, taken, waiting = moved = self._moved()
        if moved == self._moved():
            self._missing.append(given - taken - waiting)
        if self._workers.orders.cells[ANOTHER]:
            self._look_s = _NEVER  # who takes is another master's
        elif len(self._missing) >= _LOOKS:
            self._look_s = _NEVER
            self._cut(min(self._missing), "a worker died while it gave or took them")
        return self._look_s

    def close(self) -> None:
        """After the last worker: count what nobody has taken, as it ends with the queue."""
        if not self._workers.orders.cells[ANOTHER]:
            given, taken, _waiting = self._moved()
            self._cut(given - taken, "the server has ended while they changed hands")

    def _moved(self) -> tuple[int, int, int]:
        """How many connections were given, how many were taken, and how many wait in the queue."""
        workers = self._workers
        live = (workers.board.read(worker.group).counters for worker in workers.roster)
        every = [*workers.gone.values(), *live]
        return (
            sum(each["given"] for each in every),
            sum(each["received"] for each in every),
            workers.transfer.waiting(),
        )

    def _cut(self, count: int, reason: str) -> None:
        if count > 0 and self._workers.gone:
            counted = next(iter(self._workers.gone.values()))
            counted["received"] += count
            counted["cut"] += count
            self._workers.log.warning("connections cut", count=count, reason=reason)


def _nothing() -> None:
    pass


def _wake(orders_fd: int) -> None:
    try:
        os.write(orders_fd, b"\0")
    except OSError:
        pass  # EAGAIN: it has not read the last ones; EPIPE: it is dead. The order stands in the memory


def capacity(workers: int) -> int:
    """How many workers a server started with `workers` may ever have at once: the scoreboard is of fixed size."""
    return max(ROWS_LEAST, ROWS_PER_WORKER * workers)
