"""MASTER. Binds once, forks workers, and keeps as many as it was asked for. It serves nobody and imports no app.

One thread, one loop: wait (signals, messages, the next deadline) -> read signals -> read messages -> reap -> decide ->
act. What to do is decided in policy.py, how workers are forked and heard is workforce.py. Signals are read before
deaths are judged: a service manager may signal the whole group, and then a death is no accident.
"""

from __future__ import annotations

import os
import select
import signal
import time

import setproctitle

from prefork.config.config import Config
from prefork.core.log import Log
from prefork.core.privileges import Place
from prefork.core.process import Exit, reap
from prefork.core.signals import TABLE, SignalInbox
from prefork.errors import FORK_REFUSED, AppLoadError, BootError, PreforkError
from prefork.master import roster as do
from prefork.master.desk import Desk
from prefork.master.lifecycle import Tenure
from prefork.master.policy import Judge, Policy
from prefork.master.recycling import MemoryLimit
from prefork.master.resources import Belongings
from prefork.master.roster import WorkerHandle
from prefork.master.slow_log import SlowLog
from prefork.master.templates import TemplateHandle
from prefork.master.upgrade import Heir
from prefork.master.workers import Message, Workforce, capacity


class Master:
    """MASTER. `run` serves until it is told to stop and returns the exit code."""

    def __init__(self, config: Config, log: Log, belongings: Belongings, started_in: Place) -> None:
        self._config = config
        self._belongings = belongings
        self._log = log
        self._started_s = time.monotonic()
        self._inbox = SignalInbox(TABLE)
        self._force = Workforce(config=config, log=log, listeners=[], drop=self._drop, terms=belongings.terms)
        judge = Judge(
            timeout_s=config.timeout_s,
            graceful_timeout_s=config.graceful_timeout_s,
            boot_timeout_s=config.boot_timeout_s,
        )
        heir = Heir.of(os.environ)
        workers, generation = heir.follows(config.workers) if heir else (config.workers, 0)
        self._policy = Policy(workers=workers, judge=judge, generation=generation)
        self._policy.rollout.patient = belongings.waits()
        self._memory = MemoryLimit(limit=config.max_memory)
        self._slow_log = SlowLog.of(config, self._force)
        self._fatal: PreforkError | None = None  # why the start failed
        self._desk = Desk(
            config=config, policy=self._policy, force=self._force, log=log, scale=self.scale, stop=self._leave
        )
        self._tenure = Tenure(
            force=self._force, policy=self._policy, belongings=belongings, desk=self._desk,
            heir=heir, place=started_in,
        )  # fmt: skip

    def run(self) -> int:
        """Serve. Raises BindError, BootError or AppLoadError when it cannot start."""
        setproctitle.setproctitle(f"prefork: master {self._config.app}")
        self._log.identify(master=os.getpid())
        try:
            self._tenure.open(self._force.drop_masters)
            self._loop()
        except PreforkError as error:
            self._tenure.failed(str(error))
            raise
        finally:
            for signum in TABLE.keys() - {signal.SIGCHLD}:
                signal.signal(signum, signal.SIG_IGN)  # we leave already; the interpreter would restore their defaults
            self._force.kill_all()
            self._tenure.close()
            self._force.close()
            self._inbox.close()
        self._log.info("stopped", uptime=f"{time.monotonic() - self._started_s:.1f}s", **self._force.totals)
        return 0

    def _loop(self) -> None:
        while True:
            wake_s = min(self._tenure.turn(), self._supervise(), self._desk.tell())
            if self._policy.stopping and not self._force.roster and not self._tenure.upgrade.running:
                break
            now_s = time.monotonic()
            self._wait(min(wake_s, self._memory.check(self._force.roster, now_s), self._slow_log.look(now_s)))
            for signum in self._inbox.take():
                self._heed(signum)
            for generation in self._force.templates.news():
                self._policy.rollout.prepared(generation)
            for message in self._force.messages():
                self._hear(message)
            for child in reap():
                self._bury(child)
            self._desk.hear()
            if self._fatal is not None and not self._policy.stopping:
                if not self._tenure.borrowing:
                    break
                self._policy.stop(time.monotonic())  # the listeners serve on: finish what our workers hold
        if self._fatal is not None:
            raise self._fatal

    def _supervise(self) -> float:
        """Do what is to be done; return when to look again. Each action is asked for once, so this ends."""
        while True:
            queued = self._policy.stopping and any(listener.waiting() for listener in self._force.listeners)
            units = self._force.units()
            actions, wake_s = self._policy.supervise(self._force.roster, units, time.monotonic(), queued=queued)
            if not actions:
                return wake_s
            for action in actions:
                self._act(action)

    # --- what comes in

    def _wait(self, wake_s: float) -> None:
        poll = select.poll()
        for fd in (self._inbox.fd, self._desk.fd, *self._force.fds(), *self._tenure.fds()):
            poll.register(fd, select.POLLIN)
        poll.poll(min(max(0.0, wake_s - time.monotonic()), 3600.0) * 1000)
        now_s = time.monotonic()
        if self._policy.judge.overslept(now_s - wake_s, now_s):
            self._log.warning("the master was suspended", late=f"{now_s - wake_s:.1f}s")

    def _heed(self, signum: int) -> None:
        name = signal.Signals(signum).name
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            again = self._policy.stopping
            if not again:
                (self._leave if signum == signal.SIGTERM else self._tenure.stop)(name)
            if signum == signal.SIGQUIT or (again and signum == signal.SIGINT):
                self._tenure.upgrade.kill()
                for worker in self._force.roster:
                    worker.killed = f"stopped at once by {name}"
                    self._force.kill(worker)
        elif signum == signal.SIGHUP and not self._policy.ending:
            self._log.info("reloading", signal=name)
            self._policy.rollout.reload()
        elif signum == signal.SIGUSR1:
            self._log.reopen(create=True)  # first: workers do not create it
            self._force.reopen_logs()
            self._desk.admin.reopen_logs()
        elif signum == signal.SIGUSR2:
            self._tenure.begin_upgrade()
        elif signum in (signal.SIGTTIN, signal.SIGTTOU):
            wanted = self._policy.workers + (1 if signum == signal.SIGTTIN else -1)
            if refused := self.scale(max(1, wanted)):
                self._log.warning("scaling refused", signal=name, reason=refused)

    def _leave(self, why: str) -> None:
        self._tenure.leave(why)

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

    def _hear(self, message: Message) -> None:
        self._desk.heard(message)
        self._slow_log.heard(message, time.monotonic())
        worker = message.worker
        if message.kind == "ready":
            served = self._force.completed(worker.generation, but=worker)  # it may have served before we hear of it
            self._policy.ready(worker, served, time.monotonic())
            self._log.debug("worker ready", **worker.identity, engine=message.fields.get("engine"))
            self._announce()
        elif message.kind == "stacks" and worker.hang is not None:
            worker.hang.heard(str(message.fields["text"]), str(message.fields["current"]))
            self._log.warning(
                "worker hung", **worker.identity, serving=worker.hang.serving or None, detail=worker.hang.stacks
            )
        elif message.kind == "enough":
            worker.stale = str(message.fields["reason"])

    def _announce(self) -> None:
        if not self._policy.booted and self._force.roster.serving() == self._policy.workers:
            self._policy.booted = True
            self._desk.admin.publish()  # first: who reads the line may ask at once
            took_s = time.monotonic() - self._started_s
            self._log.info(f"ready workers={self._policy.workers} in={took_s:.2f}s")
            self._tenure.ready()

    def _bury(self, child: Exit) -> None:
        """A child has exited: say why, and let the policy decide on its slot."""
        if self._belongings.buried(child) or self._tenure.buried(child):
            return
        if template := self._force.templates.bury(child.pid):
            self._bury_template(template, child)
            return
        for message in self._force.words(child.pid):
            self._hear(message)
        buried = self._force.bury(child)
        if buried is None:
            return
        worker, death = buried
        self._desk.buried(death)
        if worker.pending and not self._policy.booted and not self._policy.stopping and not self._belongings.waits():
            self._fatal = self._fatal or death.boot_failure()
            return
        reason = death.reason or f"it died of {child}"
        delay_s = self._policy.died(worker, self._force.completed(worker.generation), time.monotonic(), reason)
        if death.expected or (child.clean and self._policy.ending):  # TERM to the group reaches it before our word
            self._log.debug("worker retired", **worker.identity)
        else:
            self._log.error("worker died", **death.fields(), respawn_in=f"{delay_s:.2f}s" if delay_s else None)
            self._desk.mourned(death, None if self._policy.stopping else delay_s)
            self._belongings.mourn(death)

    def _bury_template(self, template: TemplateHandle, child: Exit) -> None:
        failure = template.failure or {}
        reason = str(failure.get("message") or template.killed or f"it died of {child}")
        detail = str(failure.get("detail") or template.receiver.text)
        if not self._policy.booted and not self._policy.stopping:
            fault = AppLoadError if failure else BootError
            self._fatal = self._fatal or fault(reason if failure else f"the template cannot boot: {reason}", detail)
            return
        delay_s = self._policy.origin_lost(template.generation, reason, time.monotonic())
        if template.generation >= self._policy.rollout.generation and not self._policy.stopping:
            again = f"{delay_s:.2f}s" if delay_s else None
            self._log.error("template died", gen=template.generation, reason=reason, again_in=again, detail=detail)

    # --- what is done

    def _prepare(self, generation: int) -> None:
        if reason := self._force.prepare(generation):
            self._policy.origin_lost(generation, reason, time.monotonic())
        elif not self._config.preload:
            self._policy.rollout.prepared(generation)  # each worker loads the app by itself

    def _act(self, action: do.Action) -> None:
        self._desk.acted(action)
        self._tenure.acted(action)
        match action:
            case do.Prepare(generation):
                self._prepare(generation)
            case do.Discard(generation, reason):
                self._force.templates.discard(generation, reason)
            case do.Spawn():
                self._spawn(action)
            case do.Retire(worker, reason):
                self._log.debug("retiring", **worker.identity, reason=reason)
                self._force.retire(worker)
            case do.AskStacks(worker):
                self._force.ask_stacks(worker)
            case do.AskFault(worker):
                self._force.ask_fault(worker)
            case do.Kill(worker, reason):
                self._kill(worker, reason)
            case do.Reloaded(generation):
                self._force.templates.keep_only(generation)
                if generation > self._policy.first:
                    self._log.info("reloaded", generation=generation)
            case do.Abandoned(generation, reason):
                self._force.templates.keep_only(self._policy.rollout.generation)
                serving = "the old generation" if self._policy.rollout.generation else "nobody, until a file changes"
                self._log.error("reload abandoned", generation=generation, reason=reason, serving=serving)

    def _kill(self, worker: WorkerHandle, reason: str) -> None:
        threads = f"{self._config.threads} connections" if self._config.threads > 1 else None
        if not (worker.pending and worker.retiring_s is not None):  # else nobody misses it
            self._log.error("killing worker", **worker.identity, reason=reason, takes_with_it=threads)
        self._force.kill(worker)

    def _spawn(self, order: do.Spawn) -> None:
        if time.monotonic() < self._policy.backoff.not_before_s:
            return  # refused a moment ago, for another slot
        try:
            worker = self._force.spawn(order)
        except OSError as error:
            if error.errno not in FORK_REFUSED:
                raise
            delay_s = self._policy.spawn_refused(time.monotonic())
            workers = len(self._force.roster)
            self._log.error("cannot fork", reason=error.strerror, workers=workers, again_in=f"{delay_s:.2f}s")
            return
        if worker is None:
            self._policy.spawn_refused(time.monotonic())  # every row has an owner: the next death frees one
        elif order.cause != "start":
            self._log.info("spawned", **worker.identity, cause=order.cause)
            self._desk.spawned(order)

    def _drop(self) -> None:
        """WORKER: close what is the master's own."""
        self._inbox.close()
        self._tenure.drop()
