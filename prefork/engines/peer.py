"""WORKER. Who is at the other end of an HTTP connection, or said to be there by a load balancer's PROXY header."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from ..address import format_sockaddr
from ..http.environ import Environ, Environs, for_connection
from ..http.trusted import UNIX
from ..scoreboard import mark

if TYPE_CHECKING:
    from ..http.proxy_protocol import End
    from ..http.trusted import Trusted
    from ..listener import Listener


class Peer:
    """WORKER. `text` is for people, `mark` for the scoreboard, `environs` for the application.

    `trusted`: what it says of others is believed.
    """

    __slots__ = ("address", "environs", "mark", "port", "text", "trusted")

    def __init__(self, text: str, address: str, port: int, environ: Environ, *, trusted: bool) -> None:
        self.text = text
        self.mark = mark(text)
        self.address = address  # `unix:` on a Unix socket
        self.port = port
        self.trusted = trusted
        self.environs = Environs(for_connection(environ, "" if address == UNIX else address, port or ""))

    @classmethod
    def of(cls, listener: Listener, sockaddr: Any, environ: Environ, trusted: Trusted) -> Peer:
        """The other end of a connection that was accepted."""
        family = listener.sock.family
        address, port = (UNIX, 0) if family == socket.AF_UNIX else sockaddr[:2]
        text = format_sockaddr(family, sockaddr)
        return cls(text, address, port, environ, trusted=bool(trusted) and trusted.has_peer(address))

    def behind(self, end: End, environ: Environ, trusted: Trusted) -> Peer:
        """The client for whom this peer, a trusted proxy, has connected."""
        text = f"[{end.address}]:{end.port}" if ":" in end.address else f"{end.address}:{end.port}"
        return Peer(text, end.address, end.port, environ, trusted=trusted.has_peer(end.address))
