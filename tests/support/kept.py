"""Clients that keep their connections: each waits, asks, waits, over one, and takes every end of it for a loss.

They run in a thread of the test, on an event loop of their own, so that a thousand of them cost little.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Self

from tests.support.client import TIMEOUT_S
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_HEAD = re.compile(rb"HTTP/1\.1 200 OK\r\n(?:[^\r\n]+\r\n)*?Content-Length: (\d+)\r\n", re.IGNORECASE)


class KeptClients:
    """TEST. `count` clients of an address (IPv4 and port) while the context is open.

    Each comes `apart_s` after the one before, and pauses for `pause_s(n)` before its request number n for `path`.
    `answers` counts what the server has said, `losses` tells what went wrong, `told_to_close` counts responses with
    `Connection: close`; after one of those the client pauses first, and then comes back with another connection.
    """

    def __init__(
        self,
        address: str,
        count: int,
        *,
        path: str = "/pid",
        apart_s: float = 0.0,
        pause_s: Callable[[int], float] = lambda _: 0.0,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._where = host, int(port)
        self._count = count
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._apart_s = apart_s
        self._pause_s = pause_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ending = threading.Event()
        self.connected = 0
        self.answers: Counter[bytes] = Counter()
        self.took_s: list[float] = []
        self.told_to_close = 0
        self.losses: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            eventually(lambda: self.connected >= self._count or self.losses, within_s=60, what="all clients connected")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each finish what it has asked for, and leave; one that only connects, or pauses, leaves at once."""
        self._ending.set()
        self._thread.join(2 * TIMEOUT_S)
        assert not self._thread.is_alive(), "clients that still wait for an answer"

    @property
    def asked(self) -> int:
        """How many requests were answered."""
        return self.answers.total()

    def wait_more(self, count: int, *, within_s: float = 30.0) -> None:
        """Wait until so many more requests were answered."""
        before = self.asked
        eventually(lambda: self.asked >= before + count, within_s=within_s, what=f"{count} more answers; {self.losses}")

    # --- in the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._all())
        finally:
            self._loop.close()

    async def _all(self) -> None:
        clients = [asyncio.create_task(self._client(number)) for number in range(self._count)]
        while not self._ending.is_set() and not all(each.done() for each in clients):
            await asyncio.sleep(0.05)
        for each in clients:
            each.cancel("over")
        ends = await asyncio.gather(*clients, return_exceptions=True)  # each has its own time limit
        self.losses += [repr(end) for end in ends if isinstance(end, Exception)]

    async def _client(self, number: int) -> None:
        served, paused = 0, False
        try:
            await asyncio.sleep(number * self._apart_s)
            while True:
                async with asyncio.timeout(TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(*self._where)
                self.connected += 1
                try:
                    while True:
                        if not paused and (pause_s := self._pause_s(served)):
                            await self._wait(reader, pause_s)
                        stays, paused = await self._whole(self._ask(reader, writer)), False
                        served += 1
                        if not stays:
                            break
                finally:
                    writer.close()
                await asyncio.sleep(self._pause_s(served))
                paused = True
        except asyncio.CancelledError:
            pass
        except (OSError, EOFError, TimeoutError, AssertionError) as error:
            self.losses.append(f"client {number}, after {served} answers: {error!r}")

    async def _wait(self, reader: asyncio.StreamReader, pause_s: float) -> None:
        """Pause; the end of the connection meanwhile is a loss, too."""
        try:
            async with asyncio.timeout(pause_s):
                data = await reader.read(1)
                raise EOFError(f"the connection has ended while it was idle ({data!r})")
        except TimeoutError:
            pass

    @staticmethod
    async def _whole(asking: Coroutine[None, None, bool]) -> bool:
        """Ask to the end, also if this client is told to leave meanwhile."""
        task = asyncio.ensure_future(asking)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        began_s = self._loop.time()
        writer.write(self._request)
        async with asyncio.timeout(TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            found = _HEAD.match(head)
            assert found, head
            body = await reader.readexactly(int(found[1]))
        self.took_s.append(self._loop.time() - began_s)
        self.answers[body] += 1
        closes = b"\r\nconnection: close\r\n" in head.lower()
        self.told_to_close += closes
        return not closes


def some(least_s: float, most_s: float) -> Callable[[int], float]:
    """A pause of some length between the two."""
    return lambda _: random.uniform(least_s, most_s)


def after_the_first(least_s: float, most_s: float) -> Callable[[int], float]:
    """The same, but none before the first request: for that one a client has the shorter --header-timeout."""
    return lambda number: random.uniform(least_s, most_s) if number else 0.0
