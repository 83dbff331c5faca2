"""WORKER. The beginning of a connection that is not HTTP yet: a load balancer's PROXY header, the first byte of TLS.

A transport would take more than that from the socket, so the gate stands before there is one. Of TLS it only looks at
the first byte: who speaks plain HTTP there is told so, where a failed handshake would tell a person nothing.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.core.tls import PLAIN_HTTP
from prefork.engines.linger import unread
from prefork.engines.proxy_header import ProxyInput
from prefork.engines.timers import NEVER
from prefork.http.proxy_protocol import ProxyProtocolError

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.aio.connections import Member
    from prefork.engines.asgi.app import AsgiPeer, AsgiSite


# --- Whether a client reads what there is for it: its share of a transport's buffer has to shrink in time.
#
# So does what the kernel holds of it, which counts as well: a full send buffer takes more only when a third of it is
# free again, and that may be a megabyte.


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


# --- The end of a connection of the asyncio engine: what is still to be read has its time, and no more.
#
# close(2) with unread input sends a reset, and a reset makes the client's kernel throw away what it has not read yet.
# So a client that may still be sending is read from, and what comes is thrown away, for a while (RFC 9112 9.6).


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


_HANDSHAKE = b"\x16"  # RFC 8446 5.1: the type of a client's first record

Adopt = Callable[[socket.socket, "Listener", "AsgiPeer"], None]


class Gate:
    """WORKER. Stands for one connection until `adopt` gets it. `deadline_ns` and so on: for deadlines.Deadlines."""

    __slots__ = (
        "_adopt", "_listener", "_loop", "_peer", "_proxy", "_site", "_sock", "_told", "deadline_ns", "entry",
        "watched_ns",
    )  # fmt: skip

    def __init__(
        self, site: AsgiSite, sock: socket.socket, peer: AsgiPeer, listener: Listener, *, proxied: bool, adopt: Adopt
    ) -> None:
        self._site = site
        self._loop: asyncio.AbstractEventLoop = site.loop
        self._sock = sock
        self._peer = peer
        self._listener = listener
        self._proxy = ProxyInput(sock) if proxied else None
        self._adopt = adopt
        self._told = False  # that it does not speak TLS
        self.deadline_ns = monotonic_ns() + site.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        site.crowd.join(self)
        site.timekeeper.watch(self)
        site.loop.add_reader(sock, self._ready)

    def expire(self) -> None:
        """Its deadline has passed."""
        self.abort()

    def abort(self) -> None:
        """Close the connection."""
        self._leave()
        self._sock.close()

    def _ready(self) -> None:
        """Its socket has something to say."""
        try:
            if self._proxy is not None:
                self._take_header(self._proxy)
            elif self._told:
                if not self._sock.recv(65536):
                    self.abort()
            else:
                self._look_for_tls()
        except BlockingIOError:
            return
        except (OSError, ProxyProtocolError) as error:
            self._site.complain(error, self._peer)
            self.abort()

    def _take_header(self, proxy: ProxyInput) -> None:
        header = proxy.take()
        if proxy.ended:
            self.abort()
        elif header:
            if header.source:
                queue_ms, self._peer = self._peer.queue_ms, self._site.behind(header.source, self._listener)
                self._peer.queue_ms = queue_ms
            self._proxy = None
            if not self._site.secure:
                self._pass()

    def _look_for_tls(self) -> None:
        first = self._sock.recv(1, socket.MSG_PEEK)
        if first == _HANDSHAKE:
            self._pass()
        elif first:
            self._site.complain(ConnectionError("it does not speak TLS"), self._peer)
            self._sock.send(PLAIN_HTTP)
            self._sock.shutdown(socket.SHUT_WR)
            self._told = True  # unread, what it still sends would make a reset of the close
            self.deadline_ns = monotonic_ns() + _LINGER_NS
        else:
            self.abort()

    def _pass(self) -> None:
        self._leave()
        self._site.crowd.arriving += 1
        self._adopt(self._sock, self._listener, self._peer)

    def _leave(self) -> None:
        self._loop.remove_reader(self._sock)
        self._site.timekeeper.forget(self)
        self._site.crowd.leave(self)
