"""The forms of `--host`: tcp://HOST:PORT, http://HOST[:PORT], unix:PATH, and HOST:PORT, which suits every scenario."""

from __future__ import annotations

import socket
from dataclasses import dataclass

DEFAULT = "127.0.0.1:1935"


class AddressError(ValueError):
    """A `--host` that is no address, or one of another protocol. The message says what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server listens: a host (name, IPv4, bare IPv6) and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def resolve(self) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
        """The family and the socket address to connect to; a name gives its first IPv4 address, else its first.

        Resolved once, before any clock runs: the lab measures servers, not name servers. Raises OSError for an unknown
        name.
        """
        if self.path:
            return socket.AF_UNIX, self.path
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        family, _, _, _, sockaddr = min(found, key=lambda info: info[0] != socket.AF_INET)
        return family, (str(sockaddr[0]), self.port)


def parse(text: str, protocol: str, *, unix: bool = True) -> Address:
    """Read a `--host` for a user that speaks `protocol` ("tcp" or "http"), over Unix sockets too if `unix` says so.

    Raises AddressError.
    """
    forms = f"{protocol}://HOST:PORT, unix:PATH or HOST:PORT" if unix else f"{protocol}://HOST:PORT or HOST:PORT"
    try:
        return _parsed(text, protocol, unix=unix)
    except ValueError as error:
        raise AddressError(f"--host {text!r}: {error}; write {forms}") from None


def _parsed(text: str, protocol: str, *, unix: bool) -> Address:
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = protocol, text.strip()
        if rest.startswith("unix:"):
            scheme, rest = "unix", rest.removeprefix("unix:")
    if scheme not in ((protocol, "unix") if unix else (protocol,)):
        raise ValueError(f"the scenario speaks {protocol}, not {scheme}")
    if scheme == "unix":
        if not rest:
            raise ValueError("the path is missing")
        return Address(path=rest)
    return _host_and_port(text, protocol, rest.removesuffix("/"))


def _host_and_port(text: str, protocol: str, rest: str) -> Address:
    if "/" in rest:
        raise ValueError("an address has no path")
    host, colon, port = rest.rpartition(":")
    if not colon or (host.startswith("[") and rest.endswith("]")):  # no port, or the last colon is inside [IPv6]
        if protocol != "http" or not rest or rest == text.strip():
            raise ValueError("the port is missing")
        host, port = rest, "80"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port (1 to 65535)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets, [::1]:1935")
    if not host:
        raise ValueError("the host is missing")
    return Address(host=host, port=int(port))
