"""A worker that dies costs the connections it held; the next one takes its slot at once."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, Outcome, collect, crowd, dial, exchange, read_to_end, talkback_reply
from tests.support.processes import zombies_of
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"
IDENTITY = f"{APPS / 'identity.py'}:slot"
OBEY = f"{APPS / 'obey.py'}:handle"


def slots(server: RunningServer, count: int) -> dict[str, int]:
    """Ask until so many living workers have answered: slot -> pid."""
    found: dict[str, int] = {}

    def ask() -> bool:
        slot, _generation, pid = exchange(server.address, b"").decode().split()
        found[slot] = int(pid)
        return len(found) == count

    eventually(ask, within_s=30, what=f"answers of {count} slots")
    return found


@pytest.mark.smoke
def test_an_idle_worker_that_is_killed_is_respawned_in_its_slot(serve: Serve) -> None:
    server = serve(IDENTITY, "--workers", "3")
    before = slots(server, 3)
    os.kill(before["1"], signal.SIGKILL)
    server.wait_workers(3, without={before["1"]})
    server.wait_log(rf"worker=1 gen=1 pid={before['1']}\b.*SIGKILL")
    after = slots(server, 3)
    assert after["0"] == before["0"]
    assert after["2"] == before["2"]
    assert after["1"] != before["1"]
    assert not zombies_of(server.pid)


def test_only_the_connections_of_the_dead_worker_fail(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "4", env=gate.env)
    clients = crowd(server.address, 20)  # four are held by a worker each, sixteen wait in the kernel's queue
    gate.wait_entered(4)
    os.kill(min(server.worker_pids()), signal.SIGKILL)
    gate.wait_entered(1)  # the successor has taken one from the queue
    gate.open()
    outcomes = collect(clients, talkback_reply(b"hi"))
    assert outcomes[Outcome.OK] == 19, outcomes


def test_kills_under_load_cost_at_most_a_connection_each(serve: Serve) -> None:
    server = serve("nap", "--workers", "4")
    kills = 6
    choose = random.Random(7)
    with Hammer(server.address, clients=8) as hammer:
        for _ in range(kills):
            hammer.wait_more(40)
            victim = choose.choice(sorted(server.worker_pids()))
            os.kill(victim, signal.SIGKILL)
            server.wait_workers(4, without={victim})
        hammer.wait_more(40)
    assert len(hammer.failures) <= kills, hammer.outcomes
    assert Outcome.REFUSED not in hammer.outcomes


def test_all_workers_killed_at_once_are_all_reaped_and_respawned(serve: Serve) -> None:
    """Many deaths, one SIGCHLD: whoever counts signals instead of children loses some."""
    server = serve("--workers", "12")
    for _ in range(48):  # each has completed something: their deaths are no crash loop
        exchange(server.address)
    before = server.worker_pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    server.wait_workers(12, without=before)
    assert not zombies_of(server.pid)
    assert exchange(server.address, b"hi\n") == talkback_reply(b"hi")


@pytest.mark.parametrize(
    ("deed", "name"),
    [(b"segfault", "SIGSEGV"), (b"abort", "SIGABRT"), (b"signal SIGBUS", "SIGBUS")],
    ids=["segv", "abrt", "bus"],
)
def test_a_crash_in_c_is_reported_by_name_with_a_python_stack(serve: Serve, deed: bytes, name: str) -> None:
    server = serve(OBEY, "--workers", "1")
    before = server.worker_pids()
    with dial(server.address) as client:
        client.sendall(deed + b"\n")
        try:
            assert read_to_end(client) == b""
        except ConnectionResetError:
            pass  # a process that dies with unread input resets: that is the kernel's word for it
    server.wait_log(rf"worker=0 gen=1 pid={before.pop()}\b.*{name}")
    server.wait_log(r'File ".*obey\.py", line \d+ in ')
    server.wait_workers(1)
    assert exchange(server.address, b"pid\n") == b"%d\n" % next(iter(server.worker_pids()))


def test_a_worker_that_exits_by_itself_is_reported_with_its_code(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1")
    exchange(server.address, b"pid\n")
    (before,) = server.worker_pids()
    exchange(server.address, b"exit 7\n")
    server.wait_log(rf"worker=0 gen=1 pid={before}\b.*\b7\b")
    server.wait_workers(1, without={before})


def test_exit_codes_three_and_four_after_ready_are_ordinary_deaths(serve: Serve) -> None:
    """Only before the first ready do they mean that the server cannot work."""
    server = serve(OBEY, "--workers", "1")
    for code in (3, 4):
        exchange(server.address, b"pid\n")
        before = server.worker_pids()
        exchange(server.address, b"exit %d\n" % code)
        server.wait_workers(1, without=before)
    assert server.running


def test_a_worker_that_is_told_term_by_a_stranger_retires_and_is_replaced(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "1", env=gate.env)
    clients = crowd(server.address, 1)
    gate.wait_entered(1)
    (before,) = server.worker_pids()
    os.kill(before, signal.SIGTERM)
    gate.open()
    assert collect(clients, talkback_reply(b"hi")) == {Outcome.OK: 1}
    server.wait_workers(1, without={before})
    assert exchange(server.address, b"hi\n") == talkback_reply(b"hi")


def test_workers_ignore_what_is_meant_for_the_master(serve: Serve) -> None:
    server = serve("--workers", "2")
    before = server.worker_pids()
    for pid in before:
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, signum)
    assert [exchange(server.address, b"hi\n") for _ in range(20)] == [talkback_reply(b"hi")] * 20
    assert server.worker_pids() == before
