"""`--accept per-worker`: a socket for each worker, made and kept by the master, and the kernel spreads by chance."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.master.test_handover import totals
from tests.support.client import (
    Hammer,
    Outcome,
    attempt,
    collect,
    crowd,
    dial,
    exchange,
    read_to_end,
    talkback_reply,
)
from tests.support.processes import open_fds
from tests.support.server import APPS, run
from tests.support.wait import eventually
from tests.support.web import ASGI, WEB, Browser

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"
SLOT = f"{APPS / 'identity.py'}:slot"
HI = talkback_reply(b"hi")
PER_WORKER = ("--accept", "per-worker")
HTTP = {"wsgi": (WEB,), "asyncio": (ASGI, "--loop", "asyncio"), "uvloop": (ASGI, "--loop", "uvloop")}
BAD_USAGE, CANNOT_BIND = 2, 5


def slot_that_serves(address: str) -> int:
    with dial(address) as sock:
        return int(read_to_end(sock).split()[0])


def test_connections_spread_over_the_workers(serve: Serve) -> None:
    """By chance: of 800, each of 4 gets 200, give or take 12 (one standard deviation)."""
    server = serve(SLOT, "--workers", "4", *PER_WORKER)
    counts = Counter(slot_that_serves(server.address) for _ in range(800))
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 130
    assert max(counts.values()) < 270


def test_each_worker_has_its_own_socket_and_the_master_has_them_all(serve: Serve) -> None:
    server = serve("--workers", "3", *PER_WORKER)
    assert len(server.addresses) == 1
    port = int(server.address.rpartition(":")[2])
    held = {pid: listening_sockets(pid, port) for pid in server.worker_pids()}
    assert all(len(sockets) == 1 for sockets in held.values())
    assert len(set.union(*held.values())) == 3
    assert listening_sockets(server.pid, port) == set.union(*held.values())


def listening_sockets(pid: int, port: int) -> set[str]:
    """The inodes of the process's sockets that listen on the port."""
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    return listening & set(open_fds(pid).values())


def test_the_queue_of_a_killed_worker_waits_for_its_successor(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", *PER_WORKER, env=gate.env)
    clients = crowd(server.address, 40)
    gate.wait_entered(2)
    victim = min(server.worker_pids())
    os.kill(victim, signal.SIGKILL)
    server.wait_workers(2, without={victim})
    gate.open()
    outcomes = collect(clients, HI)
    assert outcomes[Outcome.OK] == 39, outcomes  # the one in its hands is lost


def test_a_stop_drains_every_queue(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "4", *PER_WORKER, env=gate.env)
    clients = crowd(server.address, 120)
    gate.wait_entered(4)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 120}
    assert server.wait_exit() == 0


def test_if_the_workers_die_in_the_stop_another_one_drains_every_queue(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", *PER_WORKER, env=gate.env)
    clients = crowd(server.address, 30)
    gate.wait_entered(2)
    workers = server.worker_pids()
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    gate.open()
    assert collect(clients, HI)[Outcome.OK] == 28
    assert server.wait_exit() == 0


def test_under_constant_connections_the_end_comes_and_hardly_anyone_is_reset(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2", *PER_WORKER)
    with Hammer(server.address, clients=8) as hammer:
        hammer.wait_more(200)
        assert server.stop(within_s=15) == 0
    assert {failure.outcome for failure in hammer.failures} <= {Outcome.REFUSED, Outcome.RESET}
    assert hammer.outcomes[Outcome.RESET] <= 2


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["each-imports", "preload"])
def test_a_reload_loses_nobody(serve: Serve, options: tuple[str, ...]) -> None:
    server = serve("talkback", "--workers", "2", *PER_WORKER, *options)
    with Hammer(server.address) as hammer:
        hammer.wait_more(50)
        for generation in (2, 3):
            server.signal(signal.SIGHUP)
            server.wait_log(f"reloaded generation={generation}", within_s=20)
        hammer.wait_more(50)
    assert not hammer.failures


@pytest.mark.parametrize("way", HTTP.values(), ids=HTTP)
def test_a_reload_gives_idle_connections_away(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    """Nothing of a connection that is idle belongs to the socket that it came by."""
    server = serve(*way, "--workers", "2", *PER_WORKER, env=place.env)
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(20)]
        assert [browser.get("/").status for browser in browsers] == [200] * 20
        before = server.worker_pids()
        place.ok("reload")
        assert not before & server.worker_pids()
        answers = [browser.get("/pid") for browser in browsers]
        assert not any(answer.closes for answer in answers)
        assert {int(answer.body) for answer in answers} <= server.worker_pids()
        found = eventually(lambda: (seen := totals(place))["in_transfer"] == 0 and seen, within_s=5)
        assert (found["accepted"], found["closed"], found["cut"], found["connections"]) == (20, 0, 0, 20)
        assert found["given"] == found["received"] >= 20


def test_scaling_is_refused_with_the_reason(serve: Serve) -> None:
    server = serve("--workers", "2", *PER_WORKER)
    before = server.worker_pids()
    server.signal(signal.SIGTTIN)
    server.wait_log(
        r"scaling refused.*--accept per-worker has one socket for each worker: restart with another --workers"
    )
    assert server.worker_pids() == before
    assert attempt(server.address, b"hi\n", HI) is Outcome.OK


def test_several_addresses(serve: Serve) -> None:
    server = serve(SLOT, "--workers", "2", *PER_WORKER, bind=["127.0.0.1:0", "127.0.0.1:0"])
    for address in server.addresses:
        assert {slot_that_serves(address) for _ in range(60)} == {0, 1}


def test_no_second_server_joins_the_port(serve: Serve) -> None:
    """SO_REUSEPORT would let it, and take every other connection."""
    first = serve("--workers", "2", *PER_WORKER)
    second = serve(*PER_WORKER, bind=first.address, ready=False, expected_exit=CANNOT_BIND)
    assert second.wait_exit() == CANNOT_BIND
    assert f"cannot bind {first.address}: Address already in use" in second.log


@pytest.mark.parametrize("address", ["unix:app.sock", "fd://0"])
def test_what_is_one_socket_cannot_be_had_by_each_worker(tmp_path: Path, address: str) -> None:
    done = run("serve", *PER_WORKER, "--bind", address, cwd=tmp_path)
    assert done.returncode == BAD_USAGE
    assert re.search(rf"per-worker needs addresses of TCP: {address} is one socket; use --accept shared", done.stderr)
    assert not list(tmp_path.iterdir())


def test_ten_stops_under_load_reset_hardly_anyone(serve: Serve) -> None:
    totals = Counter[Outcome]()
    for _ in range(10):
        server = serve("nap", "--workers", "4", *PER_WORKER)
        with Hammer(server.address, clients=20) as hammer:
            hammer.wait_more(200)
            assert server.stop(within_s=15) == 0
        totals += hammer.outcomes
    assert set(totals) <= {Outcome.OK, Outcome.REFUSED, Outcome.RESET}
    assert totals[Outcome.RESET] <= 6, totals


def test_one_worker_is_allowed(serve: Serve) -> None:
    server = serve("--workers", "1", *PER_WORKER)
    assert exchange(server.address, b"hi\n") == HI
