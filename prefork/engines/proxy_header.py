"""WORKER. The PROXY header of a connection from a load balancer, before TLS and before HTTP.

Not a byte behind the header may be read here, as it is the client's, perhaps a TLS handshake's. So the input is looked
at, and only what is known to be the header is taken.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from prefork.http.proxy_protocol import V2_MOST, parse

if TYPE_CHECKING:
    from prefork.http.proxy_protocol import ProxyHeader


class ProxyInput:
    """WORKER. Takes it from a non-blocking socket, as it comes. `ended`: no header will."""

    __slots__ = ("_sock", "_taken", "ended")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._taken = b""
        self.ended = False

    @property
    def begun(self) -> bool:
        """Whether some of it has come."""
        return bool(self._taken)

    def take(self) -> ProxyHeader | None:
        """Return it, or None if more has to come. Raises BlockingIOError, OSError and ProxyProtocolError."""
        seen = self._sock.recv(V2_MOST, socket.MSG_PEEK)
        header = parse(self._taken + seen) if seen else None
        size = header.consumed - len(self._taken) if header else len(seen)
        self._taken += self._sock.recv(size)
        self.ended = header is None and (not seen or len(self._taken) >= V2_MOST)
        return header
