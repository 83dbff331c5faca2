"""MASTER. Its child processes: one table of the functions that handle their exits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

from prefork.core.process import Exit, reap

_PID_MOST = 1 << 22  # linux/threads.h, PID_MAX_LIMIT


class Children:
    """MASTER. Maps the pid of each child process to the function that handles its exit."""

    def __init__(self) -> None:
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
        for child in reap():
            if on_exit := self._handlers.pop(child.pid, None):
                on_exit(child)

    def kill(self, pids: Iterable[int]) -> None:
        """Kill these children and wait for their ends. Their handlers are not called."""
        killed = list(pids)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        for pid in killed:
            os.waitpid(pid, 0)  # bounded: SIGKILL cannot be refused
            self._handlers.pop(pid, None)
