"""Stop, reload, scale, upgrade, deaths and hangs of workers with an asyncio loop: who is answered, and who is not."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.client import (
    Hammer,
    Outcome,
    collect,
    crowd,
    dial,
    read_to_end,
    talkback_reply,
)
from tests.support.control import Place
from tests.support.load import ClientGroup, Load, faithful, fresh
from tests.support.processes import session_members
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
SOON_S = 5.0
ACCEPT = pytest.mark.parametrize("accept", ["shared", "per-worker"])


def kinds(coroutine: str, protocol: str) -> pytest.MarkDecorator:
    """The same application as a coroutine handler and as a protocol."""
    names = (f"{APPS / 'coroutines.py'}:{coroutine}", f"{APPS / 'protocols.py'}:{protocol}")
    return pytest.mark.parametrize("app", names, ids=["coroutine", "protocol"])


def lost(counts: Counter[Outcome]) -> int:
    """Count those who were connected and not answered."""
    return sum(counts.values()) - counts[Outcome.OK] - counts[Outcome.REFUSED]


# --- the stop


@ACCEPT
@kinds("gated", "Gated")
def test_two_hundred_clients_that_are_not_yet_served_all_get_their_reply(
    serve: Serve, gate: Gate, app: str, accept: str
) -> None:
    server = serve(app, "--workers", "4", "--accept", accept, "--max-connections", "20", env=gate.env)
    clients = crowd(server.address, 200)  # eighty are let in, the others wait in the queue
    gate.wait_entered(4)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 200}
    assert server.wait_exit() == 0


@ACCEPT
@kinds("nap", "Nap")
def test_clients_that_have_connected_and_said_nothing_yet_are_served_too(serve: Serve, app: str, accept: str) -> None:
    server = serve(app, "--workers", "2", "--accept", accept)
    clients = [dial(server.address) for _ in range(200)]
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    for client in clients:
        client.sendall(b"hi\n")
    assert collect(clients, HI) == {Outcome.OK: 200}
    assert server.wait_exit() == 0


def stop_under(server: RunningServer, clients: int) -> Counter[Outcome]:
    """Stop the server under clients that come until they are refused; return how their exchanges ended."""
    with Load(server.address, ClientGroup(clients=clients, leaves=True)) as load:
        load.wait_more(5 * clients)
        server.signal(signal.SIGTERM)
        assert server.wait_exit(within_s=SOON_S) == 0
        load.wait_left()
    return load.counts


@ACCEPT
@kinds("talk", "Talk")
def test_a_stop_under_constant_connections_loses_nobody(serve: Serve, app: str, accept: str) -> None:
    assert lost(stop_under(serve(app, "--workers", "2", "--accept", accept), 20)) <= (0 if accept == "shared" else 1)


@ACCEPT
@kinds("nap", "Nap")
def test_three_stops_under_sixty_clients(serve: Serve, app: str, accept: str) -> None:
    total = Counter[Outcome]()
    for loop in ("uvloop", "uvloop", "asyncio"):
        total += stop_under(serve(app, "--workers", "4", "--accept", accept, "--loop", loop), 60)
    print(dict(total))
    assert lost(total) <= 1, dict(total)


# --- one generation after another


@ACCEPT
@kinds("nap", "Nap")
def test_a_reload_under_load_loses_nobody(serve: Serve, app: str, accept: str) -> None:
    server = serve(app, "--workers", "2", "--accept", accept)
    with Load(server.address, fresh(8)) as load:
        load.wait_more(100)
        for generation in (2, 3):
            server.signal(signal.SIGHUP)
            server.wait_log(f"reloaded generation={generation}", within_s=20)
            load.wait_more(100)
    assert not load.failed


@ACCEPT
@kinds("echo", "Echo")
def test_a_reload_lets_those_who_stay_finish(serve: Serve, app: str, accept: str) -> None:
    server = serve(app, "--workers", "2", "--accept", accept)
    with Load(server.address, faithful(8)) as load:
        load.wait_more(100)
        server.signal(signal.SIGHUP)
        server.wait_log("reloaded generation=2", within_s=20)
        load.wait_more(100)
    assert not load.failed


@kinds("nap", "Nap")
def test_scaling_under_load_loses_nobody(serve: Serve, app: str) -> None:
    server = serve(app, "--workers", "2")
    with Load(server.address, fresh(8)) as load:
        for signum, workers in ((signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2)):
            load.wait_more(100)
            server.signal(signum)
            server.wait_workers(workers)
        load.wait_more(100)
    assert not load.failed


@ACCEPT
@kinds("nap", "Nap")
def test_an_upgrade_under_load_loses_nobody(serve: Serve, place: Place, app: str, accept: str) -> None:
    server = serve(app, "--workers", "2", "--accept", accept, "--log-level", "debug", env=place.env)
    with Load(server.address, fresh(8)) as load:
        load.wait_more(100)
        server.signal(signal.SIGUSR2)
        assert server.wait_exit(within_s=20) == 0
        load.wait_more(200)
    assert not load.failed
    place.ok("stop")


# --- deaths


@ACCEPT
@kinds("nap", "Nap")
def test_a_killed_worker_costs_what_it_held(serve: Serve, app: str, accept: str) -> None:
    server = serve(app, "--workers", "4", "--accept", accept)
    kills, clients = 5, 8
    choose = random.Random(11)
    with Hammer(server.address, clients=clients) as hammer:
        for _ in range(kills):
            hammer.wait_more(50)
            victim = choose.choice(sorted(server.worker_pids()))
            os.kill(victim, signal.SIGKILL)
            server.wait_workers(4, without={victim})
        hammer.wait_more(50)
    assert Outcome.REFUSED not in hammer.outcomes
    assert len(hammer.failures) <= kills * clients // 2, hammer.outcomes


@kinds("stay", "Stay")
def test_only_the_clients_of_a_killed_worker_are_cut(serve: Serve, app: str) -> None:
    server = serve(app, "--workers", "2")
    clients = [dial(server.address) for _ in range(20)]
    served = [int(client.recv(100)) for client in clients]
    victim = served[0]
    os.kill(victim, signal.SIGKILL)
    for client, pid in zip(clients, served, strict=True):
        if pid == victim:
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                pass
    server.wait_workers(2, without={victim})
    for client, pid in zip(clients, served, strict=True):
        if pid != victim:
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
        client.close()


@kinds("stay", "Stay")
def test_the_masters_death_leaves_no_orphan(serve: Serve, app: str) -> None:
    server = serve(app, "--workers", "2", expected_exit=-signal.SIGKILL)
    with dial(server.address) as client:
        client.recv(100)
        server.signal(signal.SIGKILL)
        server.wait_exit()
        eventually(lambda: not session_members(server.pid), within_s=15, what="every worker has gone")


# --- hangs


@kinds("obey", "Obey")
@pytest.mark.parametrize("how", [b"block 60\n", b"later 60\n"], ids=["in-its-code", "by-a-timer"])
def test_a_blocked_loop_is_killed_with_its_stack_in_the_log_and_replaced(serve: Serve, app: str, how: bytes) -> None:
    server = serve(app, "--workers", "2", "--timeout", "1")
    before = server.worker_pids()
    began_s = time.monotonic()
    with dial(server.address) as client:
        client.sendall(how)
        server.wait_log("app: blocked")
        server.wait_log(r"worker=\d gen=1 pid=\d+.*SIGKILL")
        assert 0.7 < time.monotonic() - began_s < 15
    server.wait_log(r"coroutines\.py.*\bhold_up\b")
    assert len(server.wait_workers(2, without=set()) & before) == 1
    with dial(server.address) as client:
        client.sendall(b"hello\n")
        assert read_to_end(client) == b"hello\n"


@pytest.mark.timing
@ACCEPT
@kinds("talk", "Talk")
def test_a_short_timeout_does_not_kill_a_loop_under_full_load(serve: Serve, app: str, accept: str) -> None:
    timeout_s = 2  # a loop that gets no processor for so long is as good as blocked
    server = serve(app, "--workers", "2", "--timeout", str(timeout_s), "--accept", accept)
    before = server.worker_pids()
    began_s = time.monotonic()
    with Load(server.address, fresh(40)) as load:
        while time.monotonic() < began_s + 2 * timeout_s:
            load.wait_more(1000, within_s=60)
    assert not load.failed
    assert server.worker_pids() == before


@kinds("stay", "Stay")
def test_idle_loops_are_never_stuck(serve: Serve, app: str) -> None:
    server = serve(app, "--workers", "2", "--timeout", "300ms")
    before = server.worker_pids()
    with dial(server.address) as client:
        client.recv(100)
        client.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert server.worker_pids() == before
