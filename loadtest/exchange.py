"""One whole exchange of a scenario over a plain socket: the proof that a server is ready for load."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Address = tuple[str, int]

_WORD = b"ready"


class WrongReplyError(Exception):
    """The server answered, but not what this scenario expects."""


def exchange(scenario: str, address: Address, timeout_s: float) -> None:
    """Go through one exchange. Raises OSError while nobody answers, WrongReplyError when the answer is another."""
    with socket.create_connection(address, timeout=timeout_s) as connection:
        _SCENARIOS[scenario](connection)


def _talkback(connection: socket.socket) -> None:
    with connection.makefile("rb") as reader:
        connection.sendall(_WORD + b"\n")  # before the greeting: a server of another protocol may wait for us to begin
        _expect(reader.read(), b"hello from prefork\nyou said: " + _WORD + b"\n")


def _echo(connection: socket.socket) -> None:
    with connection.makefile("rb") as reader:
        connection.sendall(_WORD + b"\n")
        _expect(reader.readline(), _WORD + b"\n")


def _http(connection: socket.socket) -> None:
    host, port = connection.getpeername()[:2]
    host = f"[{host}]" if ":" in host else host
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
    with connection.makefile("rb") as reader:
        line = reader.readline()
        reader.read()
    if not line:
        raise ConnectionError("the connection was closed without an answer")
    if not line.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2")):
        raise WrongReplyError(f"GET / was answered {line!r}, not with a status of 2xx")


def _expect(reply: bytes, expected: bytes) -> None:
    if not reply:
        raise ConnectionError("the connection was closed without an answer")
    if reply != expected:
        raise WrongReplyError(f"answered {reply[:80]!r} where {expected!r} was expected")


_SCENARIOS: dict[str, Callable[[socket.socket], None]] = {
    "talkback": _talkback,
    "nap": _talkback,
    "echo": _echo,
    "http": _http,
}
