"""WORKER. Who is at the other end of a connection; of HTTP, or said to be there by a load balancer's PROXY header."""

from __future__ import annotations

import socket
from typing import Any, Generic, TypeVar

from ..address import format_sockaddr
from ..scoreboard import lead

Told = TypeVar("Told")


class Peer(Generic[Told]):
    """WORKER. `text` is for people, `lead` for the scoreboard, `told` for the application (HttpSite.told).

    `address` is `unix:` on a Unix socket. `trusted`: what it says of others is believed. `queue_ms`: how long the
    connection waited to be taken, until that is logged with its first request; None if it is not known.
    """

    __slots__ = ("address", "lead", "port", "queue_ms", "text", "told", "trusted")

    def __init__(self, text: str, address: str, port: int, told: Told, *, trusted: bool) -> None:
        self.text = text
        self.lead = lead(text)
        self.address = address
        self.port = port
        self.told = told
        self.trusted = trusted
        self.queue_ms: int | None = None


def peer_of(transport: Any) -> str:
    """Who is at the other end of an asyncio transport, for people."""
    sockaddr = transport.get_extra_info("peername")
    if not isinstance(sockaddr, tuple):
        return format_sockaddr(socket.AF_UNIX, sockaddr)
    return format_sockaddr(socket.AF_INET if len(sockaddr) == 2 else socket.AF_INET6, sockaddr)
