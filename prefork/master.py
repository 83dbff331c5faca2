"""MASTER. Binds once, forks workers, and keeps as many as it was asked for. It serves nobody and imports no app.

One thread, one loop: wait (signals, messages, the next deadline) -> read signals -> read messages -> reap -> decide ->
act. What to do is decided in policy.py; here it is done. Signals are read before deaths are judged: a service manager
may signal the whole group, and then a death is no accident.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any

import setproctitle

from . import policy as do
from .channel import Receiver
from .config import Config
from .errors import FORK_REFUSED, PreforkError
from .exits import Exit, reap
from .listener import Listener, open_listener
from .log import Log
from .obituary import Obituary
from .roster import Roster, WorkerHandle
from .scoreboard import COUNTERS, STOPPING, Scoreboard
from .signals import FAULT, STACKS, TABLE, SignalInbox
from .spawn import spawn
from .worker import Worker

ROWS_LEAST = 64
ROWS_PER_WORKER = 4
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Master:
    """MASTER. `run` serves until it is told to stop and returns the exit code."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._started_s = time.monotonic()
        self._pid = os.getpid()
        self._listeners: list[Listener] = []
        self._board = Scoreboard(groups=max(ROWS_LEAST, ROWS_PER_WORKER * config.workers), threads=config.threads)
        self._roster = Roster()
        self._policy = do.Policy(
            workers=config.workers,
            timeout_s=config.timeout_s,
            graceful_timeout_s=config.graceful_timeout_s,
            boot_timeout_s=config.boot_timeout_s,
        )
        self._receivers: dict[int, Receiver] = {}  # by pid
        self._failures: dict[int, dict[str, Any]] = {}  # by pid: why a worker could not boot, in its own words
        self._totals = dict.fromkeys(COUNTERS, 0)  # of workers that are gone
        self._served: dict[int, int] = {}  # by generation: units of work completed by workers that are gone
        self._fatal: PreforkError | None = None  # why the start failed
        self._inbox = SignalInbox(TABLE)
        self._lifeline, self._lifeline_end = os.pipe2(os.O_CLOEXEC)  # workers read; only the master can write
        self._libc = ctypes.CDLL(None, use_errno=True)

    def run(self) -> int:
        """Serve. Raises BindError, BootError or AppLoadError when it cannot start."""
        _raise_descriptor_limit()
        setproctitle.setproctitle(f"prefork: master {self._config.app}")
        self._log.identify(master=self._pid)
        try:
            for address in self._config.bind:
                listener = open_listener(address, backlog=self._config.backlog)
                self._listeners.append(listener)
                if len(self._config.bind) > 1 and listener.owned:
                    listener.sock.setblocking(False)  # a lost race for one must not keep a worker from the others
                self._log.info("listening", address=listener.address)
            self._loop()
        finally:
            self._kill_all()
            for listener in self._listeners:
                listener.close()
                listener.unlink()
        for signum in TABLE:
            signal.signal(signum, signal.SIG_IGN)  # we leave already; the interpreter would restore their defaults
        self._log.info("stopped", uptime=f"{time.monotonic() - self._started_s:.1f}s", **self._totals)
        return 0

    def _loop(self) -> None:
        while True:
            now_s = time.monotonic()
            queued = self._policy.stopping and any(listener.waiting() for listener in self._listeners)
            actions, wake_s = self._policy.supervise(self._roster, self._units(), now_s, queued=queued)
            for action in actions:
                self._act(action)
            if self._policy.stopping and not self._roster:
                return
            self._wait(wake_s)
            for signum in self._inbox.take():
                self._heed(signum)
            for pid, receiver in list(self._receivers.items()):
                self._read(pid, receiver)
            for child in reap():
                self._bury(child)
            if self._fatal is not None:
                raise self._fatal

    # --- what comes in

    def _wait(self, wake_s: float) -> None:
        poll = select.poll()
        poll.register(self._inbox.fd, select.POLLIN)
        for receiver in self._receivers.values():
            if not receiver.closed:
                poll.register(receiver.fd, select.POLLIN)
        timeout_s = max(0.0, wake_s - time.monotonic())
        poll.poll(min(timeout_s, 3600.0) * 1000)
        now_s = time.monotonic()
        if self._policy.overslept(now_s - wake_s, now_s):
            self._log.warning("the master was suspended", late=f"{now_s - wake_s:.1f}s")

    def _heed(self, signum: int) -> None:
        if signum not in STOPS:
            return  # SIGCHLD: reap() follows anyway
        again = self._policy.stopping
        if not again:
            self._board.header[STOPPING] = 1  # first: a signal to the group makes workers leave by themselves
            for listener in self._listeners:
                listener.hold_off()
            self._policy.stop(time.monotonic())
            self._log.info("stopping", signal=signal.Signals(signum).name, workers=len(self._roster))
        if signum == signal.SIGQUIT or (again and signum == signal.SIGINT):
            for worker in self._roster:
                worker.killed = "stopped at once"
                os.kill(worker.pid, signal.SIGKILL)

    def _read(self, pid: int, receiver: Receiver) -> None:
        worker = self._roster.workers[pid]
        for message in receiver.read():
            if message["kind"] == "ready":
                self._policy.ready(worker, self._completed(worker.generation), time.monotonic())
                self._log.debug("worker ready", **worker.identity, engine=message.get("engine"))
                self._announce()
            elif message["kind"] == "failed":
                self._failures[pid] = message
            elif message["kind"] == "stacks" and worker.hang is not None:
                worker.hang.answered = True
                self._log.warning(
                    "worker hung", **worker.identity, serving=worker.hang.serving or None, detail=message["text"]
                )

    def _announce(self) -> None:
        if not self._policy.booted and self._roster.serving() == self._policy.workers:
            self._policy.booted = True
            took_s = time.monotonic() - self._started_s
            self._log.info(f"ready workers={self._policy.workers} in={took_s:.2f}s")

    def _bury(self, child: Exit) -> None:
        """A child has exited: log why, fold its counters, let the policy decide on its slot."""
        worker = self._roster.workers.get(child.pid)
        if worker is None:
            return  # an orphan that was handed to us as init, or a child of before exec
        receiver = self._receivers.pop(child.pid)
        self._receivers[child.pid] = receiver
        self._read(child.pid, receiver)  # its last words
        del self._receivers[child.pid]
        self._roster.remove(child.pid)
        receiver.close()
        reading = self._board.read(worker.group)
        for name, value in reading.counters.items():
            self._totals[name] += value
        self._served[worker.generation] = self._served.get(worker.generation, 0) + reading.counters["completed"]
        self._board.clear(worker.group)
        now_s = time.monotonic()
        obituary = Obituary(
            worker=worker,
            exit=child,
            age_s=now_s - worker.spawned_s,
            serving=reading.serving if reading.since_ns else "",
            message=self._failures.pop(child.pid, None),
            fault=receiver.text,
        )
        if worker.pending and not self._policy.booted and not self._policy.stopping:
            self._fatal = self._fatal or obituary.boot_failure()
            return
        delay_s = self._policy.died(worker, self._completed(worker.generation), now_s)
        if obituary.expected:
            self._log.debug("worker retired", **worker.identity)
        else:
            self._log.error("worker died", **obituary.fields(), respawn_in=f"{delay_s:.2f}s" if delay_s else None)

    # --- what is done

    def _act(self, action: do.Action) -> None:
        if isinstance(action, do.Spawn):
            self._spawn(action)
            return
        worker = action.worker
        if isinstance(action, do.Retire):
            self._log.debug("retiring", **worker.identity, reason=action.reason)
            os.kill(worker.pid, signal.SIGTERM)
        elif isinstance(action, do.AskStacks):
            os.kill(worker.pid, STACKS)
        elif isinstance(action, do.AskFault):
            os.kill(worker.pid, FAULT)
        else:
            threads = f"{self._config.threads} connections" if self._config.threads > 1 else None
            if not worker.retiring_s or not worker.pending:
                self._log.error("killing worker", **worker.identity, reason=action.reason, takes_with_it=threads)
            os.kill(worker.pid, signal.SIGKILL)

    def _spawn(self, order: do.Spawn) -> None:
        group = self._roster.free_group(self._board.groups)
        if group is None:
            return  # every row has an owner; the next death frees one
        self._board.clear(group)
        report, report_end = os.pipe2(os.O_CLOEXEC)
        worker = Worker(
            slot=order.slot,
            generation=order.generation,
            group=group,
            config=self._config,
            log=self._log,
            board=self._board,
            listeners=self._listeners,
            report=report_end,
            lifeline=self._lifeline,
            master=self._pid,
            drop=self._drop(report),
            libc=self._libc,
        )
        try:
            pid = spawn(worker.run)
        except OSError as error:
            os.close(report)
            if error.errno not in FORK_REFUSED:
                raise
            delay_s = self._policy.fork_refused(time.monotonic())
            self._log.error("cannot fork", reason=error.strerror, serving=len(self._roster), again_in=f"{delay_s:.2f}s")
            return
        finally:
            os.close(report_end)
        self._receivers[pid] = Receiver(report)
        self._roster.add(
            WorkerHandle(pid=pid, slot=order.slot, generation=order.generation, group=group, spawned_s=time.monotonic())
        )
        if order.respawn:
            self._log.info("respawned", worker=order.slot, gen=order.generation, pid=pid)

    def _drop(self, report: int) -> Callable[[], None]:
        """What a child closes first: everything that only the master may hold."""

        def drop() -> None:
            self._inbox.close()
            os.close(self._lifeline_end)
            os.close(report)
            for receiver in self._receivers.values():
                receiver.close()

        return drop

    def _kill_all(self) -> None:
        """Leave no child behind, whatever ended the loop."""
        for worker in self._roster:
            os.kill(worker.pid, signal.SIGKILL)
        for worker in self._roster:
            os.waitpid(worker.pid, 0)  # bounded: SIGKILL cannot be refused

    # --- what is known

    def _units(self) -> dict[int, do.Unit]:
        units = {}
        for worker in self._roster:
            reading = self._board.read(worker.group)
            units[worker.pid] = do.Unit(since_ns=reading.since_ns, serving=reading.serving)
        return units

    def _completed(self, generation: int) -> int:
        """Units of work that the generation has completed; it never falls."""
        readings = (self._board.read(worker.group) for worker in self._roster if worker.generation == generation)
        return self._served.get(generation, 0) + sum(reading.counters["completed"] for reading in readings)


def _raise_descriptor_limit() -> None:
    """Use all descriptors that the system allows: connections are descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
