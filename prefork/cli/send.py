"""CLIENT. `prefork send`, the other half of the life cycle: create, connect, write, half-close, read to the end, close.

Every step that fails says which step, on which address, and the system's reason.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import Any

import click

from prefork.core.address import Address
from prefork.core.units import positive_duration
from prefork.errors import PreforkError

_CHUNK = 65536

# The server closed before it had read all of the request: what it sent before that can still be read.
CLOSED_EARLY = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class SendError(PreforkError):
    """A step of the exchange failed."""


@click.command()
@click.argument("text", required=False)
@click.option("--to", "address", default="127.0.0.1:1935", show_default=True, help="HOST:PORT, [V6]:PORT or unix:PATH.")
@click.option("--timeout", default="10s", show_default=True, metavar="DURATION", help="Limit for each step.")
@click.option("--head", is_flag=True, help="Send an HTTP HEAD request instead of TEXT.")
@click.option("--path", default="/", show_default=True, help="The path that --head asks for.")
@click.option("-v", "--verbose", is_flag=True, help="Print each step to stderr.")
def send(text: str | None, address: str, timeout: str, head: bool, path: str, verbose: bool) -> None:
    """Send TEXT as a line, half-close, and print the whole reply.

    Without TEXT, standard input is sent unchanged.

    \b
      prefork send "good morning"
      prefork send -v hello --to unix:/run/app.sock
      prefork send --head --path /health --to 127.0.0.1:8000
    """
    where = _parsed("--to", address, Address.parse)
    limit_s = _parsed("--timeout", timeout, positive_duration)
    if head:
        request = head_request(where, path)
    elif text is not None:
        request = text.encode("utf-8", "surrogateescape") + b"\n"
    else:
        request = sys.stdin.buffer.read()

    def tell(step: str) -> None:
        if verbose:
            click.echo(f"* {step}", err=True)

    def received(chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    exchange(where, request, timeout_s=limit_s, received=received, tell=tell)


def _parsed(flag: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from None


def exchange(
    address: Address,
    request: bytes,
    *,
    timeout_s: float,
    received: Callable[[bytes], None],
    tell: Callable[[str], None],
) -> int:
    """Send `request`, pass each piece of the reply to `received`, and return the number of bytes of the reply.

    `timeout_s` limits each step. `tell` gets a text for each step. Raises SendError.
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
    """Read a piece. If the server closed early, the reset after its reply counts as the end of the reply."""
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
        raise SystemExit(1) from None  # the reader of our output has gone
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
        return "; no server listens there (`prefork serve` starts one)"
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
