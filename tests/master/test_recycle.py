"""--max-requests, --max-age: a worker that has done its share is replaced by a fresh one, and nobody loses anything."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, collect, crowd, dial, exchange, read_exactly, talkback_reply
from tests.support.load import Load, fresh
from tests.support.server import APPS
from tests.support.story import events, strengths

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"
PID = f"{APPS / 'identity.py'}:pid"
HI = talkback_reply(b"hi")
DEBUG = ["--log-level", "debug"]

HOW = pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])


def ask(server: RunningServer, count: int) -> Counter[int]:
    """Do so many exchanges, one after another, and count who answered."""
    return Counter(int(exchange(server.address, b"")) for _ in range(count))


def recycled(server: RunningServer) -> set[int]:
    """List the workers that have left to be replaced."""
    told = {event.pid for event in events(server.log, "retiring") if event.fields["reason"] == "max-requests"}
    return told & {event.pid for event in events(server.log, "worker retired")}


@HOW
def test_each_worker_serves_its_share_and_is_replaced(serve: Serve, how: list[str]) -> None:
    server = serve(PID, "--workers", "1", "--max-requests", "100", *DEBUG, *how)
    served = Counter[int]()
    while len(recycled(server)) < 3:
        served += ask(server, 20)
        assert served.total() < 30_000
    for pid in recycled(server):
        # It serves on until its successor is ready: some milliseconds, or more on a loaded machine.
        assert 100 <= served[pid] < 10_000


def test_the_successor_is_ready_before_the_worker_leaves(serve: Serve) -> None:
    server = serve(PID, "--workers", "2", "--max-requests", "50", *DEBUG)
    ask(server, 400)
    server.wait_log("worker retired", count=2)
    for each in strengths(server.log):
        assert each.serving >= 2, each
        assert each.alive <= 3, each


def test_without_the_option_nobody_is_replaced(serve: Serve) -> None:
    server = serve(PID, "--workers", "2")
    assert set(ask(server, 300)) == server.worker_pids()
    assert "recycle" not in server.log


def test_jitter_spreads_the_ends(serve: Serve) -> None:
    """Four workers of one age, each with a share of its own: their ends are not those of a single moment."""
    server = serve(PID, "--workers", "4", "--max-requests", "30", "--max-requests-jitter", "90", *DEBUG)
    first = server.worker_pids()
    served = Counter[int]()
    while not first <= recycled(server):
        served += ask(server, 20)
        assert served.total() < 30_000
    shares = sorted(served[pid] for pid in first)
    assert shares[0] >= 30
    assert shares[-1] - shares[0] >= 10, shares


def test_who_is_being_served_when_the_share_is_done_is_served_to_the_end(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "1", "--threads", "2", "--max-requests", "1", *DEBUG, env=gate.env)
    clients = crowd(server.address, 2)
    gate.wait_entered(2)
    clients += crowd(server.address, 1)
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 3}
    server.wait_log("worker retired")


def test_a_client_that_stays_delays_the_end_of_its_worker_and_loses_nothing(serve: Serve) -> None:
    server = serve("echo", "--workers", "1", "--threads", "2", "--max-requests", "3", *DEBUG)
    with dial(server.address) as client:
        for number in range(3):
            exchange(server.address, b"x\n", half_close=True)
            client.sendall(b"%d\n" % number)
            assert read_exactly(client, 2) == b"%d\n" % number
        server.wait_log("retiring .*reason=max-requests")
        client.sendall(b"after\n")
        assert read_exactly(client, 6) == b"after\n"
        assert exchange(server.address, b"y\n", half_close=True) == b"y\n"
    server.wait_log("worker retired")


def test_a_reload_and_recycling_at_once_end_with_everyone_new(serve: Serve) -> None:
    server = serve(PID, "--workers", "2", "--max-requests", "40", *DEBUG)
    before = server.worker_pids()
    server.signal(signal.SIGHUP)
    ask(server, 200)
    server.wait_log(r"reloaded generation=2\b")
    assert not before & set(ask(server, 50))


@HOW
def test_recycling_under_load_loses_nothing(serve: Serve, how: list[str]) -> None:
    server = serve("talkback", "--workers", "2", "--max-requests", "100", "--max-requests-jitter", "30", *DEBUG, *how)
    with Load(server.address, fresh(4, pause_s=0.002)) as load:
        server.wait_log("worker retired", count=3)
        load.wait_more(50)
    assert load.failed == {}
    assert server.stop() == 0
    (said,) = events(server.log, "stopped")
    assert int(said.fields["completed"]) == load.counts[Outcome.OK], "what the retired have done is counted too"


@HOW
def test_workers_of_an_age_are_replaced_under_load_and_nothing_is_lost(
    serve: Serve, place: Place, how: list[str]
) -> None:
    server = serve("talkback", "--workers", "2", "--max-age", "1s", *DEBUG, *how, env=place.env)
    with Load(server.address, fresh(4, pause_s=0.002)) as load:
        server.wait_log("worker retired", count=3)
    assert load.failed == {}
    assert {event.fields["reason"] for event in events(server.log, "retiring")} == {"max-age"}
    for each in strengths(server.log):
        assert each.serving >= 2, each
        assert each.alive <= 3, each
    assert place.status()["totals"]["respawns"].keys() == {"max-age"}


@HOW
def test_recycling_for_a_while_loses_nothing_and_keeps_every_share(serve: Serve, how: list[str]) -> None:
    args = ["--max-requests", "200", "--max-requests-jitter", "100"]
    server = serve("nap", "--workers", "4", "--threads", "2", *args, *DEBUG, *how)
    with Load(server.address, fresh(8)) as load:
        load.wait_more(10_000, within_s=60)
    print(f"{len(recycled(server))} recycled: {dict(load.counts)}")
    assert load.failed == {}, load.failures
    assert len(recycled(server)) >= 10_000 / 300 * 0.5
    for each in strengths(server.log):
        assert each.serving >= 4, each
        assert each.alive <= 5, each
