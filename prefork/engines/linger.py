"""WORKER, ADMIN. The lingering close: the end of a connection whose client may still be sending.

close(2) with unread input sends a reset, and a reset makes the client's kernel throw away what it has not read yet
(RFC 1122 4.2.2.13), which may be all of its response. So the last byte is followed by the end of our sending, and what
still comes is read and thrown away: until the client ends as well, but not for longer than LINGER_S from when the
kernel had the response, and not more than LINGER_BYTES (RFC 9112 9.6). Then the connection is closed, whatever is left.

A response that was cut must not look complete where the end of the connection is the end of the body. There a reset
comes before the close, on purpose.

shutdown(2), or the reset, comes before every close: close(2) alone ends a connection only when no other process has a
copy of it, and a C library of the application may have forked one (runtime/forks.py).

One policy, three drivers: `close` for a thread and its blocking socket, `LingeringSocket` for an epoll loop,
`LingeringTransport` for an asyncio transport. A transport under TLS cannot end its sending alone, so it lingers only if
its client can tell where the response ends; else its own close has to do, which sends the end that TLS has.
"""

from __future__ import annotations

import _socket
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from prefork.core.libc import libc
from prefork.core.listener import timeval
from prefork.engines.timers import NEVER
from prefork.errors import NOT_OPEN

if TYPE_CHECKING:
    import asyncio

LINGER_S = 2.0  # the client's time to read its last response, while what it sends is read
LINGER_BYTES = 64 << 20  # that are read of it at most
_LOOK_NS = round(LINGER_S * 1e9 / 8)  # how often a transport is asked whether the kernel has the response
_CHUNK = 65536  # bytes of one recv()
_SOCKADDR = 16  # bytes of a sockaddr; all of them zero: its family is AF_UNSPEC
_SO_MEMINFO = 55  # socket(7) has no entry; linux/sock_diag.h: the first word is the receive queue's memory


def unread(sock: socket.socket | _socket.socket) -> int:
    """Return the number of received bytes that were not read. Raises OSError if the client has reset the connection."""
    # Memory of the receive queue, 0.3 us. It also counts a FIN, so only FIONREAD (1.0 us) is exact.
    if not sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO):
        return 0
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0"))[0])


def reset(sock: socket.socket | _socket.socket) -> None:
    """End a connection with a reset; its socket is still to be closed. A Unix socket, which knows none, is shut down.

    connect(2) to no address dissolves a connection at once. A close() with SO_LINGER would wait for the last copy.
    """
    if libc.connect(sock.fileno(), bytes(_SOCKADDR), _SOCKADDR):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def hang_up(sock: socket.socket | _socket.socket) -> None:
    """End the connection and close its socket. Raises nothing if the client is gone already."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    sock.close()


def end_sending(transport: Any) -> None:
    """End the connection of a transport that is about to close its socket, as it is in connection_lost().

    Not under TLS, where the socket is closed by then: there the end of TLS has told the client.
    """
    sock = _socket_of(transport)
    if sock is None:
        return
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the client is gone, or was sent a reset
    finally:
        sock.detach()


def cut(transport: Any, *, complete: bool = True) -> None:
    """Cut the connection of a transport at once; unsent bytes are lost.

    By a reset if there are any, or if what was sent is not `complete`: it must not look so.
    """
    sock = _socket_of(transport)
    if sock is not None:
        if transport.get_write_buffer_size() or not complete:
            reset(sock)
        else:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        sock.detach()
    transport.abort()


def _socket_of(transport: Any) -> _socket.socket | None:
    """Return a second object for a transport's socket, as uvloop's has no shutdown(); to be detached. None: closed."""
    sock = transport.get_extra_info("socket")
    fd = sock.fileno() if sock is not None else -1
    return _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd) if fd >= 0 else None  # the family is unused


def discard(sock: socket.socket | _socket.socket, left: int) -> int:
    """Read and discard some data of the client. Returns how much of `left` may still come, 0 = close now.

    Raises BlockingIOError if nothing has come, and OSError if the client is gone.
    """
    size = len(sock.recv(_CHUNK))
    return max(0, left - size) if size else 0


# --- of a blocking socket


def close(sock: _socket.socket) -> None:
    """Close a blocking socket, lingering if there is unread input."""
    try:
        if unread(sock):
            _linger(sock)
        else:
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # reset meanwhile, so nobody reads the response; or the client's time is over
    try:
        sock.close()
    except OSError as error:
        if error.errno not in NOT_OPEN:
            raise


def _linger(sock: _socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    until_s, left = monotonic() + LINGER_S, LINGER_BYTES
    while left and (wait_s := until_s - monotonic()) > 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(wait_s))
        left = discard(sock, left)


# --- of a non-blocking socket in an epoll loop


class LingeringSocket:
    """WORKER. Stands for the client in an epoll loop. `now_ns` is the loop's clock; `forget(this)` precedes the close.

    `deadline_ns`, `watched_ns` and `entry` are for engines/timers.py.
    """

    __slots__ = ("_forget", "_left", "_sock", "deadline_ns", "entry", "fd", "watched_ns")

    def __init__(self, sock: socket.socket, now_ns: int, forget: Callable[[LingeringSocket], None]) -> None:
        """Send the end of our sending. Raises OSError if the client is gone already."""
        self._sock = sock
        self._forget = forget
        self._left = LINGER_BYTES
        self.fd = sock.fileno()
        self.deadline_ns = now_ns + round(LINGER_S * 1e9)
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        sock.shutdown(socket.SHUT_WR)

    def ready(self, _mask: int) -> None:
        """The socket is readable."""
        try:
            self._left = discard(self._sock, self._left)
        except BlockingIOError:
            return
        except OSError:
            self._left = 0
        if not self._left:
            self.close()

    def expire(self) -> None:
        """The deadline has passed."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._forget(self)
        self._sock.close()


# --- of an asyncio transport


class Timers(Protocol):
    """What calls `expire` when `deadline_ns` has passed (aio/waiting.py)."""

    def watch(self, thing: Any, /) -> None:
        """Begin to watch a deadline."""

    def forget(self, thing: Any, /) -> None:
        """Watch it no longer."""


class LingeringTransport:
    """WORKER. Ends a transport. Its methods are those of an asyncio.Protocol that are needed, so it can be
    the transport's protocol (as a base class, beside asyncio.Protocol), or be called by one that stays.

    The client's time begins when the transport has passed on the last byte. Until then `unsent_ns(now_ns)` says up to
    when (CLOCK_MONOTONIC ns) the client has time to read, and is asked again then; an answer that is not later than now
    cuts the connection.
    """

    __slots__ = (
        "_left",
        "_timers",
        "_transport",
        "_unsent",
        "_unsent_ns",
        "_until_ns",
        "deadline_ns",
        "entry",
        "watched_ns",
    )

    def __init__(self, transport: asyncio.Transport, timers: Timers, unsent_ns: Callable[[int], int]) -> None:
        """Send the end of our sending behind what the transport holds, and read on."""
        self._transport = transport
        self._timers = timers
        self._unsent_ns = unsent_ns
        self._left = LINGER_BYTES
        self._until_ns = 0  # the client's time to read what the transport holds
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        if transport.can_write_eof():
            with suppress(OSError):  # asyncio's own loop: the client has left
                transport.write_eof()
        transport.resume_reading()
        self._unsent = transport.get_write_buffer_size() > 0
        self.deadline_ns = monotonic_ns() + (_LOOK_NS if self._unsent else round(LINGER_S * 1e9))
        timers.watch(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._left -= len(data)
        if self._left <= 0:
            cut(self._transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        end_sending(self._transport)
        self._timers.forget(self)

    def expire(self) -> None:
        """The deadline has passed."""
        now_ns = monotonic_ns()
        if self._transport.get_write_buffer_size():
            if self._until_ns <= now_ns:
                self._until_ns = self._unsent_ns(now_ns)
            self.deadline_ns = min(self._until_ns, now_ns + _LOOK_NS)
        elif self._unsent:
            self._unsent = False
            self.deadline_ns = now_ns + round(LINGER_S * 1e9)
        else:
            self.deadline_ns = now_ns
        if self.deadline_ns > now_ns:
            self._timers.watch(self)
        else:
            cut(self._transport)

    def abort(self) -> None:
        """Cut the connection."""
        cut(self._transport)
