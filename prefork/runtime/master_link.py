"""WORKER. Its ties to the master: signals in, messages out, and the lifeline.

The lifeline is a pipe whose other end only the master holds: its EOF means that the master is gone, and the worker
with it. PR_SET_PDEATHSIG usually acts first; the pipe also works where that was lost (a change of uid clears it).
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from prefork.core.signals import FAULT, STACKS, SignalInbox, ignore
from prefork.core.stacks import compose
from prefork.runtime.channel import Sender
from prefork.status.scoreboard import STOPPING, TEXT_BYTES, Scoreboard

ORPHANED = 1  # exit code; nobody is left to read it
_ADOPTION_S = 2.0
_STACKS_MOST = 32_000  # characters; half a pipe, so that the message fits whole

# Ctrl-C and a terminal that closes signal the whole group: the master reads them and tells its workers with TERM.
NOT_OURS = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


class Life:
    """WORKER. `told`: TERM has come."""

    def __init__(
        self,
        *,
        lifeline: int,
        sender: Sender,
        board: Scoreboard,
        title: Callable[[str], None],
        reopen: Callable[[], None],
    ) -> None:
        self._lifeline = lifeline
        self._sender = sender
        self._board = board
        self._title = title
        self._reopen = reopen  # the log
        self._inbox = SignalInbox([signal.SIGTERM, signal.SIGUSR1])
        # What an event loop adds to the stacks of the threads: those of its tasks, and whom the one serves that runs.
        self.tasks: Callable[[], tuple[list[tuple[str, str]], str]] = _no_tasks
        self.told = False
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for signum in NOT_OURS:
            ignore(signum)
        signal.signal(STACKS, self._answer)
        faulthandler.enable(file=sender.fd, all_threads=True)  # the stack of a segfault reaches the master
        faulthandler.register(FAULT, file=sender.fd, all_threads=True)

    @property
    def retiring(self) -> bool:
        """True if this worker is to finish what is in flight and leave."""
        return self.told or self.stopping

    @property
    def stopping(self) -> bool:
        """True if the whole server stops: what waits in the accept queue is ours to serve."""
        return bool(self._board.header[STOPPING])

    def ready(self, kind: str, engine: str) -> None:
        """Tell the master that this worker accepts."""
        self._title("serving")
        self._sender.send("ready", app_kind=kind, engine=engine)

    def failed(self, code: int, message: str, detail: str = "") -> None:
        """Tell the master why this worker cannot boot."""
        self._sender.send("failed", code=code, message=message, detail=detail[-_STACKS_MOST:])

    def enough(self, reason: str) -> None:
        """Ask the master for a successor; it will tell this worker to retire when that one serves."""
        self._sender.send("enough", reason=reason)

    @property
    def fds(self) -> tuple[int, int, int]:
        """What an event loop watches for input: call `attend` with the one that has some, or an error."""
        return self._inbox.fd, self._lifeline, self._sender.fd

    def listen(self) -> None:
        """An event loop runs: have its descriptors, not its own, be woken by signals."""
        self._inbox.listen()

    def attend(self, fd: int) -> None:
        """One of `fds` is ready.

        The lifeline at the master's death. The sender, a pipe, when nobody holds its other end: the template died
        before it could say whom it had forked, so the master knows nothing of this worker.
        """
        if fd != self._inbox.fd:
            os._exit(ORPHANED)
        self.heed()

    def wait(self, timeout_s: float | None = None, also: int = -1) -> bool:
        """Wait for a signal, for the time, or for the descriptor `also`; return True if that one is readable."""
        poll = select.poll()
        for fd in (*self.fds, also):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _events in poll.poll(None if timeout_s is None else min(timeout_s, 3600.0) * 1000)}
        for fd in ready - {also}:
            self.attend(fd)
        self.heed()
        return also in ready

    def heed(self) -> None:
        """Act on the signals that have come."""
        came = self._inbox.take()
        if signal.SIGUSR1 in came:
            self._reopen()
        if signal.SIGTERM in came and not self.told:
            self.told = True
            self._title("draining")

    def slow(self, serving: str, elapsed_s: float, stack: str, *, also: int) -> None:
        """Tell the master of a request that is slow, and how many others have become so."""
        self._sender.send("slow", serving=serving, elapsed_s=elapsed_s, stack=stack[-_STACKS_MOST:], also=also)

    def _answer(self, _signum: int, frame: FrameType | None) -> None:
        """Write the stacks of all threads: the one handler that does more than record, as it is there for hangs."""
        tasks, current = self.tasks()
        text = compose([*stacks(frame), *tasks], _STACKS_MOST)
        self._sender.send("stacks", text=text, current=current[:TEXT_BYTES])


def stacks(own: FrameType | None = None) -> list[tuple[str, str]]:
    """The Python stacks of all threads, each under its title. `own` replaces the frame of the thread that asks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    me = threading.get_ident()
    found = []
    for ident, frame in sys._current_frames().items():
        lines = traceback.format_stack(own if ident == me and own is not None else frame)
        found.append((f"thread {names.get(ident, ident)}", "".join(lines)))
    return found


def _no_tasks() -> tuple[list[tuple[str, str]], str]:
    return [], ""


def adopted(master: int, lifeline: int) -> bool:
    """Wait until the master is this process's parent: at once, or when the process between it and the template exits.

    Returns False if that does not come: the master is gone.
    """
    give_up = time.monotonic() + _ADOPTION_S
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    while os.getppid() != master and time.monotonic() < give_up and not poll.poll(1):
        pass  # there is no event to wait for but the master's death; it takes one exit(2)
    return os.getppid() == master


def die_with_parent(parent: int, libc: Any) -> bool:
    """Ask the kernel to SIGKILL this process when `parent` dies (prctl(2), PR_SET_PDEATHSIG).

    Returns False if the parent is dead already. The setting is lost at the next fork and at a change of uid.
    """
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG = 1
    return os.getppid() == parent
