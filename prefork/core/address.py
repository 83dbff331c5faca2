"""Addresses as users write them and as the kernel gives them."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

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


def format_sockaddr(family: int, sockaddr: object) -> str:
    """`127.0.0.1:1935`, `[::1]:1935`, `unix:/run/x.sock`; `unix:` for a nameless peer."""
    if family == socket.AF_UNIX:
        return "unix:" + (os.fsdecode(sockaddr) if isinstance(sockaddr, (str, bytes)) else "")
    host, port = sockaddr[0], sockaddr[1]  # type: ignore[index]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
