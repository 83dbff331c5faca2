"""A request body on its way to the application: in memory while it is small, then in a file without a name.

The application runs when the body is complete, so a client that sends slowly costs memory or disk but no thread, and
what the application reads never waits. How large a body may be is the parser's business (limits.py).
"""

from __future__ import annotations

from io import BytesIO
from tempfile import TemporaryFile
from typing import IO

IN_MEMORY_BYTES = 65536  # of one body; all beyond goes to the file


class BodyBuffer:
    """Bytes that are added, and then read from their beginning. `size` counts them."""

    __slots__ = ("_file", "_parts", "size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size = 0

    def add(self, data: bytes) -> None:
        """Append. Raises OSError when the disk is full."""
        self.size += len(data)
        if self._file is not None:
            self._file.write(data)
            return
        self._parts.append(data)
        if self.size > IN_MEMORY_BYTES:
            self._file = TemporaryFile(prefix="prefork-body-")  # noqa: SIM115 - closed by close()
            self._file.writelines(self._parts)
            self._parts.clear()

    def input(self) -> IO[bytes]:
        """Return the whole as a file: read, readline, readlines and iteration as PEP 3333 wants them. Call it once."""
        if self._file is None:
            return BytesIO(b"".join(self._parts))
        self._file.seek(0)  # flushes
        return self._file

    def close(self) -> None:
        """Give up memory and file. May be called again."""
        self._parts.clear()
        if self._file is not None:
            self._file.close()
