"""WORKER. The threads that serve: one for each row of the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from prefork.errors import BootError
from prefork.status.scoreboard import Row


class ServingThread(threading.Thread):
    """WORKER. A daemon thread, as the end of the process must not wait for it, that starts no daemons by default.

    A thread is a daemon if the one that starts it is. The threads that an application starts while it serves a request
    are none unless it says so: their work is waited for when the worker ends.
    """

    def __init__(self, target: Callable[[Row], None], row: Row, name: str) -> None:
        self._serves = False
        self._serve, self._row = target, row
        super().__init__(name=name, daemon=True)

    @property
    def daemon(self) -> bool:  # type: ignore[override]
        """What threading.Thread() asks for a default, once this thread runs; before, what it is."""
        return not self._serves

    def run(self) -> None:
        """Serve."""
        self._serves = True
        self._serve(self._row)


def start_threads(rows: Sequence[Row], target: Callable[[Row], None]) -> None:
    """Start a thread for each row. Raises BootError."""
    threads = [ServingThread(target, row, f"serve-{number}") for number, row in enumerate(rows)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:  # EAGAIN of clone(2): a limit on processes counts threads too
        raise BootError(
            f"cannot start {len(threads)} threads: {error} (ulimit -u, or the control group's pids)"
        ) from None
