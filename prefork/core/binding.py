"""From an address to a bound socket: resolve, create, bind, each failed step with its reason and what to do."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time

from prefork.core.address import Address
from prefork.errors import BindError

BIND_RETRY_S = 2.0  # a predecessor that is still dying holds the port
_RETRY_STEP_S = 0.05

Sockaddr = tuple[object, ...] | str


def bound_socket(address: Address, sockaddr: Sockaddr, *, join: bool = False) -> socket.socket:
    """A socket bound to `sockaddr`, which is where `address` leads. Raises BindError.

    EADDRINUSE is tried again for BIND_RETRY_S. With `join` the port may be one that this user has sockets on, if they
    allow it (socket(7), SO_REUSEPORT); without, it must be free.
    """
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
    except OSError as error:
        raise BindError(f"cannot create a socket for {address}: {error.strerror}") from None
    try:
        _set_options(sock)
        if join:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_UNIX:
            _remove_stale(address)
        _bind(sock, sockaddr, address)
    except BaseException:
        sock.close()
        raise
    return sock


def resolve(address: Address) -> Sockaddr:
    """What to bind for an address. Raises BindError."""
    if address.family == socket.AF_UNIX:
        return address.path
    try:
        found = socket.getaddrinfo(address.host, address.port, address.family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BindError(f"cannot resolve {address.host!r} of {address}: {reason}") from None
    return found[0][4]


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


_HINTS = {
    errno.EADDRINUSE: "another process listens there (`ss -ltnp` shows which); stop it or choose another address",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher port or pass a listener as fd://N",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address; `ip address` lists them",
}
_PATH_HINTS = {
    errno.EADDRINUSE: "another process listens there (`ss -lxp` shows which); stop it or choose another address",
    errno.EACCES: "this user may not write to its directory",
    errno.ENOENT: "its directory does not exist; create it first",
}


def _bind(sock: socket.socket, sockaddr: Sockaddr, address: Address) -> None:
    give_up = time.monotonic() + BIND_RETRY_S
    while True:
        try:
            sock.bind(sockaddr)
            return
        except OSError as error:
            if error.errno == errno.EADDRINUSE and sock.family != socket.AF_UNIX and time.monotonic() < give_up:
                time.sleep(_RETRY_STEP_S)
                continue
            hint = (_PATH_HINTS if sock.family == socket.AF_UNIX else _HINTS).get(error.errno or 0)
            raise BindError(f"cannot bind {address}: {error.strerror}" + (f"; {hint}" if hint else "")) from None
