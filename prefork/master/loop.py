"""MASTER. Binds once, forks workers, and keeps their number. It accepts no connections and imports no app.

One thread, one loop: wait (signals, messages, the next deadline) -> read signals -> read messages -> reap -> decide ->
act. policy.py decides what to do, workers.py forks the workers and reads their messages. Signals are read before
deaths are judged: a service manager may signal the whole group, and then a death is no accident.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import setproctitle

from prefork.config.config import Config
from prefork.control.server import Control
from prefork.core.libc import libc
from prefork.core.log import Log
from prefork.core.privileges import WorkingDirectory
from prefork.core.proc import pss_bytes, rss_bytes
from prefork.core.process import Exit
from prefork.core.signals import TABLE, UNEXPECTED, SignalInbox, by_default, name, set_internal
from prefork.errors import FORK_REFUSED, AppLoadError, BootError, PreforkError
from prefork.master import roster as do
from prefork.master.admin_process import AdminHandle
from prefork.master.commands import Commands
from prefork.master.history import History
from prefork.master.lifecycle import Lifecycle
from prefork.master.observer import Observer
from prefork.master.policy import Policy, Timeouts, kill
from prefork.master.resources import Resources
from prefork.master.roster import Roster, WorkerHandle
from prefork.master.slow_log import SlowLog
from prefork.master.templates import TemplateHandle
from prefork.master.upgrade import Takeover
from prefork.master.workers import Message, Workers, capacity
from prefork.runtime.master_link import Kind
from prefork.runtime.transfer import TransferQueue

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
IGNORED_EVERY_S = 1.0  # between two lines about one signal: a line that cannot be written may cause it (SIGXFSZ)
MEMORY_EVERY_S = 1.0
MEMORY_SAMPLES = 3  # in a row above the limit: a peak is no leak


class Master:
    """MASTER. `run` serves until it is told to stop and returns the exit code."""

    def __init__(self, config: Config, log: Log, resources: Resources, started_in: WorkingDirectory) -> None:
        self._config = config
        self._log = log
        self._resources = resources
        self._started_s = time.monotonic()
        self._fatal: PreforkError | None = None  # why the start failed
        self._interrupted = False  # a SIGINT has come
        self._inbox = SignalInbox([*TABLE, *UNEXPECTED])
        takeover = Takeover.of(os.environ)
        transfer = takeover.transfer() if takeover else TransferQueue()
        self._workers = Workers(
            config=config, log=log, close_others=self._close_in_child, inherited=resources.inherited, transfer=transfer
        )
        self._children = self._workers.children
        self._guard = Guard(log)
        timeouts = Timeouts.of(config)
        wanted, generation = takeover.follows(config.workers) if takeover else (config.workers, 0)
        self._policy = Policy(workers=wanted, timeouts=timeouts, generation=generation, max_age_s=config.max_age_s)
        self._policy.rollout.abandons_starts = resources.wait_for_changes
        self._memory_limit = MemoryLimit(limit=config.max_memory)
        self._slow_log = SlowLog.of(config, self._workers)
        # What operators ask and are told.
        self._history = History(config=config, policy=self._policy, workers=self._workers)
        self._admin = AdminHandle(config=config, workers=self._workers, timeouts=timeouts, history=self._history)
        self._commands = Commands(
            policy=self._policy,
            workers=self._workers,
            history=self._history,
            log=log,
            scale=self.scale,
            stop=lambda why: self._lifecycle.begin_lame_duck(why),  # noqa: PLW0108 - made last, as it opens what is made here
        )
        self._control = Control(self._commands.execute, log)
        self._lifecycle = Lifecycle(
            config=config,
            log=log,
            policy=self._policy,
            workers=self._workers,
            resources=resources,
            history=self._history,
            control=self._control,
            admin=self._admin,
            takeover=takeover,
            started_in=started_in,
        )
        self._observers: tuple[Observer, ...] = (
            self._history,
            self._commands,
            self._slow_log,
            self._lifecycle,
            self._resources,
        )

    def run(self) -> int:
        """Serve. Raises BindError, BootError or AppLoadError when it cannot start."""
        setproctitle.setproctitle(f"prefork: master {self._config.app}")
        self._log.identify(master=os.getpid())
        self._guard.open()
        try:
            self._lifecycle.open()
            if not self._config.timeout_s:
                self._log.info("no worker is killed for standing still", reason="--timeout 0")
            self._loop()
        except PreforkError as error:
            self._lifecycle.failed(str(error))
            raise
        finally:
            for signum in (TABLE.keys() | UNEXPECTED) - {signal.SIGCHLD}:
                signal.signal(signum, signal.SIG_IGN)  # we leave already; the interpreter would restore their defaults
            self._children.kill(self._workers.pids())  # leave nobody behind, whatever ended the loop
            self._lifecycle.close()
            self._resources.close()
            self._admin.shutdown(at_once=self._policy.at_once)
            self._commands.ended = True
            self._control.close(time.monotonic())  # answers `prefork stop`
            self._workers.close()
            self._inbox.close()
            self._guard.close()
        self._log.info("stopped", uptime=f"{time.monotonic() - self._started_s:.1f}s", **self._workers.totals)
        return 0

    def _loop(self) -> None:
        while True:
            wake_s = min(self._lifecycle.maintain(), self._supervise(), self._answer())
            now_s, roster = time.monotonic(), self._workers.roster
            if self._policy.stopping and (self._policy.at_once or not self._lifecycle.upgrade.running):
                wake_s = min(wake_s, over_s := self._workers.over_s(now_s, at_once=self._policy.at_once))
                if over_s <= now_s:
                    break
            self._wait(min(wake_s, self._memory_limit.check(roster, now_s), self._slow_log.check(now_s)))
            for signum in self._inbox.take():
                self._handle_signal(signum)
            for generation in self._workers.templates.read_messages():
                self._policy.rollout.prepared(generation)
            for message in self._workers.read_messages():
                self._handle_message(message)
            for worker, reason in self._workers.liars():
                self._act(kill(worker, reason))
            self._children.reap()
            self._control.read_requests(time.monotonic())
            if self._fatal is not None and not self._policy.stopping:
                if not self._lifecycle.borrowing:
                    break
                self._lifecycle.give_up()
        if self._fatal is not None:
            raise self._fatal

    def _supervise(self) -> float:
        """Do what is to be done; return when to look again. Each action is asked for once, so this ends.

        Rows are read once, as those that a worker writes to meanwhile could ask for more and more.
        """
        units: dict[int, do.Unit] = {}
        while True:
            queued = self._policy.stopping and self._workers.queued()
            units = self._workers.units() | units
            actions, wake_s = self._policy.supervise(self._workers.roster, units, time.monotonic(), queued=queued)
            if not actions:
                return wake_s
            for action in actions:
                if not (isinstance(action, do.Spawn) and self._inbox.holds(_ENDS)):  # a fork can take its time
                    self._act(action)
            if self._inbox.holds(_ENDS):
                return time.monotonic()  # what was left out is asked for again if it is still wanted

    def _answer(self) -> float:
        """Tell operators and the admin process how it went; return when to come again (monotonic seconds)."""
        now_s = time.monotonic()
        return min(
            self._history.tick(now_s),
            self._control.maintain(now_s),
            self._admin.maintain(now_s),
            self._workers.templates.watch(self._policy.timeouts, now_s),
            self._workers.oom.tick(now_s),
        )

    def _wait(self, wake_s: float) -> None:
        poll = select.poll()
        for fd in (self._inbox.fd, self._control.fd, *self._workers.fds(), *self._lifecycle.fds()):
            poll.register(fd, select.POLLIN)
        poll.poll(min(max(0.0, wake_s - time.monotonic()), 3600.0) * 1000)
        now_s = time.monotonic()
        if self._policy.timeouts.woke_late(now_s - wake_s, now_s):
            self._log.warning("the master was suspended", late=f"{now_s - wake_s:.1f}s")

    # --- signals

    def _handle_signal(self, signum: int) -> None:
        why = name(signum)
        if signum == signal.SIGQUIT or (signum == signal.SIGINT and self._interrupted):
            self._stop_at_once(why)
        elif signum in (signal.SIGTERM, signal.SIGINT):
            self._interrupted |= signum == signal.SIGINT
            if not self._policy.stopping:
                (self._lifecycle.begin_lame_duck if signum == signal.SIGTERM else self._lifecycle.stop)(why)
        elif signum == signal.SIGHUP:
            if not self._policy.ending:
                self._log.info("reloading", signal=why)
                self._policy.rollout.reload()
        elif signum == signal.SIGUSR1:
            self._log.reopen(create=True)  # first: workers do not create it
            self._workers.reopen_logs()
            self._admin.reopen_logs()
        elif signum == signal.SIGUSR2:
            self._lifecycle.begin_upgrade()
        elif signum in (signal.SIGTTIN, signal.SIGTTOU):
            wanted = self._policy.workers + (1 if signum == signal.SIGTTIN else -1)
            if refused := self.scale(max(1, wanted)):
                self._log.warning("scaling refused", signal=why, reason=refused)
        elif signum in UNEXPECTED:
            self._guard.ignored(signum)

    def _stop_at_once(self, why: str) -> None:
        """Kill everybody, and spawn nobody any more."""
        self._policy.at_once = True
        if not self._policy.stopping:
            self._lifecycle.stop(why, at_once=True)
        self._lifecycle.upgrade.kill()
        for worker in self._workers.roster:
            worker.killed = f"stopped at once by {why}"
            self._workers.kill(worker)

    def scale(self, workers: int) -> str | None:
        """Want this many workers; return why not, if that cannot be."""
        if self._config.accept == "per-worker":
            return "--accept per-worker has one socket for each worker: restart with another --workers"
        most = capacity(self._config.workers)
        if not 0 <= workers <= most - 1:  # one row for the extra worker of a reload
            limit = f"from 0 to {most - 1}, as the server was started with {self._config.workers}"
            return f"cannot scale to {workers}: {limit}"
        if workers != self._policy.workers:
            self._log.info("scaling", workers=workers, before=self._policy.workers)
            self._policy.scale(workers)
        return None

    # --- messages of workers

    def _handle_message(self, message: Message) -> None:
        for observer in self._observers:
            observer.message_received(message)
        worker = message.worker
        if message.kind == Kind.READY:
            served = self._workers.completed(worker.generation, but=worker)  # it may have served before we know of it
            self._policy.ready(worker, served, time.monotonic())
            self._log.debug("worker ready", **worker.identity, engine=message.fields["engine"])
            self._announce()
        elif message.kind == Kind.STACKS and worker.hang is not None and not worker.hang.answered:
            worker.hang.answer(message.fields["text"], message.fields["current"])
            if message.received_s >= worker.told_s + 1.0:
                worker.told_s = message.received_s
                self._log.warning(
                    "worker hung", **worker.identity, serving=worker.hang.serving or None, detail=worker.hang.stacks
                )
        elif message.kind == Kind.ENOUGH:
            worker.stale = message.fields["reason"]

    def _announce(self) -> None:
        """Say that the server is ready, when every worker serves for the first time."""
        if not self._policy.booted and self._workers.roster.serving() == self._policy.workers:
            self._policy.booted = True
            self._admin.publish()  # first: the reader of the line may ask at once
            self._lifecycle.ready(time.monotonic() - self._started_s)

    # --- exits of children

    def _worker_exited(self, child: Exit) -> None:
        """Log why the worker has ended, and let the policy decide on its slot."""
        for message in self._workers.last_messages(child.pid):  # the last ones: it may have been ready
            self._handle_message(message)
        worker, death = self._workers.remove(child)
        for observer in self._observers:
            observer.worker_exited(death)
        self._admin.publish()  # at once, before the rows of the worker have a next owner
        starting = not self._policy.booted and not self._policy.stopping
        if worker.pending and starting and not self._resources.wait_for_changes:
            self._fatal = self._fatal or death.boot_failure()
            return
        reason = death.reason or f"it died of {child}"
        delay_s = self._policy.died(worker, self._workers.completed(worker.generation), time.monotonic(), reason)
        if death.expected or (child.clean and self._policy.ending):  # TERM to the group reaches it before our word
            self._log.debug("worker retired", **worker.identity)
            return
        self._log.error("worker died", **death.fields(), respawn_in=f"{delay_s:.2f}s" if delay_s else None)
        no_successor = self._policy.stopping or worker.retiring_s is not None
        for observer in self._observers:
            observer.worker_died(death, None if no_successor else delay_s)

    def _template_exited(self, template: TemplateHandle, child: Exit) -> None:
        self._workers.templates.remove(template)
        failure = template.failure or {}
        reason = str(failure.get("message") or template.killed or f"it died of {child}")
        detail = str(failure.get("detail") or template.receiver.text)
        if not self._policy.booted and not self._policy.stopping:
            fault = AppLoadError if failure else BootError
            self._fatal = self._fatal or fault(reason if failure else f"the template cannot boot: {reason}", detail)
            return
        delay_s = self._policy.template_lost(template.generation, reason, time.monotonic())
        if template.generation >= self._policy.rollout.generation and not self._policy.stopping:
            again = f"{delay_s:.2f}s" if delay_s else None
            self._log.error("template died", gen=template.generation, reason=reason, again_in=again, detail=detail)

    # --- actions of the policy

    def _act(self, action: do.Action) -> None:
        match action:
            case do.Prepare(generation):
                self._prepare(generation)
            case do.Discard(generation, reason):
                self._workers.templates.discard(generation, reason)
            case do.Spawn():
                self._spawn(action)
            case do.Retire(worker, reason):
                self._log.debug("retiring", **worker.identity, reason=reason)
                self._workers.retire(worker)
            case do.AskStacks(worker):
                self._workers.ask_stacks(worker)
            case do.AskFault(worker):
                self._workers.ask_fault(worker)
            case do.Kill(worker, reason):
                self._kill(worker, reason)
            case do.Reloaded(generation):
                self._reloaded(generation)
            case do.Abandoned(generation, reason):
                self._abandoned(generation, reason)

    def _prepare(self, generation: int) -> None:
        if self._policy.booted and self._policy.rollout.replaces:  # else a template that has died is replaced
            for observer in self._observers:
                observer.reload_started()
        if reason := self._workers.prepare(generation):
            self._policy.template_lost(generation, reason, time.monotonic())
        elif template := self._workers.templates.of(generation):
            self._children.register(template.pid, partial(self._template_exited, template))
        else:
            self._policy.rollout.prepared(generation)  # each worker loads the app by itself

    def _spawn(self, order: do.Spawn) -> None:
        if time.monotonic() < self._policy.backoff.not_before_s:
            return  # refused a moment ago, for another slot
        try:
            worker = self._workers.spawn(order)
        except OSError as error:
            if error.errno not in FORK_REFUSED:
                raise
            delay_s = self._policy.spawn_refused(time.monotonic())
            workers = len(self._workers.roster)
            self._log.error("cannot fork", reason=error.strerror, workers=workers, again_in=f"{delay_s:.2f}s")
            return
        if worker is None:
            self._policy.spawn_refused(time.monotonic())  # every row has an owner: the next death frees one
            return
        self._children.register(worker.pid, self._worker_exited)
        if order.cause != "start":
            self._log.info("spawned", **worker.identity, cause=order.cause)
        for observer in self._observers:
            observer.worker_spawned(order)

    def _kill(self, worker: WorkerHandle, reason: str) -> None:
        threads = f"{self._config.threads} connections" if self._config.threads > 1 else None
        if not (worker.pending and worker.retiring_s is not None):  # else no client notices
            self._log.error("killing worker", **worker.identity, reason=reason, takes_with_it=threads)
        self._workers.kill(worker)

    def _reloaded(self, generation: int) -> None:
        self._workers.templates.keep_only(generation)
        if generation > self._policy.first:
            for observer in self._observers:
                observer.reload_finished(generation, None)
            self._log.info("reloaded", generation=generation)

    def _abandoned(self, generation: int, reason: str) -> None:
        for observer in self._observers:
            observer.reload_finished(generation, reason)
        self._workers.templates.keep_only(self._policy.rollout.generation)
        serving = "the old generation" if self._policy.rollout.generation else "nobody, until a file changes"
        self._log.error("reload abandoned", generation=generation, reason=reason, serving=serving)

    def _close_in_child(self) -> None:
        """CHILD, first thing: close what is the master's own."""
        by_default(UNEXPECTED)
        self._guard.close()
        self._inbox.close()
        self._resources.close_in_child()
        self._control.close_in_child()
        self._admin.close_in_child()
        self._lifecycle.close_in_child()


# --- What would end the master without a word: signals that nobody should send it, and crashes.


_SS_DISABLE = 2


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


class Guard:
    """MASTER. Logs unexpected signals, and has faulthandler write the stack of a fatal one to the log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._before = _Stack()  # for handlers
        self._named_s: dict[int, float] = {}  # by signal: when the log may name it again
        self._reports = not faulthandler.is_enabled()  # else the caller of prefork.serve() has said where to write

    def open(self) -> None:
        """From now on crashes are reported."""
        if self._reports:
            faulthandler.enable(file=self._log.handler.crash_fd)
        # Python runs all handlers on the stack that faulthandler has made for its own. A few that are nested, as when
        # several signals come at once, overflow it (measured: 45 did, of 16 KB).
        libc.sigaltstack(ctypes.byref(_Stack(flags=_SS_DISABLE)), ctypes.byref(self._before))
        set_internal(ignored=True)

    def close(self) -> None:
        """At the end, and in each child: leave the signals to others."""
        libc.sigaltstack(ctypes.byref(self._before), None)
        set_internal(ignored=False)
        if self._reports:
            faulthandler.disable()

    def ignored(self, signum: int) -> None:
        """Log that a signal came which has no meaning."""
        now_s = time.monotonic()
        if now_s >= self._named_s.get(signum, 0.0):
            self._named_s[signum] = now_s + IGNORED_EVERY_S
            self._log.warning("signal ignored", signal=name(signum))


# --- --max-memory: a worker whose own share of memory stays above the limit is replaced like any outdated one.


@dataclass(slots=True, kw_only=True)
class MemoryLimit:
    """MASTER. `limit` in bytes of PSS; 0 is none. PSS is costly, so it is read only of workers whose RSS is above."""

    limit: int
    rss: Callable[[int], int | None] = rss_bytes
    pss: Callable[[int], int | None] = pss_bytes
    _over: dict[int, int] = field(default_factory=dict)  # by pid: samples in a row above the limit
    _next_s: float = 0.0

    def check(self, roster: Roster, now_s: float) -> float:
        """Mark the workers that are to be replaced; return when to check again (monotonic seconds)."""
        if not self.limit:
            return float("inf")
        if now_s >= self._next_s:
            self._next_s = now_s + MEMORY_EVERY_S
            before = self._over
            self._over = {}
            for worker in roster:
                if worker.serving and worker.stale is None and self._above(worker.pid):
                    self._over[worker.pid] = before.get(worker.pid, 0) + 1
                    if self._over[worker.pid] >= MEMORY_SAMPLES:
                        worker.stale = "max-memory"
        return self._next_s

    def _above(self, pid: int) -> bool:
        return (self.rss(pid) or 0) > self.limit and (self.pss(pid) or 0) > self.limit
