"""MASTER. Its child processes: one table of the functions that handle their exits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

from prefork.core.process import Exit, reap


class Children:
    """MASTER. Maps the pid of each child process to the function that handles its exit."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[Exit], None]] = {}

    def register(self, pid: int, on_exit: Callable[[Exit], None]) -> None:
        """Call `on_exit` when the child is reaped. Nothing is reaped between the fork and this call."""
        self._handlers[pid] = on_exit

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
