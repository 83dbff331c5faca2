"""What a worker that retires gives, keeps, and takes back."""

from __future__ import annotations

from contextlib import closing
from time import monotonic_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from prefork.engines.handover import LATE_NS, HandOver
from tests.support.handover import Kept, Server, Worker, held, pass_s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.engines.http_context import HttpContext


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


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
