"""WORKER. The end of a connection of the asyncio engine: what is still to be read has its time, and no more.

close(2) with unread input sends a reset, and a reset makes the client's kernel throw away what it has not read yet.
So a client that may still be sending is read from, and what comes is thrown away, for a while (RFC 9112 9.6).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.engines.asgi.outflow import Outflow
from prefork.engines.timers import NEVER
from prefork.runtime.connection import unread

if TYPE_CHECKING:
    from prefork.engines.aio.connections import Member
    from prefork.engines.asgi.app import AsgiSite

_LINGER_NS = 2_000_000_000  # how long a client may take to read its last response while it still sends
LINGER_BYTES = 64 << 20  # and how much of what it sends is read


class Parting(asyncio.Protocol):
    """WORKER. Takes a connection over from `member`. `deadline_ns` and so on: for deadlines.Deadlines.

    `linger`: the client may still be sending; else the transport closes as soon as all has been sent.
    """

    __slots__ = ("_left", "_outflow", "_site", "_transport", "deadline_ns", "entry", "watched_ns")

    def __init__(self, site: AsgiSite, transport: Any, member: Member, *, linger: bool) -> None:
        self._site = site
        self._transport = transport
        self._left = LINGER_BYTES
        self._outflow = Outflow(site, transport)
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        site.crowd.replace(member, self)
        transport.set_protocol(self)
        now_ns = monotonic_ns()
        if linger and transport.can_write_eof():  # not under TLS, which has an end of its own
            with suppress(OSError):  # asyncio's: the client has left
                transport.write_eof()
            transport.resume_reading()
            self.deadline_ns = now_ns + _LINGER_NS
        else:
            if not transport.is_closing():  # asyncio's under TLS is of no use once it was closed twice
                transport.close()
            self.deadline_ns = self._outflow.begin(now_ns)
        site.timekeeper.watch(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._left -= len(data)
        if self._left < 0:
            self.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._site.timekeeper.forget(self)
        self._site.crowd.leave(self)

    def expire(self) -> None:
        """The deadline has passed."""
        now_ns = monotonic_ns()
        self.deadline_ns = self._outflow.look(now_ns)
        if self.deadline_ns > now_ns:
            self._site.timekeeper.watch(self)
        else:
            if self._outflow.late:
                self._site.late()
            self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()


def sends_on(transport: Any) -> bool:
    """Whether the client has sent what nobody has read."""
    try:
        return bool(unread(transport.get_extra_info("socket")))
    except OSError:
        return False  # it has left


def reset(transport: Any) -> None:
    """End a connection so that what was sent does not look like a whole response (socket(7), SO_LINGER)."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    transport.abort()
