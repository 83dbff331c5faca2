"""WORKER. `wsgi.errors`: where applications write what went wrong. It goes to where the log goes."""

from __future__ import annotations

import io

from prefork.core.outlet import Outlet


class ErrorStream(io.TextIOBase):
    """WORKER. Takes any text. What cannot be written is dropped: the log's trouble must not become the request's."""

    def __init__(self, fd: int) -> None:
        self._out = Outlet(fd)

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, text: str) -> int:
        """Write the text at once, as one line or several. Returns its length."""
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while data:
                data = data[self._out.write(data, patient=True) :]
        except OSError:
            pass  # ENOSPC, EPIPE, EBADF, EAGAIN
        return len(text)
