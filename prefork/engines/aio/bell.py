"""WORKER. A wait for something to happen that may happen again.

What asyncio.Event does, with a bare future for each wait (measured: 2 of 14 us for a message of a WebSocket).
"""

from __future__ import annotations

import asyncio


class Bell:
    """WORKER. Whoever waits hears the next ring."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        """It has happened."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():  # cancelled
                    future.set_result(None)

    def heard(self) -> asyncio.Future[None]:
        """The next ring, to be awaited."""
        if self._waiting:  # without those that were cancelled: some look in for a moment, again and again
            self._waiting = [future for future in self._waiting if not future.done()]
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future
