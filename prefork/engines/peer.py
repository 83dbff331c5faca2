"""WORKER. Who is at the other end of an HTTP connection, or said to be there by a load balancer's PROXY header."""

from __future__ import annotations

from typing import Generic, TypeVar

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
