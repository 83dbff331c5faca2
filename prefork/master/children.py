"""MASTER. Its child processes: one table of the functions that handle their exits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from prefork.core.log import Log
from prefork.core.process import Exit, reap

REAP_S = 5.0  # for the end of a child that was killed: much memory takes its time
REAP_AT_ONCE_S = 0.2  # where nobody is waited for
_LOOK_S = 0.002
_PID_MOST = 1 << 22  # linux/threads.h, PID_MAX_LIMIT


class Children:
    """MASTER. Maps the pid of each child process to the function that handles its exit."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.stopped: dict[int, str] = {}  # by pid of a child that was killed because it had stopped to be traced: why
        self.reap_s = REAP_S
        self._handlers: dict[int, Callable[[Exit], None]] = {}

    def register(self, pid: int, on_exit: Callable[[Exit], None]) -> None:
        """Call `on_exit` when the child is reaped. Nothing is reaped between the fork and this call."""
        self._handlers[pid] = on_exit

    def is_new(self, pid: Any) -> bool:
        """True if this is the pid of a child of ours that nobody has registered. Another process may have named it.

        A child stays one until it is reaped, which only `reap` and `kill` do: so what is proven here, and every pid in
        the table, may be signalled with kill(2), and no stranger can be hit.
        """
        if type(pid) is not int or not 1 < pid <= _PID_MOST or pid in self._handlers:
            return False
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def reap(self) -> None:
        """Collect every child that has exited and call its handler. Never blocks.

        A child without a handler is an orphan that this process got as init or as a subreaper.
        """
        for child in reap(self.stopped):
            if on_exit := self._handlers.pop(child.pid, None):
                on_exit(child)
            self.stopped.pop(child.pid, None)

    def kill(self, pids: Iterable[int]) -> None:
        """Kill these children and wait for their ends, for at most `reap_s`. Their handlers are not called.

        The end of a process is not seen while another one traces it.
        """
        left = list(pids)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            self._handlers.pop(pid, None)
        until_s = time.monotonic() + self.reap_s
        while left := [pid for pid in left if not _ended(pid)]:
            if time.monotonic() >= until_s:
                for pid in left:
                    self._log.error("cannot end a process", pid=pid, reason="it is traced, or waits in the kernel")
                return
            time.sleep(_LOOK_S)  # no event tells of all of them, and it is over in a moment


def _ended(pid: int) -> bool:
    found, status = os.waitpid(pid, os.WNOHANG)
    return found == pid and not os.WIFSTOPPED(status)  # as it may, to be traced, before it ends
