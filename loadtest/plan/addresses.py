"""The forms of `--host`: tcp://HOST:PORT, http://HOST[:PORT], ws://HOST[:PORT], both with an s for TLS, and for every
scenario unix:PATH and HOST:PORT.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

DEFAULT = "127.0.0.1:1935"
_SCHEMES = {"tcp": ("tcp",), "http": ("http", "https"), "websocket": ("ws", "wss")}
_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_SECURE = ("https", "wss")
_MOST_PATH = 107  # bytes, by the kernel's sockaddr_un


class AddressError(ValueError):
    """A `--host` is not an address, or is one of another protocol. The message says what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server listens: a host (name, IPv4, bare IPv6) and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """The server's name in a request (Host)."""
        return "localhost" if self.path else str(self)

    def resolve(self) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
        """Return the family and the socket address to connect to: of a name its first IPv4 address, else its first.

        Resolved once, before any clock runs: the lab measures servers, not name servers. Raises OSError for an unknown
        name.
        """
        if self.path:
            return socket.AF_UNIX, self.path
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        family, _, _, _, sockaddr = min(found, key=lambda info: info[0] != socket.AF_INET)
        return family, (str(sockaddr[0]), self.port)


def parse(text: str, protocol: str, *, unix: bool = True) -> Address:
    """Read a `--host` for a user that speaks `protocol` (tcp, http or websocket), over Unix sockets too if `unix`.

    Raises AddressError.
    """
    schemes = _SCHEMES[protocol]
    forms = ", ".join([*(f"{scheme}://HOST:PORT" for scheme in schemes), *(["unix:PATH"] if unix else [])])
    try:
        scheme, rest = _split(text.strip())
        if scheme == "unix" and not unix:
            raise ValueError("this user cannot speak over Unix sockets; that of --engine fast can")
        return _parsed(scheme, rest, protocol)
    except ValueError as error:
        raise AddressError(f"--host {text!r}: {error}; write {forms} or HOST:PORT") from None


def endpoint(text: str) -> Address:
    """Read HOST:PORT or unix:PATH. Raises ValueError."""
    scheme, rest = _split(text.strip())
    if scheme not in ("", "unix"):
        raise ValueError(f"{scheme}:// does not belong here")
    return _parsed(scheme, rest, "tcp")


def _split(text: str) -> tuple[str, str]:
    """Split off the scheme, which is empty when there is none."""
    scheme, separator, rest = text.partition("://")
    if separator:
        return scheme, rest
    return ("unix", text.removeprefix("unix:")) if text.startswith("unix:") else ("", text)


def _parsed(scheme: str, rest: str, protocol: str) -> Address:
    schemes = _SCHEMES[protocol]
    if scheme == "unix":
        return _socket_file(rest)
    if scheme and scheme not in schemes:
        raise ValueError(f"the scenario speaks {' or '.join(schemes)}, not {scheme}")
    return _host_and_port(rest.removesuffix("/") if scheme else rest, scheme)


def _socket_file(path: str) -> Address:
    if not path:
        raise ValueError("the path is missing")
    if len(os.fsencode(path)) > _MOST_PATH or "\0" in path:
        raise ValueError(f"the path of a socket has {_MOST_PATH} bytes at most")
    return Address(path=path)


def _host_and_port(rest: str, scheme: str) -> Address:
    if "/" in rest:
        raise ValueError("an address has no path (--path is for that of a request)")
    host, colon, port = rest.rpartition(":")
    if not colon or (host.startswith("[") and rest.endswith("]")):  # no port, or the last colon is inside [IPv6]
        if scheme not in _PORTS or not rest:
            raise ValueError("the port is missing")
        host = rest
        port = _PORTS[scheme]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port (1 to 65535)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets, [::1]:1935")
    if not host:
        raise ValueError("the host is missing")
    return Address(host=host, port=int(port), tls=scheme in _SECURE)
