"""CLIENT. The other half of the life cycle: create, connect, write, half-close, read to the end, close.

Every step that fails says which step, on which address, and the system's reason.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from prefork.core.address import Address
from prefork.errors import PreforkError

_CHUNK = 65536

# The server closed before it had read all of the request: what it sent before that can still be read.
CLOSED_EARLY = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class SendError(PreforkError):
    """A step of the exchange failed."""


def exchange(
    address: Address,
    request: bytes,
    *,
    timeout_s: float,
    received: Callable[[bytes], None],
    tell: Callable[[str], None],
) -> int:
    """Send `request` and pass on what comes back, piece by piece; return how many bytes that was.

    `timeout_s` bounds each step. `tell` narrates. Raises SendError.
    """
    step, closed_early = "create a socket for", False
    try:
        with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            tell(f"created a socket for {address}")
            step = "connect to"
            sock.connect(address.path or (address.host, address.port))
            tell(f"connected to {address} from {_name(sock)}")
            try:
                step = f"write {len(request)} bytes to"
                sock.sendall(request)
                tell(f"wrote {len(request)} bytes")
                step = "half-close"
                sock.shutdown(socket.SHUT_WR)
                tell("half-closed: no more to send")
            except OSError as error:
                if error.errno not in CLOSED_EARLY:
                    raise
                tell(f"the server has closed already: {error.strerror}")  # its reply may be there all the same
                closed_early = True
            step = "read from"
            size = 0
            while chunk := _receive(sock, reset_is_end=closed_early and size > 0):
                size += len(chunk)
                _pass_on(chunk, received)
            tell(f"read {size} bytes to the end")
        tell("closed")
    except OSError as error:
        reason = (
            f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        )
        raise SendError(f"cannot {step} {address}: {reason}{_hint(error)}") from None
    except UnicodeError as error:
        raise SendError(f"cannot {step} {address}: {error}") from None
    return size


def _receive(sock: socket.socket, *, reset_is_end: bool) -> bytes:
    """Read a piece. After a server closed without reading all, the reset behind its reply is the reply's end."""
    try:
        return sock.recv(_CHUNK)
    except OSError as error:
        if reset_is_end and error.errno in CLOSED_EARLY:
            return b""
        raise


def _pass_on(chunk: bytes, received: Callable[[bytes], None]) -> None:
    try:
        received(chunk)
    except BrokenPipeError:
        raise SystemExit(1) from None  # whoever read our output has gone
    except OSError as error:
        raise SendError(f"cannot write to standard output: {error.strerror}") from None


def _family(address: Address) -> socket.AddressFamily:
    if address.family == socket.AF_UNSPEC:
        raise SendError(f"cannot connect to {address}: give HOST:PORT, [V6]:PORT or unix:PATH")
    return address.family


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "an unnamed socket"


def _hint(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "; nobody listens there: is the server up? (`prefork serve`)"
    if isinstance(error, FileNotFoundError):
        return "; there is no such socket"
    return ""


def head_request(address: Address, path: str) -> bytes:
    """An HTTP/1.1 HEAD request that asks the server to close (RFC 9110 9.3.2, RFC 9112 3.2)."""
    host = str(address) if address.host else "localhost"
    for name, value in (("path", path), ("host", host)):
        if not value.isprintable() or not value.isascii() or " " in value:
            raise SendError(f"cannot ask for the {name} {value!r}: it needs percent-encoding")
    return f"HEAD {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
