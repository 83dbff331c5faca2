"""WORKER. Who is at the other end of a connection; of HTTP, or said to be there by a load balancer's PROXY header."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefork.core.address import format_sockaddr
from prefork.status.scoreboard import lead, request_mark

if TYPE_CHECKING:
    from prefork.http.request import Request

Told = TypeVar("Told")


class Peer(Generic[Told]):
    """WORKER. `text` is for people, `told` for the application (HttpSite.told).

    `address` is `unix:` on a Unix socket. `trusted`: what it says of others is believed. `queue_ms`: how long the
    connection waited to be taken, until that is logged with its first request; None if it is not known. `mark`: what
    the scoreboard is to say of its request, with that `method` and `target`.
    """

    __slots__ = ("_lead", "address", "mark", "method", "port", "queue_ms", "target", "text", "told", "trusted")

    def __init__(self, text: str, address: str, port: int, told: Told, *, trusted: bool) -> None:
        self.text = text
        self._lead = lead(text)
        self.method, self.target, self.mark = "", b"", b""
        self.address = address
        self.port = port
        self.told = told
        self.trusted = trusted
        self.queue_ms: int | None = None

    def asks(self, request: Request) -> None:
        """Make the mark of a request. Who asks for the same again has it: the parser remembers lines."""
        self.method, self.target = request.method, request.target
        self.mark = request_mark(self._lead, request.method, request.target)


def peer_of(transport: Any) -> str:
    """Who is at the other end of an asyncio transport, for people."""
    sockaddr = transport.get_extra_info("peername")
    if not isinstance(sockaddr, tuple):
        return format_sockaddr(socket.AF_UNIX, sockaddr)
    return format_sockaddr(socket.AF_INET if len(sockaddr) == 2 else socket.AF_INET6, sockaddr)
