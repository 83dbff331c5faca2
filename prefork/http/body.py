"""A request body on its way to the application: in memory while it is small, then in a file without a name.

The application runs when the body is complete, so a client that sends slowly costs memory or disk but no thread, and
what the application reads never waits. How large a body may be is the parser's business (limits.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import BufferedReader, BytesIO, FileIO
from tempfile import TemporaryFile
from typing import IO, Any

# --- Files that an application answers with: `wsgi.file_wrapper`, and the part of a file that sendfile(2) can send.


_BLOCK_BYTES = 65536


class FilePart:
    """`count` bytes of `file` from `offset`: to be sent by the engine, without passing through Python."""

    __slots__ = ("count", "file", "offset")

    def __init__(self, file: FileIO | BufferedReader, offset: int, count: int) -> None:
        self.file = file
        self.offset = offset
        self.count = count

    def __repr__(self) -> str:
        return f"FilePart({self.file!r}, {self.offset}, {self.count})"


class FileWrapper:
    """`environ["wsgi.file_wrapper"]`: an iterable over anything with a `read` method."""

    def __init__(self, filelike: Any, block_size: int = _BLOCK_BYTES) -> None:
        self.file = filelike
        self._block_size = block_size
        if hasattr(filelike, "close"):  # only then, says PEP 3333, has the wrapper one
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        while block := self.file.read(self._block_size):
            yield block

    def part(self) -> FilePart | None:
        """Return what is left of a regular file from its position; None if it must be read block by block.

        Only for plain files: others may have a descriptor too, but one whose bytes are not what read() gives (as that
        of a decompressing reader).
        """
        file = self.file
        if type(file) is not FileIO and not (type(file) is BufferedReader and type(file.raw) is FileIO):
            return None
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or not file.readable():
            return None
        offset = file.tell()
        # Nothing left, by its size: true of an empty file, but not of those in /proc, so let reading find out.
        return FilePart(file, offset, info.st_size - offset) if info.st_size > offset else None


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
