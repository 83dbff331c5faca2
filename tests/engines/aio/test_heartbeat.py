"""When a turn of an asyncio loop begins and ends: a real loop, a real scoreboard."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from prefork.config.config import resolve
from prefork.engines.accept import AcceptBalance
from prefork.engines.aio.heartbeat import Heartbeat
from prefork.runtime.orders import Orders
from prefork.status.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_S = 0.05


class Turns:
    """A heartbeat whose worker others see in the scoreboard."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake_fd: int) -> None:
        self.loop = loop
        self.board = Scoreboard(groups=1, threads=1)
        balance = AcceptBalance(self.board, Orders(1), 0, wake_fd, may_exceed=True)
        worker = cast("Any", SimpleNamespace(link=None, rows=[self.board.row(0)], config=resolve("ahello", {}, {})))
        self.heartbeat = Heartbeat(worker, loop, balance)
        self.seen: list[bool] = []  # by each call that blocks: whether the others could tell

    def receive(self) -> None:
        """What a protocol does with a request."""
        if not self.heartbeat.awake:
            self.heartbeat.wake()
        self.heartbeat.bytes_in += 1
        self.loop.call_soon(self.block)

    def block(self) -> None:
        self.seen.append(self.board.awake_cells[0] > 0)
        time.sleep(BLOCK_S)

    def run(self) -> None:
        """Run the loop until it has nothing to do but wait."""
        self.loop.run_until_complete(asyncio.sleep(0.02))
        assert not self.heartbeat.awake
        assert self.board.awake_cells[0] == 0


@pytest.fixture
def turns() -> Iterator[Turns]:
    wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
    with closing(asyncio.new_event_loop()) as loop:
        yield Turns(loop, wake_fd)
    os.close(wake_fd)


def test_a_call_that_blocks_is_within_a_turn(turns: Turns) -> None:
    turns.loop.call_soon(turns.receive)
    turns.run()
    assert turns.seen == [True]
    assert turns.board.delay_cells[0] >= BLOCK_S * 1e9


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_so_is_one_whose_request_comes_when_the_turn_is_about_to_end(turns: Turns, rounds: int) -> None:
    """The client has its response, asks again at once, and the loop has not yet gone to sleep."""

    def later(left: int) -> None:
        if left:
            turns.loop.call_soon(later, left - 1)
        else:
            turns.receive()

    turns.heartbeat.wake()
    turns.loop.call_soon(later, rounds)
    turns.run()
    assert turns.seen == [True]
    assert turns.board.delay_cells[0] >= BLOCK_S * 1e9


def test_so_is_one_whose_request_came_before_a_beat_in_that_turn(turns: Turns) -> None:
    def receive_and_beat() -> None:
        turns.receive()
        turns.heartbeat.start()

    turns.heartbeat.wake()
    turns.loop.call_soon(receive_and_beat)
    turns.run()
    assert turns.seen == [True]


def test_a_turn_that_a_callback_of_its_end_begins_is_counted(turns: Turns) -> None:
    """A connection was accepted as the turn ended, and its client has asked already."""
    turns.heartbeat.on_sleep.append(lambda: turns.seen or turns.receive())
    turns.heartbeat.wake()
    turns.run()
    assert turns.seen[0]
    assert turns.board.delay_cells[0] >= BLOCK_S * 1e9
