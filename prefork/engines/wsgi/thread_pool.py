"""WORKER. The application threads of an event loop: work goes in by a queue, results come back by an eventfd.

The loop takes no new connections while all threads are busy. What its own clients ask for beyond that waits here,
first come, first served.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from prefork.errors import BootError
from prefork.status.scoreboard import Row


class Job(Protocol):
    """What runs on a thread of the pool."""

    def run(self, row: Row, /) -> Any:
        """Run the next part, on the row of this thread. An exception ends the worker."""


AnyJob = TypeVar("AnyJob", bound=Job)


class Pool(Generic[AnyJob]):
    """WORKER. `fd` is readable when something is done; only the loop calls the methods."""

    def __init__(self, rows: Sequence[Row], failed: Callable[[BaseException], None]) -> None:
        """Start a thread for each row. Raises BootError."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._size = len(rows)
        self._failed = failed
        self._waiting: queue.SimpleQueue[AnyJob] = queue.SimpleQueue()
        self._done: deque[tuple[AnyJob, Any]] = deque()
        self.busy = 0  # handed out and not back
        threads = [
            threading.Thread(target=self._serve, args=(row,), name=f"serve-{number}", daemon=True)
            for number, row in enumerate(rows)
        ]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as error:  # EAGAIN of clone(2): a limit on processes counts threads too
            raise BootError(
                f"cannot start {len(threads)} threads: {error} (ulimit -u, or the control group's pids)"
            ) from None

    @property
    def full(self) -> bool:
        """Whether new work would have to wait."""
        return self.busy >= self._size

    def put(self, job: AnyJob) -> None:
        """Have a thread run the job."""
        self.busy += 1
        self._waiting.put(job)

    def take(self) -> Iterator[tuple[AnyJob, Any]]:
        """What is done, each with its result; call it when `fd` is readable."""
        os.eventfd_read(self.fd)
        while self._done:
            self.busy -= 1
            yield self._done.popleft()

    def _serve(self, row: Row) -> None:
        try:
            while True:
                job = self._waiting.get()
                self._done.append((job, job.run(row)))
                os.eventfd_write(self.fd, 1)
        except BaseException as error:  # noqa: BLE001 - the worker border: our own fault, say it and let the master respawn
            self._failed(error)
