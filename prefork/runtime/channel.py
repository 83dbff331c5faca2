"""Worker to master: one pipe per worker, JSON lines one way. EOF is the worker's end.

Lines that are not JSON are faulthandler's, which writes plain text from C when the interpreter cannot. The writer
never blocks: what does not fit into the pipe is dropped, as a worker must not wait for a master that is stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

_LINE_MOST = 1 << 20  # a stack of a hundred threads is some 100 KB


class Sender:
    """WORKER. Writes messages to the master."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._torn = False  # a message was written in part
        os.set_blocking(fd, False)

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message; drop it when the pipe is full or the master is gone."""
        line = memoryview((b"\n" if self._torn else b"") + json.dumps({"kind": kind, **fields}).encode() + b"\n")
        try:
            while line:
                line, self._torn = line[os.write(self.fd, line) :], True
            self._torn = False
        except OSError:
            pass  # EAGAIN: the master does not read; EPIPE: it is dead, and the lifeline acts on that


class Receiver:
    """MASTER. Reads one worker's messages; `text` collects what faulthandler wrote."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.text = ""
        self.closed = False
        self._buffer = b""
        os.set_blocking(fd, False)

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the messages that have arrived. Never blocks."""
        try:
            while chunk := os.read(self.fd, 65536):
                self._buffer += chunk
                yield from self._lines()
            self.closed = True
        except BlockingIOError:
            pass  # all read
        if len(self._buffer) > _LINE_MOST or self.closed:
            self._buffer += b"\n"
            yield from self._lines()

    def _lines(self) -> Iterator[dict[str, Any]]:
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            try:
                message = json.loads(line) if line.startswith(b"{") else None
            except ValueError:
                message = None
            if isinstance(message, dict) and "kind" in message:
                yield message
            elif line:
                self.text = (self.text + line.decode("utf-8", "replace") + "\n")[-_LINE_MOST:]

    def close(self) -> None:
        """Close the master's end."""
        os.close(self.fd)
