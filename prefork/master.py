"""MASTER. Binds once, forks workers, and keeps as many as it was asked for. It serves nobody and imports no app.

One thread, one loop: wait (signals, messages, the next deadline) -> read signals -> read messages -> reap -> decide ->
act. What to do is decided in policy.py, how workers are forked and heard is workforce.py. Signals are read before
deaths are judged: a service manager may signal the whole group, and then a death is no accident.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time

import setproctitle

from . import actions as do
from .config import Config
from .errors import FORK_REFUSED, AppLoadError, BootError, PreforkError
from .exits import Exit, reap
from .judge import Judge
from .listener import Listener, open_listener
from .log import Log
from .policy import Policy
from .roster import WorkerHandle
from .scoreboard import STOPPING
from .signals import TABLE, SignalInbox
from .template_handle import TemplateHandle
from .workforce import Message, Workforce, capacity


class Master:
    """MASTER. `run` serves until it is told to stop and returns the exit code."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._started_s = time.monotonic()
        self._listeners: list[Listener] = []
        self._inbox = SignalInbox(TABLE)
        self._force = Workforce(config=config, log=log, listeners=self._listeners, drop=self._drop)
        judge = Judge(
            timeout_s=config.timeout_s,
            graceful_timeout_s=config.graceful_timeout_s,
            boot_timeout_s=config.boot_timeout_s,
        )
        self._policy = Policy(workers=config.workers, judge=judge)
        self._fatal: PreforkError | None = None  # why the start failed

    def run(self) -> int:
        """Serve. Raises BindError, BootError or AppLoadError when it cannot start."""
        _raise_descriptor_limit()
        setproctitle.setproctitle(f"prefork: master {self._config.app}")
        self._log.identify(master=os.getpid())
        try:
            self._listen()
            self._loop()
        finally:
            self._force.kill_all()
            for listener in self._listeners:
                listener.unlink()  # while our socket pins its inode: a successor may bind the path at once
                listener.close()
        for signum in TABLE:
            signal.signal(signum, signal.SIG_IGN)  # we leave already; the interpreter would restore their defaults
        self._log.info("stopped", uptime=f"{time.monotonic() - self._started_s:.1f}s", **self._force.totals)
        return 0

    def _listen(self) -> None:
        for address in self._config.bind:
            listener = open_listener(address, backlog=self._config.backlog)
            self._listeners.append(listener)
            if len(self._config.bind) > 1 and listener.owned:
                listener.sock.setblocking(False)  # a lost race for one must not keep a worker from the others
            self._log.info("listening", address=listener.address)

    def _loop(self) -> None:
        while True:
            wake_s = self._supervise()
            if self._policy.stopping and not self._force.roster:
                return
            self._wait(wake_s)
            for signum in self._inbox.take():
                self._heed(signum)
            for generation in self._force.templates.news():
                self._policy.rollout.prepared(generation)
            for message in self._force.messages():
                self._hear(message)
            for child in reap():
                self._bury(child)
            if self._fatal is not None:
                raise self._fatal

    def _supervise(self) -> float:
        """Do what is to be done; return when to look again. Each action is asked for once, so this ends."""
        while True:
            queued = self._policy.stopping and any(listener.waiting() for listener in self._listeners)
            units = self._force.units()
            actions, wake_s = self._policy.supervise(self._force.roster, units, time.monotonic(), queued=queued)
            if not actions:
                return wake_s
            for action in actions:
                self._act(action)

    # --- what comes in

    def _wait(self, wake_s: float) -> None:
        poll = select.poll()
        for fd in (self._inbox.fd, *self._force.fds()):
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
                self._stop(name)
            if signum == signal.SIGQUIT or (again and signum == signal.SIGINT):
                for worker in self._force.roster:
                    worker.killed = f"stopped at once by {name}"
                    self._force.kill(worker)
        elif signum == signal.SIGHUP and not self._policy.stopping:
            self._log.info("reloading", signal=name)
            self._policy.rollout.reload()
        elif signum in (signal.SIGTTIN, signal.SIGTTOU):
            wanted = self._policy.workers + (1 if signum == signal.SIGTTIN else -1)
            self.scale(max(1, wanted))

    def _stop(self, why: str) -> None:
        self._force.board.header[STOPPING] = 1  # first: a signal to the group makes workers leave by themselves
        for listener in self._listeners:
            listener.hold_off()
        self._policy.stop(time.monotonic())
        self._log.info("stopping", signal=why, workers=len(self._force.roster))

    def scale(self, workers: int) -> str | None:
        """Want this many workers; return why not, if that cannot be."""
        most = capacity(self._config.workers)
        if not 0 <= workers <= most - 1:  # one row for the extra worker of a reload
            limit = f"from 0 to {most - 1}, as the server was started with {self._config.workers}"
            return f"cannot scale to {workers}: {limit}"
        if workers != self._policy.workers:
            self._log.info("scaling", workers=workers, before=self._policy.workers)
            self._policy.scale(workers)
        return None

    def _hear(self, message: Message) -> None:
        worker = message.worker
        if message.kind == "ready":
            self._policy.ready(worker, self._force.completed(worker.generation), time.monotonic())
            self._log.debug("worker ready", **worker.identity, engine=message.fields.get("engine"))
            self._announce()
        elif message.kind == "stacks" and worker.hang is not None:
            worker.hang.answered = True
            self._log.warning(
                "worker hung", **worker.identity, serving=worker.hang.serving or None, detail=message.fields["text"]
            )
        elif message.kind == "enough":
            worker.stale = str(message.fields["reason"])

    def _announce(self) -> None:
        if not self._policy.booted and self._force.roster.serving() == self._policy.workers:
            self._policy.booted = True
            took_s = time.monotonic() - self._started_s
            self._log.info(f"ready workers={self._policy.workers} in={took_s:.2f}s")

    def _bury(self, child: Exit) -> None:
        """A child has exited: say why, and let the policy decide on its slot."""
        if template := self._force.templates.bury(child.pid):
            self._bury_template(template, child)
            return
        obituary = self._force.bury(child)
        if obituary is None:
            return
        worker = obituary.worker
        if worker.pending and not self._policy.booted and not self._policy.stopping:
            self._fatal = self._fatal or obituary.boot_failure()
            return
        reason = obituary.reason or f"it died of {child}"
        delay_s = self._policy.died(worker, self._force.completed(worker.generation), time.monotonic(), reason)
        if obituary.expected:
            self._log.debug("worker retired", **worker.identity)
        else:
            self._log.error("worker died", **obituary.fields(), respawn_in=f"{delay_s:.2f}s" if delay_s else None)

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
        if not self._config.preload:
            self._policy.rollout.prepared(generation)  # each worker loads the app by itself
            return
        try:
            self._force.prepare(generation)
        except OSError as error:
            if error.errno not in FORK_REFUSED:
                raise
            self._log.error("cannot fork the template", reason=error.strerror)
            self._policy.origin_lost(generation, str(error.strerror), time.monotonic())

    def _act(self, action: do.Action) -> None:
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
                if generation > 1:
                    self._log.info("reloaded", generation=generation)
            case do.Abandoned(generation, reason):
                self._force.templates.keep_only(self._policy.rollout.generation)
                self._log.error("reload abandoned", generation=generation, reason=reason, serving="the old generation")

    def _kill(self, worker: WorkerHandle, reason: str) -> None:
        threads = f"{self._config.threads} connections" if self._config.threads > 1 else None
        if not (worker.pending and worker.retiring_s is not None):  # else nobody misses it
            self._log.error("killing worker", **worker.identity, reason=reason, takes_with_it=threads)
        self._force.kill(worker)

    def _spawn(self, order: do.Spawn) -> None:
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

    def _drop(self) -> None:
        """WORKER: close what is the master's own."""
        self._inbox.close()


def _raise_descriptor_limit() -> None:
    """Use all descriptors that the system allows: connections are descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
