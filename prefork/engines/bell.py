"""WORKER. A wait for something to happen that may happen again; of asyncio's Event, what few connections ever need."""

from __future__ import annotations

import asyncio


class Bell:
    """WORKER. Whoever waits hears the next ring. It costs next to nothing as long as nobody does."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def ring(self) -> None:
        """It has happened."""
        if self._event is not None:
            self._event.set()

    async def heard(self) -> None:
        """Wait for the next ring."""
        if self._event is None:
            self._event = asyncio.Event()
        self._event.clear()
        await self._event.wait()
