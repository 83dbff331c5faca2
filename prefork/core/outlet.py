"""Writing to a descriptor whose reader may be stuck: a log in a pipe that nobody reads must not stop the service.

O_NONBLOCK belongs to the open file description, which standard error shares with other programs, so it is never set
there. A pipe or terminal is opened once more, as a description of our own (/proc/self/fd, proc(5)); a socket is asked
for each write not to wait (MSG_DONTWAIT); a file does not wait.
"""

from __future__ import annotations

import os
import select
import socket
import stat

PATIENCE_S = 0.1  # a reader that lags a little is waited for, once; then lines are dropped until one fits again


class Outlet:
    """Where lines go. `write` raises OSError, BlockingIOError if there is no room."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._socket: socket.socket | None = None
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(fd))
            elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass  # closed, without a reader, or another user's: writing says so, or waits as it always did

    def write(self, data: memoryview, *, patient: bool) -> int:
        """Write what there is room for and return how many bytes that was; wait for room only if `patient`."""
        try:
            return self._write(data)
        except BlockingIOError:
            if not patient:
                raise
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(PATIENCE_S * 1000)
        return self._write(data)

    def _write(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        return os.write(self._fd, data)
