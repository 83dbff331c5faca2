"""Who gives connections and who takes: workers in one process, with the real scoreboard, orders, queue, sockets."""

from __future__ import annotations

import os
import random
import socket
from contextlib import closing
from dataclasses import dataclass, field
from time import monotonic_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.engines.handover import JUST_COME_NS, LATE_NS, STAYS_NS, HandOver, LongestIdle
from prefork.engines.peer import Peer
from prefork.runtime.orders import Orders
from prefork.runtime.transfer import TransferQueue
from prefork.status.scoreboard import GIVEN, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.engines.context import WorkerContext
    from prefork.engines.http_context import HttpContext
    from prefork.runtime.transfer import TransferMessage

PEER: Peer[None] = Peer(("127.0.0.1", 80), "192.0.2.7:1", "192.0.2.7", 1, None, trusted=False)


@dataclass
class Server:
    """The parts that workers share."""

    board: Scoreboard = field(default_factory=lambda: Scoreboard(groups=16, threads=1))
    orders: Orders = field(default_factory=lambda: Orders(16))
    transfer: TransferQueue = field(default_factory=TransferQueue)
    sockets: list[Any] = field(default_factory=list)  # all that were ever made

    def close(self) -> None:
        self.transfer.close()
        self.orders.close()
        for sock in self.sockets:
            sock.close()


@dataclass(eq=False)
class Waiting:
    """A connection that is idle since then."""

    since: int
    idle: bool = True
    sent: bool = False
    peer: Peer[None] = PEER

    @property
    def deadline_ns(self) -> int:
        return self.since_ns(0) + 75_000_000_000

    def since_ns(self, _now_ns: int) -> int:
        return self.since * 1_000_000_000

    def has_input(self) -> bool:
        return self.sent


@dataclass(eq=False)
class Kept(Waiting):
    """The same, as a worker that retires sees it."""

    done: str = ""
    stays_ns: int = 0

    def give(self, _now_ns: int, *, evened: bool) -> bool:
        return not evened

    def close(self) -> None:
        self.done = "closed"

    def retire(self) -> None:
        self.done = "retired"

    def expire(self) -> None:
        self.done = "ended"


@dataclass(eq=False, kw_only=True)
class Held(Kept):
    """One end of a socket pair, which its worker gives as the engines give theirs."""

    worker: Worker
    sock: Any

    def give(self, now_ns: int, *, evened: bool) -> bool:
        given = self.worker.handover.give(self.sock.fileno(), PEER, self.since_ns(now_ns), evened=evened)
        if given:
            self.close()
        return given

    def close(self) -> None:
        self.worker.connections.remove(self)
        self.sock.close()
        self.worker.publish()


class Worker:
    """A worker as far as it gives and takes. Its connections are ends of socket pairs."""

    def __init__(self, server: Server, group: int, *, generation: int = 1, tls: bool = False, most: int = 1000) -> None:
        server.orders.begin(group)
        context = SimpleNamespace(
            transfer=server.transfer,
            board=server.board,
            orders=server.orders,
            rows=[server.board.row(group)],
            group=group,
            generation=generation,
            master=1,
            log=SimpleNamespace(debug=lambda *_, **__: None),
            inherited=SimpleNamespace(tls=object() if tls else None),
            config=SimpleNamespace(max_connections=most),
            link=SimpleNamespace(leave_by_s=monotonic_ns() / 1e9 + 30),
        )
        self.sockets = server.sockets
        self.connections: list[Held] = []
        self.context = cast("WorkerContext", context)
        self.handover = HandOver(self.context, connections=lambda: self.connections, adopt=self.adopt)
        self.serves = True
        self.last = False  # every response says that its connection ends

    def adopt(self, sock: Any, message: TransferMessage) -> None:
        stays_ns = message.sent_ns + STAYS_NS if message.evened else 0
        self.connections.append(Held(message.since_ns // 1_000_000_000, stays_ns=stays_ns, worker=self, sock=sock))
        self.sockets.append(sock)

    def open(self, count: int) -> None:
        """Accept so many."""
        for _ in range(count):
            ours, theirs = socket.socketpair()
            self.connections.append(Held(1, worker=self, sock=ours))
            self.sockets += [ours, theirs]
        self.publish()

    def publish(self) -> None:
        """Tell the others."""
        self.handover.publish(len(self.connections), serves=self.serves)

    def give(self, *, evened: bool) -> bool:
        """Give one."""
        return self.connections[-1].give(0, evened=evened)

    def look(self, *, after_s: float = 0.0) -> bool:
        """Give or take what is to be, as if so much later; whether anything was."""
        before = len(self.connections)
        self.handover.even_out(before, monotonic_ns() + round(after_s * 1e9))
        self.publish()
        return before != len(self.connections)

    def give_all(self) -> None:
        """Retire, and give away what can be given."""
        self.serves = False
        self.publish()
        self.handover.give_all(cast("HttpContext", SimpleNamespace(drain=self._drain)))
        self.publish()

    def _drain(self, *, last: bool) -> None:
        self.last = last


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        server.orders.take_over(1)
        yield server


def pass_s(seconds: float, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so much time pass since the first message in the queue was sent."""
    later_ns = server.transfer.oldest_ns() + round(seconds * 1e9)
    monkeypatch.setattr("prefork.engines.handover.monotonic_ns", lambda: later_ns)


def held(workers: list[Worker]) -> list[int]:
    return [len(worker.connections) for worker in workers]


@given(
    counts=st.lists(st.integers(0, 60), min_size=2, max_size=12),
    seed=st.integers(0, 1 << 30),
)
def test_whatever_each_held_all_end_up_even_and_stay_so(counts: list[int], seed: int) -> None:
    chance = random.Random(seed)
    with closing(Server()) as server:
        server.orders.take_over(1)
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
    for held in giver.connections:
        held.since = monotonic_ns() // 1_000_000_000 + 1
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


def test_who_retires_gives_no_more_than_others_have_room_for(server: Server) -> None:
    leaves, stays = Worker(server, 0, most=6), Worker(server, 1, most=6)
    leaves.open(5)
    stays.open(4)
    leaves.give_all()
    assert (held([leaves, stays]), server.transfer.waiting()) == ([3, 4], 2)
    assert not leaves.handover.done
    stays.look()
    leaves.give_all()
    assert (held([leaves, stays]), leaves.last) == ([3, 6], True)
    assert leaves.handover.done
    assert {connection.done for connection in stays.connections} == {""}
    stays.connections[0].close()
    leaves.give_all()
    stays.look()
    assert (held([leaves, stays]), leaves.last) == ([2, 6], False)


def test_room_of_an_older_generation_is_counted_too(server: Server) -> None:
    leaves, older = Worker(server, 0, most=6, generation=2), Worker(server, 1, most=6)
    server.orders.take_over(2)
    leaves.open(5)
    older.open(4)
    leaves.give_all()
    assert held([leaves, older]) == [3, 4]


def test_while_the_others_are_in_calls_who_retires_serves_its_clients(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, stays = Worker(server, 0), Worker(server, 1)
    leaves.open(3)
    stays.open(0)
    leaves.give_all()
    assert server.transfer.waiting() == 3
    server.board.awake_cells[1] = monotonic_ns()  # it does not come to take them
    pass_s(1.5, server, monkeypatch)
    leaves.give_all()
    assert (held([leaves, stays]), leaves.last, leaves.handover.done) == ([3, 0], False, True)
    server.board.awake_cells[1] = 0
    leaves.give_all()
    stays.look()
    assert held([leaves, stays]) == [0, 3]


def test_before_it_is_cut_they_go_into_the_queue(server: Server) -> None:
    leaves, stays = Worker(server, 0), Worker(server, 1)
    leaves.open(3)
    stays.open(0)
    server.board.awake_cells[1] = monotonic_ns() - 2 * LATE_NS
    leaves.give_all()
    assert held([leaves, stays]) == [3, 0]
    leaves.context.link.leave_by_s = monotonic_ns() / 1e9 + 0.5
    leaves.give_all()
    assert server.transfer.waiting() == 3


def test_what_the_workers_of_another_master_do_not_take_comes_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = Worker(server, 0)
    leaves.open(3)
    server.orders.give_to_another()
    leaves.give_all()
    assert server.transfer.waiting() == 3
    pass_s(1.5, server, monkeypatch)
    leaves.give_all()
    assert (server.transfer.waiting(), leaves.last) == (3, False), "one of them may take it"
    pass_s(2.5, server, monkeypatch)
    leaves.give_all()
    assert (held([leaves]), leaves.last) == ([3], True)


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


NOW_NS = 1_000_000_000_000


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


def test_who_retires_alone_waits_five_seconds_from_then_and_never_ends_who_has_sent_something(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("prefork.engines.handover.monotonic_ns", lambda: round(now_s * 1e9))
    alone = Worker(server, 0)
    old, young, busy, sent = every = Kept(900), Kept(1003), Kept(900, idle=False), Kept(900, sent=True)
    handover = HandOver(alone.context, connections=lambda: every, adopt=alone.adopt)
    drains = []
    http = cast("HttpContext", SimpleNamespace(drain=lambda *, last: drains.append(last)))

    def after(seconds: float) -> list[str]:
        nonlocal now_s
        now_s = 1000 + seconds
        handover.give_all(http)
        return [each.done for each in (old, young, busy, sent)]

    assert after(0) == after(4.9) == ["", "", "retired", ""]
    assert after(5.0) == ["ended", "", "retired", ""]
    assert after(8.0) == ["ended", "ended", "retired", ""]
    assert set(drains) == {True}
    old.done = ""
    heir = Worker(server, 1)
    heir.publish()
    after(9.0)
    assert drains[-1] is False
    heir.serves = False
    heir.publish()
    assert after(10)[0] == after(14.9)[0] == "", "it was not alone meanwhile"
    assert after(15)[0] == "ended"


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
