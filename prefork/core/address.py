"""Addresses as users write them and as the kernel gives them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)
FORMS = "HOST:PORT, [V6]:PORT, :PORT (every address), PORT (127.0.0.1), unix:PATH or fd://N"
_MAPPED = "::ffff:"  # begins an IPv4 address on an IPv6 socket (RFC 4291, 2.5.5.2)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener is. `family` is AF_INET, AF_INET6, AF_UNIX, or AF_UNSPEC for an inherited descriptor.

    AF_INET6 without a host is every address, IPv4 and IPv6. `v6_only`: IPv4 comes in elsewhere (see `part_families`).
    `mode`: of the file of a Unix socket that is made here; None = as the umask has it.
    """

    family: socket.AddressFamily
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1
    v6_only: bool = False
    mode: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read one of FORMS; ValueError says what is wrong with it."""
        if text.startswith("unix:"):
            path, comma, mode = text.removeprefix("unix:").rpartition(",mode=")
            if comma and not _MODE.fullmatch(mode):
                raise ValueError(f"{text!r}: {mode!r} is not the mode of a file in octal, such as 660")
            return cls.of_path(path, int(mode, 8)) if comma else cls.of_path(mode)
        if text.startswith("fd://"):
            number = text.removeprefix("fd://")
            if not _PORT.fullmatch(number):
                raise ValueError(f"{text!r}: {number!r} is not the number of a file descriptor")
            return cls(socket.AF_UNSPEC, fd=int(number))
        if _PORT.fullmatch(text):
            text = f"127.0.0.1:{text}"
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
            return cls(socket.AF_INET6, port=int(port))
        return cls(socket.AF_INET, host=host, port=int(port))

    @classmethod
    def of_path(cls, path: str, mode: int | None = None) -> Address:
        """The address of a Unix socket. Raises ValueError."""
        if not path:
            raise ValueError("'unix:' has no path")
        if len(os.fsencode(path)) > 107:  # sizeof(sun_path) - 1, unix(7)
            raise ValueError(f"unix:{path!r} is longer than the 107 bytes a socket path may have")
        return cls(socket.AF_UNIX, path=path, mode=mode)

    @property
    def written(self) -> str:
        """As it is written in a configuration; `str()` is where it leads."""
        return str(self) if self.mode is None else f"{self},mode={self.mode:03o}"

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return f"unix:{self.path}"
        if self.family == socket.AF_UNSPEC:
            return f"fd://{self.fd}"
        in_brackets = self.family == socket.AF_INET6 and self.host
        return f"[{self.host}]:{self.port}" if in_brackets else f"{self.host}:{self.port}"


def part_families(addresses: Sequence[Address]) -> list[Address]:
    """The same, but an address that could take IPv4 as well leaves it to one of IPv4 that has its port.

    `[::]:8000` is both families; together with `0.0.0.0:8000` it is IPv6, as the kernel binds a port only once.
    """
    ports = {address.port for address in addresses if address.family == socket.AF_INET}
    return [
        replace(address, v6_only=True) if address.family == socket.AF_INET6 and address.port in ports - {0} else address
        for address in addresses
    ]


def plain_host(host: str) -> str:
    """`192.0.2.1` of `::ffff:192.0.2.1`, as an IPv6 socket names a peer that has come by IPv4; others unchanged."""
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def format_sockaddr(family: int, sockaddr: object) -> str:
    """`127.0.0.1:1935`, `[::1]:1935`, `unix:/run/x.sock`; `unix:` for a nameless peer.

    A peer that has come to an IPv6 socket by IPv4 has its IPv4 address.
    """
    if family == socket.AF_UNIX:
        return "unix:" + (os.fsdecode(sockaddr) if isinstance(sockaddr, (str, bytes)) else "")
    host, port = sockaddr[0], sockaddr[1]  # type: ignore[index]
    if family == socket.AF_INET6:
        plain = plain_host(host)
        return f"[{host}]:{port}" if plain is host else f"{plain}:{port}"
    return f"{host}:{port}"
