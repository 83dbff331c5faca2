"""A text in shared memory that its one writer replaces as a whole, for readers that must never wait for the writer.

An anonymous mmap, made before the fork, with room for two texts: the writer fills the one that is not current and then
makes it so. A reader that was overtaken twice while it copied sees it by the checksum, and reads again. A writer that
is stopped or killed at any moment leaves the last whole text. Rejected: a pipe or a socket, as a busy writer would not
answer; a lock, as a killed writer would keep it.
"""

from __future__ import annotations

import mmap
import struct
import zlib

# Cells of the header, 64 bits each.
_TURN = 0  # how many texts there have been; the current one is in place _TURN % 2
_BEAT = 1  # when the writer last said that it is alive (CLOCK_MONOTONIC, ns)
_HEADER = 16  # bytes
_PREFIX = struct.Struct("=QI")  # of a text: its length and its CRC-32
_TRIES = 100


class Bulletin:
    """MASTER makes and writes it, children read it. `room`: the most bytes of a text; memory is taken as needed."""

    def __init__(self, room: int) -> None:
        self._place = _PREFIX.size + room
        self._memory = mmap.mmap(-1, _HEADER + 2 * self._place)
        self._cells = memoryview(self._memory)[:_HEADER].cast("q")

    @property
    def turn(self) -> int:
        """Changes with every text."""
        return self._cells[_TURN]

    def write(self, text: bytes) -> None:
        """Replace the text. Raises ValueError if it is longer than the room."""
        if _PREFIX.size + len(text) > self._place:
            raise ValueError(f"a text of {len(text)} bytes for a place of {self._place}")
        turn = self._cells[_TURN] + 1
        start = _HEADER + turn % 2 * self._place
        self._memory[start : start + _PREFIX.size] = _PREFIX.pack(len(text), zlib.crc32(text))
        self._memory[start + _PREFIX.size : start + _PREFIX.size + len(text)] = text
        self._cells[_TURN] = turn

    def read(self) -> tuple[int, bytes]:
        """The turn and the text that belong together. Raises ValueError if there is none yet."""
        for _ in range(_TRIES):
            turn = self._cells[_TURN]
            start = _HEADER + turn % 2 * self._place
            length, checksum = _PREFIX.unpack(self._memory[start : start + _PREFIX.size])
            text = self._memory[start + _PREFIX.size : start + min(_PREFIX.size + length, self._place)]
            if turn and len(text) == length and zlib.crc32(text) == checksum:
                return turn, text
        raise ValueError("there is no whole text")

    def beat(self, now_ns: int) -> None:
        """The writer is alive."""
        self._cells[_BEAT] = now_ns

    @property
    def beaten_ns(self) -> int:
        """When the writer last said so."""
        return self._cells[_BEAT]
