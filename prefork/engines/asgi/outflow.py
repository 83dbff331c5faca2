"""WORKER. Whether a client reads what there is for it: its share of a transport's buffer has to shrink in time.

So does what the kernel holds of it, which counts as well: a full send buffer takes more only when a third of it is
free again, and that may be a megabyte.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefork.engines.asgi.app import AsgiSite

TURN_BYTES = 262144  # that are written in one turn of the loop before an application has to let others go first
_SIOCOUTQ = termios.TIOCOUTQ  # tcp(7): bytes that the other end has not acknowledged


class Outflow:
    """WORKER. One wait for a client to read. Deadlines are CLOCK_MONOTONIC ns. `late`: it did not read in time."""

    __slots__ = ("_bytes", "_left", "_since_ns", "_site", "_transport", "late")

    def __init__(self, site: AsgiSite, transport: Any) -> None:
        self._site = site
        self._transport = transport
        self._since_ns = 0
        self.late = False
        self._bytes = 0  # that were to be read when it began; 0: nobody waits
        self._left = 0  # of them, at the last look

    def begin(self, now_ns: int) -> int:
        """Begin to wait; return the deadline."""
        self._since_ns = now_ns
        self._bytes = self._left = held(self._transport)
        return self._site.deadline_ns(now_ns, 0, now_ns)

    def end(self) -> None:
        """The client has read enough."""
        self._bytes = 0

    def look(self, now_ns: int) -> int:
        """Return the next deadline: later than now if the client has read, and fast enough; 0 if all has been sent."""
        if not self._transport.get_write_buffer_size():
            return 0
        if not self._bytes:
            return self.begin(now_ns)
        before, self._left = self._left, held(self._transport)
        moved = self._bytes - self._left
        deadline_ns = self._site.deadline_ns(self._since_ns, moved, now_ns) if self._left < before else now_ns
        self.late = deadline_ns <= now_ns
        return deadline_ns


def held(transport: Any) -> int:
    """Bytes that the client has not read: what the transport holds, and what the kernel does."""
    count: int = transport.get_write_buffer_size()
    try:
        fd = transport.get_extra_info("socket").fileno()
        return count + int(struct.unpack("i", fcntl.ioctl(fd, _SIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):  # closed: nobody reads it
        return count
