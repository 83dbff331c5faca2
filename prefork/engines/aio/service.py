"""WORKER. What an asyncio worker does with its connections, by the kind of the app."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from prefork.core.listener import Listener
from prefork.engines.aio.connections import Crowd
from prefork.engines.aio.heartbeat import Pulse
from prefork.engines.context import Station
from prefork.engines.error_log import Complaints


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """WORKER. What every service is given."""

    station: Station
    loop: asyncio.AbstractEventLoop
    crowd: Crowd
    pulse: Pulse
    complaints: Complaints


class Service(Protocol):
    """How the connections of one kind of app are served."""

    def __init__(self, premises: Premises) -> None: ...

    def protocol(self, listener: Listener, told: Any = None, /) -> asyncio.BaseProtocol:
        """What serves the next connection of a listener. It joins and leaves the crowd by itself.

        `told`: what is known of the client: of HTTP its Peer, else the address that accept() gave.
        """

    async def begin(self) -> None:
        """Before the first connection. Raises BootError."""

    def retire(self, *, stopping: bool) -> None:
        """Tell the clients to end. `stopping`: the whole server does, else a successor serves on."""

    @property
    def busy(self) -> int:
        """What still runs without a connection."""

    def names(self) -> dict[asyncio.Task[None], str]:
        """Which task serves whom; for a signal handler, so it only looks."""

    def cut(self) -> None:
        """Their time is over: have what still runs end."""

    async def end(self, timeout_s: float) -> None:
        """After the last connection."""
