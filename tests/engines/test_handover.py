"""Who gives connections and who takes."""

from __future__ import annotations

import os
import random
import socket
from contextlib import closing
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.engines.handover import JUST_COME_NS, LATE_NS, LongestIdle
from prefork.engines.peer import Peer
from prefork.status.scoreboard import GIVEN
from tests.support.handover import NOW_NS, PEER, Server, Waiting, Worker, held, pass_s

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


@given(
    counts=st.lists(st.integers(0, 60), min_size=2, max_size=12),
    seed=st.integers(0, 1 << 30),
)
def test_whatever_each_held_all_end_up_even_and_stay_so(counts: list[int], seed: int) -> None:
    chance = random.Random(seed)
    with closing(Server()) as server:
        workers = [Worker(server, group) for group in range(len(counts))]
        for worker, count in zip(workers, counts, strict=True):
            worker.open(count)
        for _ in range(100):
            chance.shuffle(workers)
            if not sum(worker.look() for worker in workers):
                break
        assert server.transfer.waiting() == 0
        found, mean = held(workers), sum(counts) / len(counts)
        assert sum(found) == sum(counts)
        assert max(found) <= mean + max(2, mean / 4)
        if max(counts) <= mean + max(2, mean / 4):
            assert sorted(found) == sorted(counts), "nothing moves without need"


def test_who_gives_stops_at_the_mean_and_who_takes_too(server: Server) -> None:
    workers = [Worker(server, group) for group in range(4)]
    for worker, count in zip(workers, (29, 1, 1, 1), strict=True):
        worker.open(count)
    assert workers[0].handover.excess(29) == 21
    for _ in range(3):
        for worker in workers:
            worker.look()
    assert held(workers) == [8, 8, 8, 8]
    assert {each.stays_ns > 0 for each in workers[1].connections[1:]} == {True}


def test_what_has_changed_hands_for_evenness_stays_for_ten_seconds_unless_its_worker_retires(server: Server) -> None:
    giver, taker = Worker(server, 0), Worker(server, 1)
    giver.open(20)
    taker.publish()
    giver.look()
    taker.look()
    assert held([giver, taker]) == [10, 10]
    for each in list(giver.connections):
        each.close()
    assert taker.handover.excess(10) == 5
    assert not taker.look()
    assert not taker.look(after_s=9.0)
    assert taker.look(after_s=10.0)
    giver.look()
    assert held([giver, taker]) == [5, 5]
    taker.give_all()
    giver.look()
    assert held([giver, taker]) == [10, 0]


def test_who_is_busy_is_not_given(server: Server) -> None:
    giver, taker = Worker(server, 0), Worker(server, 1)
    giver.open(20)
    taker.publish()
    busy = giver.connections[:7] + giver.connections[10:18]
    for each in busy:
        each.idle = False
    assert giver.handover.excess(20) == 10
    giver.look()
    assert giver.connections == busy, "only the others were given"
    giver.give_all()
    assert giver.connections == busy
    for each in busy[:5]:
        each.idle = True
    giver.give_all()
    assert giver.connections == busy[5:], "after their responses"


def ten_have_just_come(server: Server) -> Worker:
    giver, taker = Worker(server, 0), Worker(server, 1)
    taker.publish()
    giver.open(10)
    for each in giver.connections:
        each.since = monotonic_ns() // 1_000_000_000 + 1
    return giver


def test_who_has_just_come_is_not_given(server: Server) -> None:
    """It asks at once, and may leave then: on its way it would only wait."""
    giver = ten_have_just_come(server)
    giver.look()
    assert len(giver.connections) == 10
    giver.connections[3].since = 1
    giver.look()
    assert len(giver.connections) == 9
    asked = Peer(PEER.server, "192.0.2.7:1", "192.0.2.7", 1, None, trusted=False)
    asked.method = "GET"
    giver.connections[5].peer = asked
    giver.look()
    assert len(giver.connections) == 8


def test_in_a_long_turn_who_has_just_come_by_the_clients_clock_is_given(server: Server) -> None:
    """It stands still while the application runs in the loop: those who came before have waited for that."""
    giver = ten_have_just_come(server)
    server.board.awake_cells[0] = monotonic_ns() - JUST_COME_NS + 10_000_000_000
    giver.look()
    assert len(giver.connections) == 10
    server.board.awake_cells[0] = monotonic_ns() - JUST_COME_NS
    giver.look()
    assert len(giver.connections) == 5


def test_a_lone_worker_and_one_that_does_not_take_give_nothing(server: Server) -> None:
    alone = Worker(server, 0)
    alone.open(50)
    assert alone.handover.excess(50) == 0
    assert not alone.handover.others()
    other = Worker(server, 1)
    other.publish()
    assert alone.handover.excess(50) == 25
    alone.serves = False  # it retires
    alone.publish()
    assert alone.handover.excess(50) == 0
    assert alone.handover.somebody_takes()


def test_only_the_newest_generation_takes(server: Server) -> None:
    old, new = Worker(server, 0, generation=1), Worker(server, 1, generation=2)
    server.orders.take_over(2)
    old.open(9)
    new.open(0)
    assert old.handover.somebody_takes(), "the new one"
    while old.connections:
        assert old.give(evened=False)
    old.look()
    assert held([old, new]) == [0, 0]
    new.look()
    assert held([old, new]) == [0, 9]
    new.serves = False
    new.publish()
    assert new.handover.somebody_takes(), "the old one, as nobody else does"
    assert new.give(evened=False)
    old.look()
    assert held([old, new]) == [1, 8]
    old.serves = False
    old.publish()
    assert not new.handover.somebody_takes()


def test_in_an_upgrade_workers_of_another_master_take(server: Server) -> None:
    workers = [Worker(server, 0), Worker(server, 1)]
    workers[0].open(3)
    workers[1].open(0)
    server.orders.give_to_another()
    for worker in workers:
        worker.publish()
        assert worker.handover.somebody_takes()
        assert not worker.look()
    assert workers[0].give(evened=False)


def test_under_tls_nothing_changes_hands(server: Server) -> None:
    workers = [Worker(server, group, tls=True) for group in range(2)]
    workers[0].open(40)
    workers[1].open(0)
    assert not workers[0].handover.somebody_takes()
    assert not workers[0].look()


def test_a_stop_gives_nothing(server: Server) -> None:
    workers = [Worker(server, group) for group in range(2)]
    for worker in workers:
        worker.open(3)
    server.orders.stop(drain=True)
    assert not workers[0].handover.somebody_takes()


def test_who_is_full_takes_nothing(server: Server) -> None:
    giver, full = Worker(server, 0), Worker(server, 1, most=5)
    giver.open(40)
    full.open(5)
    assert giver.handover.excess(40) == 0
    assert not full.look()


def test_what_nobody_took_in_time_whoever_has_room_takes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    giver, taker = Worker(server, 0), Worker(server, 1)
    giver.open(1)
    taker.open(5)
    assert giver.give(evened=False)
    giver.open(1)
    assert not taker.look(), "it has more than its share"
    pass_s(2, server, monkeypatch)
    assert taker.look()


def test_what_nobody_took_in_time_comes_back_to_who_has_given_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver, stuck = Worker(server, 0), Worker(server, 1)
    giver.open(40)
    stuck.publish()
    giver.look()
    assert held([giver, stuck]) == [20, 0]
    giver.open(15)
    pass_s(2, server, monkeypatch)
    assert giver.handover.excess(35) > 0
    giver.look()
    assert held([giver, stuck]) == [55, 0]


def test_nothing_is_given_to_who_is_in_a_long_call(server: Server) -> None:
    workers = [Worker(server, group) for group in range(2)]
    workers[0].open(40)
    workers[1].publish()
    server.board.awake_cells[1] = monotonic_ns() - LATE_NS // 2
    assert workers[0].handover.excess(40) == 20, "a usual call"
    server.board.awake_cells[1] -= LATE_NS
    assert workers[0].handover.excess(40) == 0


def test_who_has_begun_to_give_goes_on_until_it_is_at_the_mean(server: Server) -> None:
    workers = [Worker(server, group) for group in range(2)]
    workers[0].open(20)
    workers[1].open(10)
    assert workers[0].handover.excess(12) == 0, "not too many"
    assert workers[0].handover.excess(20) == 5
    workers[1].open(4)
    assert workers[0].handover.excess(16) == 1
    assert workers[0].handover.excess(15) == 0
    assert workers[0].handover.excess(17) == 0, "it is done"


def test_the_longest_idle_are_found_in_order_as_they_are_when_asked_for() -> None:
    every = [Waiting(since) for since in range(200)]
    random.Random(1).shuffle(every)
    found = LongestIdle(lambda: every)
    by_age = {each.since: each for each in every}
    by_age[0].idle = False
    by_age[1].sent = True
    assert found.take(NOW_NS) is by_age[2]
    by_age[2].idle = False  # gone
    by_age[3].since = 500  # served since
    by_age[4].sent = True
    taken = []
    while (each := found.take(NOW_NS)) is not None:
        taken.append(each.since)
        each.idle = False
    assert taken == [*range(5, 200), 500]


def test_who_has_just_come_is_not_found_for_a_close() -> None:
    every = [Waiting(since) for since in (990, 998, 999)]
    found = LongestIdle(lambda: every)
    assert found.take(NOW_NS, rested_ns=2_000_000_000) is every[0]
    assert found.take(NOW_NS, rested_ns=2_000_000_000) is every[1]
    assert found.take(NOW_NS, rested_ns=2_000_000_000) is None
    assert found.take(NOW_NS) is every[2]


def test_if_all_are_full_what_is_left_in_the_queue_replaces_who_is_idle_the_longest(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver, full, busy = Worker(server, 0), Worker(server, 1, most=2), Worker(server, 2)
    giver.open(2)
    assert giver.give(evened=False)
    giver.serves = False
    giver.publish()
    busy.publish()
    full.open(2)
    newer, older = full.connections
    newer.since, older.since = 7, 5
    full.look()
    assert (full.connections, server.transfer.waiting()) == ([newer, older], 1), "another has room, and may take it"
    busy.serves = False
    busy.publish()
    full.look()
    assert (full.connections, server.transfer.waiting()) == ([newer, older], 1), "who gave it may take it back"
    pass_s(4, server, monkeypatch)
    full.look()
    assert older.done == ""
    assert full.connections[0] is newer
    assert (older in full.connections, len(full.connections), server.transfer.waiting()) == (False, 2, 0)
    full.look()
    assert newer in full.connections, "nothing waits any more"


def test_what_is_no_connection_replaces_nobody(server: Server) -> None:
    full = Worker(server, 0, most=2)
    full.open(2)
    before = list(full.connections)
    with closing(socket.socket(fileno=os.dup(server.transfer.fds[0]))) as out:
        out.send(b"x")
    assert server.transfer.waiting() == 1
    full.look()
    assert server.transfer.waiting() == 0
    assert full.connections == before


def test_nobody_is_closed_while_another_has_room(server: Server) -> None:
    full, other = Worker(server, 0, most=60), Worker(server, 1)
    full.open(60)
    other.publish()
    while full.handover.make_room(monotonic_ns(), lambda: True):
        pass
    assert len(full.connections) + server.transfer.waiting() == 60, "the queue is full, and none was closed"
    assert server.transfer.waiting() > 0


def test_what_the_queue_has_no_room_for_is_never_counted_as_given(server: Server) -> None:
    """But for the first: who sees that keeps it for a moment."""
    giver, taker = Worker(server, 0), Worker(server, 1, most=1000)
    giver.open(60)
    taker.publish()
    while giver.give(evened=False):
        pass
    given = server.board.row(0).cells[GIVEN]
    assert given == server.transfer.waiting() < 60
    cells = giver.handover._cells
    giver.handover._cells = cast("Any", None)  # it would raise
    assert not giver.give(evened=False)
    giver.handover._cells = cells
    taker.look()
    assert giver.give(evened=False)


def test_under_tls_nobody_is_closed_while_another_has_room(server: Server) -> None:
    """Who waits in the kernel goes to that one; nothing can be given to it."""
    full, other = Worker(server, 0, tls=True, most=4), Worker(server, 1, tls=True)
    full.open(4)
    other.publish()
    before = list(full.connections)
    assert not full.handover.make_room(monotonic_ns(), lambda: True)
    assert full.connections == before
    assert server.transfer.waiting() == 0
    other.serves = False
    other.publish()
    assert full.handover.make_room(monotonic_ns(), lambda: True)
    assert len(full.connections) == 3
    assert server.transfer.waiting() == 0


def test_nobody_is_closed_for_a_connection_that_another_has_taken(server: Server) -> None:
    full = Worker(server, 0, most=4)
    full.open(4)
    assert not full.handover.make_room(monotonic_ns(), lambda: False)
    assert len(full.connections) == 4


def test_what_is_no_message_is_thrown_away(server: Server) -> None:
    giver, taker = Worker(server, 0), Worker(server, 1)
    giver.open(40)
    taker.publish()
    out = socket.socket(fileno=os.dup(server.transfer.fds[0]))
    with closing(out):
        out.send(b"x")
        for _ in range(6):
            taker.look()
            giver.look()
        assert held([giver, taker]) == [20, 20]
        out.shutdown(socket.SHUT_WR)
    for _ in range(3):
        assert taker.handover.take_one() is None
        taker.look()


def test_workers_of_a_new_master_take_nothing_before_they_are_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.orders.take_over(0)
    giver, new = Worker(server, 0), Worker(server, 1)
    giver.open(3)
    new.publish()
    assert giver.give(evened=False)
    pass_s(2, server, monkeypatch)
    new.look()
    assert held([giver, new]) == [2, 0]
    server.orders.take_over(1)
    new.publish()
    new.look()
    assert held([giver, new]) == [2, 1]
