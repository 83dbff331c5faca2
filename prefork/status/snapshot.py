"""A text in shared memory, written by one process and read by another that never waits for the writer (a seqlock).

An anonymous mmap, made before the fork, has room for two texts: the writer fills the one that is not current and then
makes it current. A reader that is overtaken twice while it copies sees a wrong checksum, and reads again. A writer that
is stopped or killed at any moment leaves the last whole text. Rejected: a pipe or a socket, as a busy writer would not
answer; a lock, as a killed writer would keep it.
"""

from __future__ import annotations

import mmap
import struct
import zlib

# Cells of the header, 64 bits each.
_VERSION = 0  # the number of texts written; the current one is in place _VERSION % 2
_HEARTBEAT = 1  # the latest heartbeat of the writer (CLOCK_MONOTONIC, ns)
_READER = 2  # the latest heartbeat of the reader, the one process that the writer watches
_HEADER = 24  # bytes
_PREFIX = struct.Struct("=QI")  # of a text: its length and its CRC-32
_TRIES = 100


class SharedSnapshot:
    """MASTER makes and writes it, a child reads it. `room`: the most bytes of a text; memory is taken as needed."""

    def __init__(self, room: int) -> None:
        self._place = _PREFIX.size + room
        self._memory = mmap.mmap(-1, _HEADER + 2 * self._place)
        self._cells = memoryview(self._memory)[:_HEADER].cast("q")
        self._written = 0  # of the writer: the cell may be written to by other processes as well

    @property
    def version(self) -> int:
        """The number of the current text; 0 = there is none yet."""
        return self._cells[_VERSION]

    def write(self, text: bytes) -> None:
        """Replace the text. Raises ValueError if it is longer than the room."""
        if _PREFIX.size + len(text) > self._place:
            raise ValueError(f"a text of {len(text)} bytes for a place of {self._place}")
        version = self._written = self._written + 1
        start = _HEADER + version % 2 * self._place
        self._memory[start : start + _PREFIX.size] = _PREFIX.pack(len(text), zlib.crc32(text))
        self._memory[start + _PREFIX.size : start + _PREFIX.size + len(text)] = text
        self._cells[_VERSION] = version

    def read(self) -> tuple[int, bytes]:
        """The current text, after its version. Raises ValueError if there is none yet."""
        for _ in range(_TRIES):
            version = self._cells[_VERSION]
            start = _HEADER + version % 2 * self._place
            length, checksum = _PREFIX.unpack(self._memory[start : start + _PREFIX.size])
            text = self._memory[start + _PREFIX.size : start + min(_PREFIX.size + length, self._place)]
            if version and len(text) == length and zlib.crc32(text) == checksum:
                return version, text
        raise ValueError("there is no whole text")

    def close(self) -> None:
        """CHILD that does not read it: give up the memory, so that nothing there can write to it."""
        self._cells.release()
        self._memory.close()

    @property
    def heartbeat_ns(self) -> int:
        """When the writer last showed that it is alive; only the writer sets it."""
        return self._cells[_HEARTBEAT]

    @heartbeat_ns.setter
    def heartbeat_ns(self, now_ns: int) -> None:
        self._cells[_HEARTBEAT] = now_ns

    @property
    def reader_ns(self) -> int:
        """When the reader last showed that it is alive."""
        return self._cells[_READER]

    @reader_ns.setter
    def reader_ns(self, now_ns: int) -> None:
        self._cells[_READER] = now_ns
