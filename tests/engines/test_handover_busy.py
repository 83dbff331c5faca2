"""Who is given connections for the sake of evenness when some are busier than others, by what all say of themselves."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from prefork.engines.accept import AcceptBatch
from prefork.engines.handover import BusyShares
from prefork.status.scoreboard import Scoreboard
from tests.support.handover import NOW_NS, Server, Worker, held

if TYPE_CHECKING:
    from collections.abc import Iterator

MOMENT_NS = 1_000_000_000


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


def workers_as_busy(server: Server, *shares: float) -> list[Worker]:
    """Workers without connections that know from two looks for which part of a second each was busy."""
    workers = [Worker(server, group) for group in range(len(shares))]
    for worker in workers:
        worker.publish()
    for worker in workers:
        worker.look()
    spend(server, workers, shares)
    return workers


def spend(server: Server, workers: list[Worker], shares: tuple[float, ...], *, after_s: float = 1.0) -> None:
    """Let another second pass."""
    for group, share in enumerate(shares):
        server.board.delay_cells[group] += round(share * MOMENT_NS)
    for worker in workers:
        worker.look(after_s=after_s)


def test_a_free_worker_gives_nothing_to_one_that_is_busier(server: Server) -> None:
    free, busy = workers = workers_as_busy(server, 0.0, 0.9)
    free.open(20)
    assert free.handover.excess(20) == 0
    assert not free.look()
    assert server.transfer.waiting() == 0
    spend(server, workers, (0.0, 0.0), after_s=2.0)
    busy.look()
    assert held(workers) == [10, 10], "it is busy no more"


@pytest.mark.parametrize("shares", [(0.0, 0.2), (0.7, 0.9), (0.9, 0.7), (0.9, 0.0)])
def test_one_that_is_about_as_busy_or_less_gets_its_share(server: Server, shares: tuple[float, ...]) -> None:
    giver, taker = workers_as_busy(server, *shares)
    giver.open(20)
    giver.look()
    taker.look()
    assert held([giver, taker]) == [10, 10]


def test_of_three_a_free_worker_gives_what_the_other_free_one_lacks_and_no_more(server: Server) -> None:
    giver, busy, taker = workers = workers_as_busy(server, 0.0, 0.9, 0.0)
    giver.open(26)
    taker.open(4)
    assert giver.handover.excess(26) == 6, "the mean is 10"
    giver.look()
    assert server.transfer.waiting() == 6
    assert not giver.look(), "these are on their way"
    taker.look()
    giver.look()
    busy.look()
    assert held(workers) == [20, 0, 10]


def test_a_busy_worker_gives_to_all(server: Server) -> None:
    giver, *others = workers = workers_as_busy(server, 0.9, 0.5, 0.0)
    giver.open(30)
    assert giver.handover.excess(30) == 20
    for _ in range(3):
        giver.look()
        for other in others:
            other.look()
    assert held(workers) == [10, 10, 10]


def test_a_worker_that_is_new_counts_as_free_and_one_in_a_call_by_how_long_it_has_been_there() -> None:
    board = Scoreboard(groups=3, threads=1)
    board.delay_cells[0] = 70 * MOMENT_NS  # of long ago
    shares = BusyShares(board)
    assert shares.of(0) == 0, "nothing is known yet"
    shares.look(2, NOW_NS)
    assert shares.of(0) == 0, "nor is it by one look"
    board.delay_cells[0] += MOMENT_NS // 2
    board.awake_cells[1] = NOW_NS + MOMENT_NS // 4
    board.delay_cells[2] = 5 * MOMENT_NS
    shares.look(3, NOW_NS + MOMENT_NS)
    assert [shares.of(group) for group in range(4)] == [0.5, 0.75, 0, 0]
    board.awake_cells[1] = 0
    board.delay_cells[1] = MOMENT_NS  # that call has ended
    shares.look(3, NOW_NS + MOMENT_NS + 1)
    assert shares.of(1) == 0.75, "too soon to tell"
    shares.look(3, NOW_NS + 2 * MOMENT_NS)
    assert [shares.of(group) for group in range(3)] == [0, 0.25, 0]
    board.vacate(0)
    shares.look(3, NOW_NS + 3 * MOMENT_NS)
    assert shares.of(0) <= 0, "a new one has taken its place"
    assert shares.of(1) == 0


def test_a_wait_that_lasts_counts_as_it_goes_on() -> None:
    """All threads of a worker are in calls: no turn of its loop ends late."""
    board = Scoreboard(groups=2, threads=1)
    batch, shares = AcceptBatch(board, 0), BusyShares(board)
    shares.look(2, NOW_NS)
    batch.delay_since(NOW_NS + MOMENT_NS // 2)
    shares.look(2, NOW_NS + MOMENT_NS)
    assert shares.of(0) == pytest.approx(0.5)
    batch.add_delay(1_000_000, 1)  # a turn of the loop meanwhile
    shares.look(2, NOW_NS + 2 * MOMENT_NS)
    assert shares.of(0) == pytest.approx(1.0)
    batch.delay_since(0)
    batch.add_delay(3 * MOMENT_NS // 2, 4)
    shares.look(2, NOW_NS + 3 * MOMENT_NS)
    assert shares.of(0) == pytest.approx(0.0, abs=0.01)
    board.vacate(0)
    shares.look(2, NOW_NS + 4 * MOMENT_NS)
    assert shares.of(0) == 0.0
