"""MASTER. The process of --admin as the master sees it; what runs in it is admin/process.py.

The master binds its address, writes for it what only the master knows, kills it when it has not beaten for --timeout,
and forks it again when it has died. Writing is one comparison a turn of the loop and one copy when something has
happened, so it costs the same however often clients ask.
Without --admin there is no listener, and nothing happens here.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import time
from collections.abc import Collection

from prefork.config.config import Config
from prefork.core.listener import Listener
from prefork.core.process import Exit, spawn
from prefork.errors import FORK_REFUSED
from prefork.master.history import History
from prefork.master.policy import Backoff, Timeouts
from prefork.master.templates import silence
from prefork.master.workers import Workers, capacity
from prefork.status.snapshot import SharedSnapshot

HEARTBEAT_S = 1.0  # how often the master says that it lives
LIVED_S = 10.0  # a process that lived this long is replaced without much delay
_NO_JITTER = 0.5  # one process has nothing to be spread
_ROOM = 2 << 20  # bytes of the snapshot: what a reload failed of may be as long as a worker can say
_ROOM_PER_WORKER = 1024
_NEVER = float("inf")


class AdminHandle:
    """MASTER. `listener` is set when listeners are opened (lifecycle.py)."""

    def __init__(self, *, config: Config, workers: Workers, timeouts: Timeouts, history: History) -> None:
        self.listener: Listener | None = None
        self._log = workers.log
        self._workers = workers
        self._children = workers.children
        self._timeouts = timeouts
        self._state = history.state
        self._backoff = Backoff()
        self._pid = 0
        self._spawned_s = 0.0
        self._killed = ""  # why the master sent SIGKILL
        self._wanted = False
        self._spawning = False
        self._written = b""
        self._has_process = config.admin is not None
        if config.admin is None:
            return
        self._host = config.admin.host
        self._shared = SharedSnapshot(_ROOM + _ROOM_PER_WORKER * capacity(config.workers))
        # In the master, as its successors may find other code at its place; and only where it is wanted.
        self._code = importlib.import_module("prefork.admin.process")
        page = importlib.import_module("prefork.admin.page")
        self._answers = self._code.Answers(
            shared=self._shared,
            collector=history.collector,  # the process has a copy, which goes on from what is known here at the fork
            page=page.document(),
        )

    @property
    def listeners(self) -> list[Listener]:
        """The one, if there is one."""
        return [self.listener] if self.listener is not None else []

    def open(self) -> None:
        """This master is the one to be asked: answer from now on."""
        if self.listener is not None:
            self._wanted = True
            self.maintain(time.monotonic())

    def maintain(self, now_s: float) -> float:
        """Each turn of the master's loop: publish what has changed, fork the process if it is missing.

        Returns when to come again (monotonic seconds).
        """
        if not self._wanted:
            return _NEVER
        self.publish()
        self._shared.heartbeat_ns = time.monotonic_ns()
        if not self._pid and now_s >= self._backoff.not_before_s:
            self._spawn(now_s)
        wake_s = self._watch(now_s) if self._pid else self._backoff.not_before_s
        return min(now_s + HEARTBEAT_S, wake_s)

    def _watch(self, now_s: float) -> float:
        """Kill the process if it has not beaten for too long; return when that may be (monotonic seconds)."""
        hung, limit_s = self._timeouts.silent(self._shared.reader_ns, now_s)
        if self._killed or not hung:
            return _NEVER if self._killed else limit_s
        self._killed = silence(self._pid, self._shared.reader_ns, now_s)
        os.kill(self._pid, signal.SIGKILL)
        return _NEVER

    def publish(self) -> None:
        """Write the master's state to shared memory, if it has changed."""
        if self._wanted and (text := self._state().to_text()) != self._written:
            self._shared.write(text)
            self._written = text

    def _spawn(self, now_s: float) -> None:
        assert self.listener is not None
        admin = self._code.Admin(
            listener=self.listener,
            host=self._host,
            answers=self._answers,
            log=self._log,
            lifeline=self._workers.lifeline,
            master=os.getpid(),
            identity=self._workers.inherited.identity,
            close_in_child=self._workers.close_in_child,
        )
        self._shared.reader_ns = time.monotonic_ns()  # that of its predecessor is none of it
        self._written = b""  # the state is written again, as the predecessor could write there as well
        self.publish()
        self._killed = ""
        self._spawning = True
        try:
            self._pid = spawn(admin.run)
        except OSError as error:
            if error.errno not in FORK_REFUSED:
                raise
            again = f"{self._backoff.wait(now_s, _NO_JITTER):.2f}s"
            self._log.error("cannot fork the admin", reason=error.strerror, again_in=again)
            return
        finally:
            self._spawning = False
        self._children.register(self._pid, self._exited)
        self._spawned_s = now_s
        self._log.debug("admin spawned", admin=self._pid)

    def _exited(self, child: Exit) -> None:
        self._pid = 0
        now_s = time.monotonic()
        if now_s - self._spawned_s >= LIVED_S:
            self._backoff.clear()
        delay_s = self._backoff.note(now_s, _NO_JITTER)
        if self._wanted:
            again = f"{delay_s:.2f}s"
            self._log.error("admin died", pid=child.pid, cause=child, reason=self._killed or None, respawn_in=again)

    def reopen_logs(self) -> None:
        """Tell the admin process to open the log file again."""
        if self._pid:
            os.kill(self._pid, signal.SIGUSR1)

    # --- the end

    def stop_accepting(self) -> None:
        """Another master is to be asked from now on: answer the clients that are connected, take no more."""
        self._wanted = False
        if self._pid:
            os.kill(self._pid, self._code.LEAVE)

    def hand_over(self, fds: Collection[int]) -> None:
        """The other master has taken these descriptors, and it is to be asked."""
        if self.listener is not None:
            if self.listener.sock.fileno() not in fds:
                self.listener.unlink()
            self.listener.close()
            self.listener = None

    def shutdown(self, *, at_once: bool) -> None:
        """The server has ended."""
        if self._pid:
            if not self._wanted and not at_once:
                self._wait()
            self._children.kill([self._pid])
            self._pid = 0
        self._wanted = False
        self.hand_over(())

    def _wait(self) -> None:
        """Wait for the admin process to end: it may still be answering a client."""
        fd = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(2 * self._code.LEAVE_S * 1000)
        finally:
            os.close(fd)

    def close_in_child(self) -> None:
        """CHILD: close what only the master and the admin process may hold."""
        if self._spawning:
            return  # this is the admin process
        if self.listener is not None:
            self.listener.close()
        if self._has_process:
            self._shared.close()
