"""The lingering close of an asyncio transport, over real TCP. That of a blocking socket is in test_connection.py."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest

from prefork.engines import linger
from prefork.engines.aio.waiting import LoopTimers
from prefork.engines.linger import LingeringTransport

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 10.0  # of every wait that a test expects to end earlier


class Goodbye(LingeringTransport, asyncio.Protocol):
    """Says something at once and lingers."""

    def __init__(self, said: bytes, unsent_ns: Callable[[int], int]) -> None:
        self.said, self.allow = said, unsent_ns
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        transport.write(self.said)
        LingeringTransport.__init__(self, transport, LoopTimers(asyncio.get_running_loop()), self.allow)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


def never(_now_ns: int) -> int:
    return 0


async def goodbye(said: bytes = b"bye", unsent_ns: Callable[[int], int] = never) -> tuple[socket.socket, Goodbye]:
    """A client, and what says goodbye to it."""
    ours, client = socket.socketpair()
    client.settimeout(LIMIT_S)
    _, protocol = await asyncio.get_running_loop().connect_accepted_socket(lambda: Goodbye(said, unsent_ns), ours)
    return client, protocol


def read_to_end(client: socket.socket) -> bytes:
    got = b""
    while chunk := client.recv(65536):
        got += chunk
    return got


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, LIMIT_S))


def test_a_client_may_send_on_and_still_reads_the_reply() -> None:
    async def scenario() -> None:
        client, protocol = await goodbye()
        with client:
            await asyncio.to_thread(client.sendall, b"x" * 3_000_000)
            assert await asyncio.to_thread(read_to_end, client) == b"bye"
        await protocol.lost.wait()

    run(scenario())


def test_a_client_that_stays_is_left_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.05)

    async def scenario() -> None:
        client, protocol = await goodbye()
        with client:
            await protocol.lost.wait()

    run(scenario())


def test_a_client_that_never_stops_sending_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_BYTES", 1000)

    async def scenario() -> None:
        client, protocol = await goodbye()
        with client:
            client.sendall(b"x" * 2000)
            await protocol.lost.wait()

    run(scenario())


def test_the_time_begins_when_all_has_been_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.05)
    asked = asyncio.Event()

    def go_on(now_ns: int) -> int:
        asked.set()
        return now_ns + 50_000_000

    async def scenario() -> None:
        client, protocol = await goodbye(b"y" * 3_000_000, go_on)
        with client:
            await asked.wait()
            assert await asyncio.to_thread(read_to_end, client) == b"y" * 3_000_000
            await protocol.lost.wait()

    run(scenario())


def test_a_client_that_has_read_all_is_not_held_for_the_time_that_it_had_to_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.05)
    asked = asyncio.Event()

    def go_on(now_ns: int) -> int:
        asked.set()
        return now_ns + 60_000_000_000  # --idle-timeout

    async def scenario() -> None:
        client, protocol = await goodbye(b"y" * 3_000_000, go_on)
        with client:
            await asked.wait()
            assert await asyncio.to_thread(read_to_end, client) == b"y" * 3_000_000
            await protocol.lost.wait()  # within LIMIT_S

    run(scenario())


def test_a_client_that_reads_too_little_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.05)

    async def scenario() -> None:
        client, protocol = await goodbye(b"y" * 3_000_000)
        with client:
            await protocol.lost.wait()

    run(scenario())
