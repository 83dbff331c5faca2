"""Whose share the next connection is, by what all workers say of themselves."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing
from time import monotonic_ns
from typing import TYPE_CHECKING

import pytest

from prefork.core.listener import Listener
from prefork.engines.accept import (
    ASLEEP_NS,
    FEW,
    LAG_MOST,
    LEAD_MOST,
    PATIENCE_NS,
    QUICK_NS,
    QUICK_STREAK,
    REST_NS,
    SLOW_FOR_NS,
    SLOW_NS,
    STREAK_NS,
    AcceptBalance,
    AcceptBatch,
)
from prefork.runtime.orders import Orders
from prefork.status.scoreboard import BYTES_IN, CLOSED, COMPLETED, Row, Scoreboard

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
    found = [AcceptBalance(board, orders, group, wake_fd, may_exceed=group < 3) for group in range(4)]
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


def test_who_is_full_knows_whether_another_takes_what_comes(workers: list[AcceptBalance]) -> None:
    me, *others = workers
    me.publish(10, able=False)
    assert me.others_take
    for other in others[1:]:
        other.publish(10, able=False)
    others[0].woke()
    assert me.others_take, "a turn of its loop is short"
    others[0].publish(10, able=False)
    assert not me.others_take
    me.publish(10, able=True)
    assert not me.others_take, "its own line does not count"


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


class Clock:
    """What the time is, by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 1_000_000_000_000
        monkeypatch.setattr("prefork.engines.accept.monotonic_ns", lambda: self.now_ns)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def look_for(me: AcceptBalance, clock: Clock, ns: int) -> None:
    """A connection waits for so long: look every 5 ms, as a worker does that holds 10 and is off."""
    until_ns = clock.now_ns + ns
    me.note_waiting(10, waits=True)
    while clock.now_ns < until_ns:
        clock.now_ns += 5_000_000
        me.note_waiting(10, waits=True)


def test_who_does_not_come_for_a_connection_is_left_out_until_it_takes_one(
    workers: list[AcceptBalance], clock: Clock
) -> None:
    """Its loop is blocked by a timer's callback, say, and its line says that it waits in epoll_wait."""
    me, blocked = workers[0], workers[1]
    blocked.publish(0, able=True)
    assert not me.may_take(10)
    look_for(me, clock, PATIENCE_NS - 1_000_000)
    assert me.may_take(10 + FEW - 1)
    assert not me.may_take(10 + FEW), "more than those who do come, and than may change hands afterwards"
    blocked.count_accepted()
    blocked.publish(1, able=True)
    assert not me.may_take(10 + FEW - 1)
    blocked.publish(0, able=True)
    assert not me.may_take(10 + FEW - 1), "it is not forgotten again when that one has left"


def test_who_takes_one_that_leaves_at_once_is_left_out_no_more(workers: list[AcceptBalance], clock: Clock) -> None:
    me, blocked = workers[0], workers[1]
    blocked.publish(0, able=True)
    look_for(me, clock, PATIENCE_NS)
    assert me.may_take(10 + FEW - 1)
    blocked.count_accepted()
    assert not me.may_take(10 + FEW - 1)


def test_who_has_moved_between_two_looks_is_waited_for(workers: list[AcceptBalance], clock: Clock) -> None:
    me, slow = workers[0], workers[1]
    slow.publish(0, able=True)
    look_for(me, clock, PATIENCE_NS - 10_000_000)
    assert not me.may_take(10), "too soon"
    slow.publish(1, able=True)
    look_for(me, clock, 10_000_000)
    assert me.may_take(10)
    assert not me.may_take(10 + FEW - 1)
    me.note_waiting(10, waits=False)
    assert not me.may_take(10), "nothing waits any more"
    look_for(me, clock, PATIENCE_NS - 5_000_000)
    assert not me.may_take(10), "in between nothing waited"
    look_for(me, clock, 5_000_000)
    assert me.may_take(10 + FEW - 1)


def test_what_has_waited_for_long_is_taken_in_equal_parts(workers: list[AcceptBalance], clock: Clock) -> None:
    me = workers[0]
    workers[3].publish(0, able=False)
    with closing(socket.create_server(("127.0.0.1", 0))) as sock, ExitStack() as stack:
        listener = Listener(sock, "127.0.0.1:0")
        for _ in range(7):
            stack.enter_context(socket.create_connection(sock.getsockname()))
        assert me.overdue_share(10, listener) == 0, "nobody has seen any wait"
        me.note_waiting(10, waits=True)
        clock.now_ns += PATIENCE_NS - 1
        assert me.overdue_share(10, listener) == 0, "too soon"
        clock.now_ns += 1
        assert me.overdue_share(10, listener) == 3, "there are three that could take them"
        me.note_waiting(10, waits=False)
        assert me.overdue_share(10, listener) == 0


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
    assert not me.update_turn()
    for _ in range(LEAD_MOST):
        me.count_accepted()
    assert not me.update_turn()
    for _ in range(LEAD_MOST):
        me.count_accepted()
    assert me.update_turn()
    assert not workers[1].update_turn()
    for other in workers[1:]:
        other.count_accepted()
    assert me.update_turn(), "it rests until the others have caught up"
    for other in workers[1:]:
        for _ in range(2 * LEAD_MOST):
            other.count_accepted()
    assert not me.update_turn()


def test_nobody_is_ahead_of_those_who_could_not_take_one(workers: list[AcceptBalance]) -> None:
    for worker in workers:
        worker.publish(0, able=True)
    me, full, loaded, away = workers
    for _ in range(100):
        me.count_accepted()
    assert me.update_turn()
    full.publish(0, able=False)
    loaded.publish(11, able=True)
    away.woke()
    until_ns = monotonic_ns() + ASLEEP_NS
    while monotonic_ns() <= until_ns:
        pass
    assert not me.update_turn()


def test_who_was_away_need_not_be_waited_for_until_it_has_taken_as_many(workers: list[AcceptBalance]) -> None:
    for worker in workers:
        worker.publish(0, able=True)
    me, new = workers[0], workers[1]
    for _ in range(1_000):
        for worker in (me, *workers[2:]):
            worker.count_accepted()
    assert me.update_turn()
    for _ in range(2 * LAG_MOST):
        new.count_accepted()
        new.update_turn()
    assert not me.update_turn()


def test_alone_nobody_is_ahead(workers: list[AcceptBalance]) -> None:
    for worker in workers:
        worker.publish(0, able=True)
    for other in workers[1:]:
        other.publish(0, able=False)
    for _ in range(100):
        workers[0].count_accepted()
    assert not workers[0].update_turn()


# --- how many at once


class Loop:
    """A worker's loop on a clock of its own: 1 ms after 1 ms."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.board = Scoreboard(groups=1, threads=1)
        self.row: Row = self.board.row(0)
        self.batch = AcceptBatch(self.board, 0)
        self.rests = False

    def turn(self, *, takes: int = 0, serves: int = 0, took_ns: int = 0) -> int:
        """Take as many as it may, but no more than so many, and serve; return how many it may."""
        self.clock.now_ns += 1_000_000
        most = self.batch.begin() if takes else 0
        if takes:
            self.rests = self.batch.end(min(most, takes))
        self.row.cells[COMPLETED] += serves
        self.row.cells[BYTES_IN] += 100 * serves
        self.clock.now_ns += took_ns
        self.batch.end_turn(took_ns)
        return most

    def be_sure(self) -> None:
        while not self.batch.quick:
            self.turn(takes=1, serves=1)


@pytest.fixture
def loop(clock: Clock) -> Loop:
    return Loop(clock)


def test_one_is_taken_in_a_turn_until_many_in_a_row_were_not_slow(loop: Loop) -> None:
    for _ in range(QUICK_STREAK - 1):
        assert loop.turn(takes=99, serves=1) == 1
        assert loop.rests
    assert loop.turn(takes=99, serves=1) == 1
    assert not loop.rests
    assert loop.turn(takes=99) == FEW
    assert not loop.rests
    loop.clock.now_ns += STREAK_NS
    assert loop.turn(takes=99) == 1


def test_after_a_slow_turn_one_is_taken_for_a_second(loop: Loop) -> None:
    loop.be_sure()
    loop.turn(serves=1, took_ns=SLOW_NS + 2 * QUICK_NS + 1)
    for _ in range(2 * QUICK_STREAK):
        assert loop.turn(takes=99, serves=1) == 1
    loop.clock.now_ns += SLOW_FOR_NS
    loop.be_sure()
    assert loop.turn(takes=99) == FEW


def test_many_quick_requests_in_a_turn_do_not_make_it_slow(loop: Loop) -> None:
    loop.be_sure()
    loop.turn(serves=200, took_ns=200 * QUICK_NS)
    assert loop.turn(takes=99) == FEW
    loop.turn(serves=100, took_ns=200 * QUICK_NS)
    assert loop.turn(takes=99) == 1


def test_turns_that_are_each_a_little_too_slow_add_up(loop: Loop) -> None:
    loop.be_sure()
    for _ in range(SLOW_NS // QUICK_NS):
        assert loop.turn(takes=99, serves=1, took_ns=3 * QUICK_NS) == FEW
    loop.turn(serves=1, took_ns=3 * QUICK_NS)
    assert loop.turn(takes=99) == 1


def test_a_turn_in_which_the_machine_was_busy_is_made_good_by_the_next(loop: Loop) -> None:
    loop.be_sure()
    for _ in range(10):
        assert loop.turn(takes=99, serves=1, took_ns=SLOW_NS // 2) == FEW
        loop.turn(serves=SLOW_NS // 2 // QUICK_NS)
    assert loop.turn(takes=99) == FEW


def test_what_waits_for_full_threads_counts_as_well(loop: Loop) -> None:
    loop.be_sure()
    for _ in range(100):
        loop.batch.add_delay(8 * QUICK_NS, 8)
    assert loop.turn(takes=99) == FEW
    loop.batch.add_delay(SLOW_NS + 8 * QUICK_NS + 1, 8)
    assert loop.turn(takes=99) == 1


def test_others_can_see_for_how_long_in_all_a_newcomer_would_have_waited(loop: Loop) -> None:
    said = loop.board.delay_cells
    loop.turn(serves=1, took_ns=300)
    loop.turn(took_ns=20)
    assert said[0] == 320
    loop.batch.add_delay(4000, 1)  # for full threads
    assert said[0] == 4320
    said[0] = -1  # written over by an application
    loop.turn(took_ns=1)
    assert said[0] == 4321


def test_who_is_sure_may_take_a_few_more_than_the_mean(workers: list[AcceptBalance]) -> None:
    me = workers[0]
    assert not me.may_take(11)
    me.batch.begin()
    me.batch.end(QUICK_STREAK)
    assert me.may_take(10 + FEW - 1)
    assert not me.may_take(10 + FEW)
    apart = workers[3]
    apart.batch.end(QUICK_STREAK)
    assert not apart.may_take(11), "what it held more could not change hands"
    me.batch.add_delay(SLOW_NS + QUICK_NS + 1, 1)
    assert not me.may_take(11)


def test_who_is_sure_does_not_take_more_if_clients_come_one_after_the_other(workers: list[AcceptBalance]) -> None:
    me = workers[0]
    me.batch.begin()
    me.batch.end(QUICK_STREAK)
    for worker in workers:
        worker.publish(0, able=True)
    me.publish(1, able=True)
    assert not me.may_take(1)
    workers[1].publish(1, able=True)
    assert me.may_take(1)


@pytest.mark.parametrize("cell", [BYTES_IN, CLOSED])
def test_it_rests_until_the_client_has_asked_or_left_but_not_for_long(loop: Loop, cell: int) -> None:
    loop.turn(takes=1)
    assert loop.rests
    assert loop.batch.resting
    loop.row.cells[cell] += 1
    assert not loop.batch.resting
    loop.turn(takes=1)
    assert loop.batch.resting
    loop.clock.now_ns += REST_NS
    assert not loop.batch.resting


def test_after_a_part_of_those_that_waited_it_rests_whoever_asks_or_leaves(loop: Loop) -> None:
    loop.batch.begin()
    loop.batch.rest_regardless()
    loop.batch.end(3)
    loop.row.cells[BYTES_IN] += 1
    loop.row.cells[CLOSED] += 1
    assert loop.batch.resting
    loop.clock.now_ns += REST_NS
    assert not loop.batch.resting
    loop.turn(takes=1)
    loop.row.cells[CLOSED] += 1
    assert not loop.batch.resting
