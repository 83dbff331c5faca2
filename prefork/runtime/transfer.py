"""The queue through which workers give connections to each other: a second accept queue, for those that have lived.

One pair of SOCK_SEQPACKET sockets for the whole server. The master makes it before the first fork, all workers have
both ends, and in an upgrade it is handed down. A message is one descriptor and what has to be known of its connection;
it stands for itself, so whoever takes it need not know who gave it, nor be of the same version:

    v         the version of the message; who does not know it does not take
    server    address and port of the listener; path and null of a Unix socket
    client    text, address, port: as the kernel or a PROXY header told it
    since_ns  when the client was last served, or accepted (CLOCK_MONOTONIC), so that its deadline goes on
    served    whether it has had a response
    queue_ms  how long it had waited to be accepted, while that is to be logged with its first request; else null
    evened    it was given for the sake of evenness, and stays for a while
    master    pid of the giver's master
    sent_ns   when it was given (CLOCK_MONOTONIC)

A message is filled up to SIZE, so that the kernel's count of bytes is a count of connections, which nobody has to keep.
How many fit is the kernel's business, too: the send buffer is so small that a giver that is faster than all takers gets
EAGAIN, and keeps its connection until there is room.

A descriptor that arrives in a process that has no free number is lost (unix(7), MSG_CTRUNC). So a taker holds one back,
and gives it up for the moment of the call.
"""

from __future__ import annotations

import _socket
import array
import fcntl
import json
import os
import socket
import struct
import termios
from contextlib import suppress
from dataclasses import dataclass, fields
from time import monotonic_ns

from prefork.core.log import printable

VERSION = 1
SIZE = 3072  # bytes of a message: the longest names of a client and of a listener fit, whatever is in them
_BUFFER = 70 * 1024  # bytes, doubled by the kernel (socket(7)): so 32 messages fit, of 4.3 KB each there
_TEXT_MOST = 120  # characters of what names a client: those of a path (unix(7)), and some more
_FAMILIES = frozenset({int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)})
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_ROOM_OF_ONE = socket.CMSG_SPACE(4)  # bytes: of one descriptor
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
Server = tuple[str, int | None]  # Listener.server


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMessage:
    """What a message tells of a connection; see above."""

    server: Server
    client: tuple[str, str, int]
    since_ns: int
    served: bool
    queue_ms: int | None
    evened: bool
    master: int
    sent_ns: int

    def encode(self) -> bytes:
        """Return the message. What names a client is as in a log: in full, unless it is very long or not printable."""
        text, address, port = self.client
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"v": VERSION, "client": (printable(text)[:_TEXT_MOST], address, port)}
        return json.dumps(values, separators=(",", ":")).encode().ljust(SIZE)

    @classmethod
    def decode(cls, data: bytes) -> TransferMessage:
        """Read a message. Raises ValueError: who sent it may be anybody who could write to this socket."""
        try:
            values = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        match values:
            case {
                "v": 1,
                "server": [str(host), int() | None as port],
                "client": [str(text), str(address), int(client_port)],
                "since_ns": int(since_ns),
                "served": bool(served),
                "queue_ms": int() | None as queue_ms,
                "evened": bool(evened),
                "master": int(master),
                "sent_ns": int(sent_ns),
            } if _can_be_name(text) and 0 <= client_port <= 65535:
                now_ns = monotonic_ns()
                return cls(
                    server=(host, port),
                    client=(text, address, client_port),
                    since_ns=min(since_ns, now_ns),
                    served=served,
                    queue_ms=queue_ms,
                    evened=evened,
                    master=master,
                    sent_ns=min(sent_ns, now_ns),
                )
        raise ValueError(f"not a connection: {data[:40]!r}")


def _can_be_name(text: str) -> bool:
    return len(text) <= _TEXT_MOST and text.isprintable()


class TransferQueue:
    """MASTER makes it, workers inherit it."""

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        """`fds`: of the master before. Raises OSError if there is no descriptor left, or these are no sockets."""
        if fds is None:
            self._out, self._in = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        else:
            self._out, self._in = (_socket.socket(fileno=fd) for fd in fds)
            for fd in fds:
                os.set_inheritable(fd, False)
        for end in (self._out, self._in):
            end.settimeout(None)  # an application may have set a default one; then Python waits before each call
        self._spare = -1  # of the process that takes

    @property
    def fds(self) -> tuple[int, int]:
        """Where connections go in, and where they come out: that one is readable when some wait."""
        return self._out.fileno(), self._in.fileno()

    def waiting(self) -> int:
        """How many connections wait to be taken."""
        (size,) = struct.unpack("i", fcntl.ioctl(self._in.fileno(), termios.FIONREAD, b"\0\0\0\0"))
        return -(-int(size) // SIZE)

    def oldest_ns(self) -> int:
        """When the connection was given that waits the longest (CLOCK_MONOTONIC, ns); 0 if none does."""
        try:
            # Without room for descriptors none is made. A message that nobody can read is old: somebody has to take it.
            return TransferMessage.decode(self._in.recv(SIZE, socket.MSG_DONTWAIT | socket.MSG_PEEK)).sent_ns
        except BlockingIOError:
            return 0
        except ValueError:
            return 1

    def give(self, fd: int, message: bytes) -> bool:
        """Put a connection into the queue; False if it has no room now. The caller still has its descriptor."""
        if len(message) != SIZE:
            return False
        try:
            self._out.sendmsg([message], [(*_RIGHTS, struct.pack("i", fd))], socket.MSG_DONTWAIT)
        except OSError:  # EAGAIN: it is full; ETOOMANYREFS, ENOBUFS: the system has no room
            return False
        return True

    def take(self) -> tuple[_socket.socket | None, TransferMessage] | None:
        """Take a connection; None if none waits, or this process has no descriptor for it.

        It comes without its socket if it has ended on its way. Raises ValueError if what was taken tells of none.
        """
        if self._spare < 0 and not self._hold_spare():
            return None
        os.close(self._spare)
        try:
            data, ancillary, flags, _ = self._in.recvmsg(SIZE, _ROOM_OF_ONE, _FLAGS)
        except BlockingIOError:
            return None
        finally:
            self._hold_spare()
        if not data:
            return None  # the end: an application has shut it down
        fds = [fd for level, kind, value in ancillary if (level, kind) == _RIGHTS for fd in _ints(value)]
        sock = None
        try:
            message = TransferMessage.decode(data)
            if len(fds) == 1 and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                sock = _connection(fds[0])
        finally:
            for fd in fds if sock is None else ():
                os.close(fd)
        return sock, message

    def close(self) -> None:
        """Close both ends, in this process."""
        self._out.close()
        self._in.close()
        if self._spare >= 0:
            os.close(self._spare)

    def _hold_spare(self) -> bool:
        self._spare = -1
        with suppress(OSError):
            self._spare = os.eventfd(0, os.EFD_CLOEXEC)
        return self._spare >= 0


def _ints(data: bytes) -> array.array[int]:
    found = array.array("i")
    found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found


def _connection(fd: int) -> _socket.socket | None:
    """The socket of a descriptor; None, and the descriptor is still the caller's, if it is no connection (any more)."""
    try:
        sock = _socket.socket(fileno=fd)
    except OSError:
        return None  # no socket
    with suppress(OSError):
        if sock.type == socket.SOCK_STREAM and sock.family in _FAMILIES and sock.getpeername() is not None:
            return sock
    sock.detach()
    return None
