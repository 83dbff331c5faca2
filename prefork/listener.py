"""Addresses and listeners: create, bind, listen, with every failed step named.

A listener is made once, by the master, and inherited by every worker. O_NONBLOCK and SO_RCVTIMEO belong to the socket
that all processes share, so nobody may rely on how another one left them.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
import time
from dataclasses import dataclass

from .errors import BindError
from .plug import Plug

BIND_RETRY_S = 2.0  # a predecessor that is still dying holds the port
_RETRY_STEP_S = 0.05

# How long an accept() that nobody answers holds a worker that has been told to retire (socket(7), SO_RCVTIMEO).
ACCEPT_WAIT_S = 0.5

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
FORMS = "HOST:PORT, [V6]:PORT, unix:PATH or fd://N"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener is. `family` is AF_INET, AF_INET6, AF_UNIX, or AF_UNSPEC for an inherited descriptor."""

    family: socket.AddressFamily
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read one of FORMS; ValueError says what is wrong with it."""
        if text.startswith("unix:"):
            return cls._unix(text.removeprefix("unix:"))
        if text.startswith("fd://"):
            number = text.removeprefix("fd://")
            if not _PORT.fullmatch(number):
                raise ValueError(f"{text!r}: {number!r} is not the number of a file descriptor")
            return cls(socket.AF_UNSPEC, fd=int(number))
        host, colon, port = text.rpartition(":")
        if not colon or "/" in text or (text.startswith("[") and not host.endswith("]")):
            raise ValueError(f"{text!r} is not an address: {FORMS}")
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise ValueError(f"{text!r}: {port!r} is not a port (0 to 65535)")
        if host.startswith("[") and host.endswith("]"):
            return cls(socket.AF_INET6, host=host[1:-1], port=int(port))
        if ":" in host:
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, [{host}]:{port}")
        if not host:
            raise ValueError(f"{text!r} has no host; 0.0.0.0:{port} is every IPv4 address of this machine")
        return cls(socket.AF_INET, host=host, port=int(port))

    @classmethod
    def _unix(cls, path: str) -> Address:
        if not path:
            raise ValueError("'unix:' has no path")
        if len(os.fsencode(path)) > 107:  # sizeof(sun_path) - 1, unix(7)
            raise ValueError(f"unix:{path!r} is longer than the 107 bytes a socket path may have")
        return cls(socket.AF_UNIX, path=path)

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return f"unix:{self.path}"
        if self.family == socket.AF_UNSPEC:
            return f"fd://{self.fd}"
        return f"[{self.host}]:{self.port}" if self.family == socket.AF_INET6 else f"{self.host}:{self.port}"


class Listener:
    """MASTER makes it, workers inherit it. `address` is the real one: port 0 has become a number."""

    def __init__(self, sock: socket.socket, address: str, plug: Plug | None = None) -> None:
        self.sock = sock
        self.address = address
        self.owned = plug is not None  # made by us: on stop its queue is ours to drain
        self._plug = plug
        self._inode = _inode(address.removeprefix("unix:")) if self.owned and sock.family == socket.AF_UNIX else None

    def queue(self) -> tuple[int, int] | None:
        """Connections that wait for accept() and how many may (tcp(7), TCP_INFO: tcpi_unacked, tcpi_sacked).

        None for a Unix socket, where the kernel does not tell.
        """
        if self.sock.family == socket.AF_UNIX:
            return None
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        waiting, limit = struct.unpack_from("=II", info, 24)
        return waiting, limit

    def waiting(self) -> bool:
        """True if connections of ours to serve are known to wait for accept()."""
        queue = self.queue() if self.owned else None
        return queue is not None and queue[0] > 0

    def close(self) -> None:
        """Close this process's copy. Never shutdown() one of TCP: that would reset the queue of every process."""
        self.sock.close()
        if self._plug is not None:
            self._plug.close()

    def hold_off(self) -> None:
        """MASTER, at the stop. Newcomers wait, then are refused; the queue stays for the workers to drain."""
        if self._plug is not None:
            self.sock.setblocking(False)  # for all processes: none may sleep in accept() any more
            self._plug.engage(self.sock)

    def unlink(self) -> None:
        """MASTER, at the end. Remove the path of a Unix socket, unless it is another one's by now."""
        path = self.address.removeprefix("unix:")
        if self._inode is not None and _inode(path) == self._inode:
            os.unlink(path)


def open_listener(address: Address, *, backlog: int) -> Listener:
    """Create, bind and listen, or adopt an inherited descriptor. Raises BindError.

    EADDRINUSE is tried again for BIND_RETRY_S; with port 0 the kernel picks one.
    """
    if address.family == socket.AF_UNSPEC:
        return _adopt(address)
    family, sockaddr = _resolve(address)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise BindError(f"cannot create a socket for {address}: {error.strerror}") from None
    plug = Plug()
    try:
        _set_options(sock)
        if address.family == socket.AF_UNIX:
            _remove_stale(address)
        _bind(sock, sockaddr, address)
        plug.prepare(sock)
        try:
            plug.prepared(sock)
            sock.listen(backlog)
        except OSError as error:
            raise BindError(f"cannot listen on {address}: {error.strerror}") from None
    except BaseException:
        sock.close()
        plug.close()
        raise
    return Listener(sock, format_sockaddr(family, sock.getsockname()), plug)


def _resolve(address: Address) -> tuple[socket.AddressFamily, tuple[object, ...] | str]:
    if address.family == socket.AF_UNIX:
        return address.family, address.path
    try:
        found = socket.getaddrinfo(address.host, address.port, address.family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BindError(f"cannot resolve {address.host!r} of {address}: {reason}") from None
    family, _type, _proto, _name, sockaddr = found[0]
    return family, sockaddr


def _set_options(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a predecessor's TIME_WAITs do not hold the port
    # Accepted sockets inherit it. Without it a greeting and a reply wait 40 ms for the client's delayed ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _remove_stale(address: Address) -> None:
    """Remove a socket whose server was killed: nobody answers there. A live one, or any other file, is left alone."""
    try:
        if not stat.S_ISSOCK(os.stat(address.path).st_mode):
            raise BindError(f"cannot bind {address}: there is a file of that name that is not a socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise BindError(f"cannot bind {address}: {error.strerror}") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live server with a full queue answers EAGAIN
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
        except OSError:
            pass  # alive, or not ours to judge: bind() will say


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_HINTS = {
    errno.EADDRINUSE: "another process listens there (`ss -ltnp` shows which); stop it or choose another --bind",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher port or pass a listener as fd://N",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address; `ip address` lists them",
    errno.ENOENT: "its directory does not exist; create it first",
}


def _bind(sock: socket.socket, sockaddr: tuple[object, ...] | str, address: Address) -> None:
    give_up = time.monotonic() + BIND_RETRY_S
    while True:
        try:
            sock.bind(sockaddr)
            return
        except OSError as error:
            if error.errno == errno.EADDRINUSE and sock.family != socket.AF_UNIX and time.monotonic() < give_up:
                time.sleep(_RETRY_STEP_S)
                continue
            hint = _HINTS.get(error.errno or 0)
            raise BindError(f"cannot bind {address}: {error.strerror}" + (f"; {hint}" if hint else "")) from None


def _adopt(address: Address) -> Listener:
    """Take over a listener that another program made: it is left as it is and never closed for others."""
    try:
        sock = socket.socket(fileno=os.dup(address.fd))
    except OSError as error:
        raise BindError(f"cannot use {address}: {error.strerror}; no socket is open there") from None
    try:
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listening = 0
    if not listening or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise BindError(f"cannot use {address}: it is not a listening stream socket")
    return Listener(sock, format_sockaddr(sock.family, sock.getsockname()))


def format_sockaddr(family: int, sockaddr: object) -> str:
    """`127.0.0.1:1935`, `[::1]:1935`, `unix:/run/x.sock`; `unix:` for a nameless peer."""
    if family == socket.AF_UNIX:
        return "unix:" + (os.fsdecode(sockaddr) if isinstance(sockaddr, (str, bytes)) else "")
    host, port = sockaddr[0], sockaddr[1]  # type: ignore[index]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"


def timeval(seconds: float) -> bytes:
    """`struct timeval` for SO_RCVTIMEO and SO_SNDTIMEO. 0 means no limit there, so that nothing rounds down to it."""
    micros = max(1, round(seconds * 1_000_000))
    return struct.pack("@ll", micros // 1_000_000, micros % 1_000_000)
