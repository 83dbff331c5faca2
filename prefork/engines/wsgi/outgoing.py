"""WORKER. What the socket did not take at once: the rest of some bytes, or a part of a file."""

from __future__ import annotations

import os
import socket

from prefork.http.file_part import FilePart

_FILE_BYTES = 1 << 20  # of a file in one turn of the loop


class Outgoing:
    """WORKER. One part of a response. `left` bytes are still to be sent, `moved` were, `since_ns` it is under way."""

    __slots__ = ("_data", "_fd", "_offset", "_sock", "left", "moved", "since_ns")

    def __init__(self, sock: socket.socket, part: bytes | FilePart, since_ns: int) -> None:
        self._sock = sock
        self.since_ns = since_ns
        self.moved = 0
        if isinstance(part, FilePart):
            self._data: memoryview | None = None
            self._fd, self._offset = part.file.fileno(), part.offset
            self.left = part.count
        else:
            self._data = memoryview(part)
            self.left = len(part)

    def flush(self) -> int:
        """Send what there is room for; return how many bytes that was. Raises OSError."""
        try:
            sent = self._send() if self.left else 0
        except BlockingIOError:
            return 0
        self.left -= sent
        self.moved += sent
        return sent

    def _send(self) -> int:
        if self._data is not None:
            sent = self._sock.send(self._data)
            self._data = self._data[sent:]
            return sent
        sent = os.sendfile(self._sock.fileno(), self._fd, self._offset, min(self.left, _FILE_BYTES))
        if not sent:
            raise OSError(f"a file has become shorter while it was sent: {self.left} bytes are missing")
        self._offset += sent
        return sent
