"""The master's orders to its workers: shared memory that only the master can write, and a pipe to each worker.

No signal is involved, so an application may do with signals, signal masks and event loops what it likes, and its worker
still hears that it is to retire. The memory says what is wanted; a byte in the pipe ends the wait of the worker's
engine, so that it looks. Threads in accept() look when accept() runs out of its time. The pipe is no eventfd, as that
is one open file for both: a worker could fill it, or make it blocking, and the master would wait.

The memory is sealed when the master has mapped it (fcntl(2), F_SEAL_FUTURE_WRITE): no other process can write to it,
nor shrink it under the master.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress

_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h, since 5.1
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

GRACE_MARGIN_S = 1.0  # past the graceful timeout a worker that has not ended itself is killed

# Cells of 64 bits.
STOPPING = 0  # 1: the whole server stops, so a retiring worker drains the accept queue
LOGS = 1  # how often the logs were to be opened again
IN_USE = 2  # groups of rows from here on have never had an owner
TAKING = 3  # workers of this generation and later ones take connections of others; 0: nobody does
ANOTHER = 4  # 1: another master's workers take connections of ours, all that they are given
_HEADER_CELLS = 8  # behind it, one cell for each group of rows: 1 = its worker is to retire


class Orders:
    """MASTER makes and writes it, workers inherit it. `cells`: what a worker reads."""

    def __init__(self, groups: int) -> None:
        """Raises OSError if there is no memory or descriptor left."""
        size = 8 * (_HEADER_CELLS + groups)
        fd = os.memfd_create("prefork-orders", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            self._own = mmap.mmap(fd, size)
            with suppress(OSError):  # a kernel that does not know the seal: workers are trusted with the memory
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | _F_SEAL_FUTURE_WRITE)
            self._shown = mmap.mmap(fd, size, prot=mmap.PROT_READ)
            self.cells = memoryview(self._shown).cast("q")
        finally:
            os.close(fd)
        self._writable = memoryview(self._own).cast("q")

    # --- MASTER

    def begin(self, group: int) -> None:
        """Begin with a worker that has these rows: it is to serve."""
        self._writable[_HEADER_CELLS + group] = 0
        self._writable[IN_USE] = max(self._writable[IN_USE], group + 1)

    def retire(self, group: int) -> None:
        """Order the worker with these rows to retire."""
        self._writable[_HEADER_CELLS + group] = 1

    def stop(self, *, drain: bool) -> None:
        """Order every worker to retire, and to serve what waits in the accept queue if `drain`."""
        self._writable[STOPPING] = drain

    def take_over(self, generation: int) -> None:
        """Have the workers of this generation and later ones take connections that others give; 0: nobody."""
        self._writable[TAKING] = generation

    def give_to_another(self) -> None:
        """Have every worker give its connections to the workers of the other master of an upgrade; none takes any."""
        self._writable[TAKING], self._writable[ANOTHER] = 0, 1

    def reopen_logs(self) -> None:
        """Order every worker to open its log files again."""
        self._writable[LOGS] += 1

    def close(self) -> None:
        """After the last worker."""
        self.close_in_child()
        self.cells.release()
        self._shown.close()

    def close_in_child(self) -> None:
        """CHILD: give up the writable mapping."""
        self._writable.release()
        self._own.close()

    # --- WORKER

    def retires(self, group: int) -> bool:
        """Return whether the worker with these rows is to retire."""
        return bool(self.cells[_HEADER_CELLS + group])
