"""Whose share the next connection is, by what all workers say of themselves."""

from __future__ import annotations

import os
from time import monotonic_ns
from typing import TYPE_CHECKING

import pytest

from prefork.engines.accept import AHEAD, ASLEEP_NS, LAG, LATE_MORE, PATIENCE_NS, AcceptBalance
from prefork.runtime.orders import Orders
from prefork.status.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def wake_fd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def workers(wake_fd: int) -> list[AcceptBalance]:
    board = Scoreboard(groups=64, threads=1)
    orders = Orders(64)
    found = [AcceptBalance(board, orders, group, wake_fd) for group in range(4)]
    for group, worker in enumerate(found):
        board.clear(group)
        orders.begin(group)
        worker.publish(10, able=True)
        worker.sleeps()
    return found


def test_who_holds_its_share_or_less_may_take_another(workers: list[AcceptBalance]) -> None:
    me = workers[0]
    for held, may in ((0, True), (9, True), (10, True), (11, False), (50, False)):
        me.publish(held, able=True)
        assert me.may_take(held) is may, held


def test_alone_it_takes_everything(workers: list[AcceptBalance]) -> None:
    for other in workers[1:]:
        other.publish(0, able=False)  # draining, full, paused or dead
    workers[0].publish(500, able=True)
    assert workers[0].may_take(500)


def test_of_two_one_does_not_get_two_while_the_other_has_none(workers: list[AcceptBalance]) -> None:
    for other in workers[2:]:
        other.publish(0, able=False)
    workers[0].publish(1, able=True)
    workers[1].publish(0, able=True)
    assert not workers[0].may_take(1)
    assert workers[1].may_take(0)


def test_who_is_long_out_of_epoll_wait_is_not_waited_for(workers: list[AcceptBalance]) -> None:
    """The least loaded worker is in a long request: the others must not leave connections to it."""
    me, stuck = workers[0], workers[1]
    stuck.publish(0, able=True)
    me.publish(10, able=True)
    assert not me.may_take(10)
    stuck.woke()
    deadline_ns = monotonic_ns() + ASLEEP_NS * 100
    while not me.may_take(10):
        assert monotonic_ns() < deadline_ns
    stuck.sleeps()
    assert not me.may_take(10)


def test_who_does_not_come_for_a_connection_is_left_out_until_it_takes_one(workers: list[AcceptBalance]) -> None:
    """Its loop is blocked by a timer's callback, say, and its line says that it waits in epoll_wait."""
    me, blocked = workers[0], workers[1]
    blocked.publish(0, able=True)
    assert not me.may_take(10)
    me.check(10, 1, waits=True)
    me.check(10, PATIENCE_NS, waits=True)
    assert not me.may_take(10), "too soon"
    me.check(10, PATIENCE_NS + 1, waits=True)
    assert me.may_take(10 + LATE_MORE - 1)
    assert not me.may_take(10 + LATE_MORE), "more than those who do come, and than may change hands afterwards"
    blocked.publish(1, able=True)
    assert not me.may_take(10 + LATE_MORE - 1)


def test_who_has_moved_between_two_looks_is_waited_for(workers: list[AcceptBalance]) -> None:
    me, slow = workers[0], workers[1]
    slow.publish(0, able=True)
    me.check(10, 1, waits=True)
    slow.publish(1, able=True)
    me.check(10, PATIENCE_NS + 1, waits=True)
    assert not me.may_take(10 + LATE_MORE - 1)
    me.check(10, PATIENCE_NS + 2, waits=False)
    me.check(10, 2 * PATIENCE_NS + 3, waits=True)
    assert not me.may_take(10), "in between nothing waited"
    me.check(10, 3 * PATIENCE_NS + 3, waits=True)
    assert me.may_take(10 + LATE_MORE - 1)


def test_a_wake_up_is_heard_by_all_and_consumed_once(workers: list[AcceptBalance], wake_fd: int) -> None:
    workers[0].wake_another()
    assert os.eventfd_read(wake_fd) == 1
    workers[0].wake_another()
    workers[1].take_wake_up()
    workers[2].take_wake_up()  # too late: no error
    with pytest.raises(BlockingIOError):
        os.eventfd_read(wake_fd)


def test_who_has_taken_more_than_the_others_is_ahead(workers: list[AcceptBalance]) -> None:
    for worker in workers:
        worker.publish(0, able=True)
    me = workers[0]
    assert not me.ahead()
    for _ in range(AHEAD):
        me.took()
    assert not me.ahead()
    for _ in range(AHEAD):
        me.took()
    assert me.ahead()
    assert not workers[1].ahead()
    for other in workers[1:]:
        other.took()
    assert me.ahead(), "it rests until the others have caught up"
    for other in workers[1:]:
        for _ in range(2 * AHEAD):
            other.took()
    assert not me.ahead()


def test_nobody_is_ahead_of_those_who_could_not_take_one(workers: list[AcceptBalance]) -> None:
    for worker in workers:
        worker.publish(0, able=True)
    me, full, loaded, away = workers
    for _ in range(100):
        me.took()
    assert me.ahead()
    full.publish(0, able=False)
    loaded.publish(11, able=True)
    away.woke()
    until_ns = monotonic_ns() + ASLEEP_NS
    while monotonic_ns() <= until_ns:
        pass
    assert not me.ahead()


def test_who_was_away_need_not_be_waited_for_until_it_has_taken_as_many(workers: list[AcceptBalance]) -> None:
    for worker in workers:
        worker.publish(0, able=True)
    me, new = workers[0], workers[1]
    for _ in range(1_000):
        for worker in (me, *workers[2:]):
            worker.took()
    assert me.ahead()
    for _ in range(2 * LAG):
        new.took()
        new.ahead()
    assert not me.ahead()


def test_alone_nobody_is_ahead(workers: list[AcceptBalance]) -> None:
    for worker in workers:
        worker.publish(0, able=True)
    for other in workers[1:]:
        other.publish(0, able=False)
    for _ in range(100):
        workers[0].took()
    assert not workers[0].ahead()
