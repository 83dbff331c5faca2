"""TTIN and TTOU: more and fewer workers while clients come, and nobody loses anything."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, collect, crowd, exchange, talkback_reply
from tests.support.load import Load, faithful, fresh
from tests.support.processes import stat
from tests.support.server import APPS
from tests.support.story import events
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"
SLOT = f"{APPS / 'identity.py'}:slot"
HI = talkback_reply(b"hi")
MORE, LESS = signal.SIGTTIN, signal.SIGTTOU

HOW = pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])


def scale_by(server: RunningServer, signum: signal.Signals) -> int:
    """Send one of the two signals; wait until it was heard, and return how many workers are wanted now."""
    heard = len(events(server.log, "scaling"))
    server.signal(signum)
    return int(server.wait_log(r"scaling workers=(\d+)", count=heard + 1)[1])


def slots(server: RunningServer, exchanges: int = 60) -> set[bytes]:
    """Ask which slots answer."""
    return {exchange(server.address, b"").split()[0] for _ in range(exchanges)}


def test_one_more_serves_and_one_less_leaves_the_highest_slot(serve: Serve) -> None:
    server = serve(SLOT, "--workers", "2")
    before = server.worker_pids()
    assert scale_by(server, MORE) == 3
    after = server.wait_workers(3)
    assert before < after
    server.wait_log("spawned worker=2 .*cause=scale")
    assert scale_by(server, LESS) == 2
    assert server.wait_workers(2) == before
    assert slots(server) == {b"0", b"1"}


def test_the_last_worker_stays(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2")
    assert scale_by(server, LESS) == 1
    (left,) = server.wait_workers(1)
    for _ in range(3):
        server.signal(LESS)
        eventually(lambda: asleep(server.pid), within_s=15, what="the signal was heard")
    assert scale_by(server, MORE) == 2, "had it counted on below 1, this would be fewer"
    assert left in server.wait_workers(2)
    assert exchange(server.address, b"hi\n") == HI


def test_who_is_served_by_a_worker_too_many_is_served_to_the_end(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "3", "--log-level", "debug", env=gate.env)
    clients = crowd(server.address, 3)
    gate.wait_entered(3)
    for _ in range(2):
        scale_by(server, LESS)
    server.wait_log("retiring .*reason=scale", count=2)
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 3}
    server.wait_workers(1)
    assert exchange(server.address, b"hi\n") == HI


def test_a_slot_that_is_wanted_again_before_it_is_empty_is_filled_at_once(serve: Serve, gate: Gate) -> None:
    """The worker that was told to leave is held by its client; its successor does not wait for that."""
    server = serve(GATED, "--workers", "2", env=gate.env)
    clients = crowd(server.address, 2)
    gate.wait_entered(2)
    scale_by(server, LESS)
    scale_by(server, MORE)
    server.wait_log("spawned worker=1 ")
    clients += crowd(server.address, 1)
    gate.wait_entered(1)
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 3}
    server.wait_workers(2)


def asleep(pid: int) -> bool:
    """A signal makes the master runnable before kill(2) returns; it sleeps again when it has dealt with it."""
    seen = stat(pid)
    return seen is not None and seen.state == "S"


@HOW
def test_scaling_during_a_reload_ends_with_the_right_number_of_the_right_generation(
    serve: Serve, how: list[str]
) -> None:
    server = serve(SLOT, "--workers", "1", *how)
    server.signal(signal.SIGHUP)
    server.wait_log("reloading")
    assert scale_by(server, MORE) == 2
    server.wait_log(r"reloaded generation=2\b")
    server.wait_workers(2 + len(how))  # and the template
    answers = {tuple(exchange(server.address, b"").split()[:2]) for _ in range(40)}
    assert answers == {(b"0", b"2"), (b"1", b"2")}


def test_a_reload_after_scaling_replaces_all_there_are_now(serve: Serve) -> None:
    server = serve(SLOT, "--workers", "1")
    scale_by(server, MORE)
    before = server.wait_workers(2)
    server.signal(signal.SIGHUP)
    server.wait_log(r"reloaded generation=2\b")
    server.wait_workers(2, without=before)


def test_a_killed_worker_of_a_scaled_server_is_replaced(serve: Serve) -> None:
    server = serve(SLOT, "--workers", "1")
    scale_by(server, MORE)
    before = server.wait_workers(2)
    eventually(lambda: len(slots(server)) == 2, within_s=30, what="both answer")
    pid = events(server.log, "spawned")[-1].pid
    os.kill(pid, signal.SIGKILL)
    assert server.wait_workers(2, without={pid}) & before


@HOW
def test_random_scalings_under_load_lose_nothing(serve: Serve, how: list[str]) -> None:
    server = serve("echo", "--workers", "2", "--threads", "4", *how)
    wander(server, 6, low=1, high=4, seed=3)


@HOW
def test_fifty_random_scalings_under_load_lose_nothing(serve: Serve, how: list[str]) -> None:
    server = serve("echo", "--workers", "4", "--threads", "4", *how)
    wander(server, 50, low=1, high=8, seed=5)


def test_fifty_random_scalings_of_one_thread_each_lose_no_new_connection(serve: Serve) -> None:
    server = serve("talkback", "--workers", "4")
    with Load(server.address, fresh(8, pause_s=0.001)) as load:
        walk(server, load, 50, low=1, high=8, seed=7)
    assert load.failed == {}, load.failures


def wander(server: RunningServer, steps: int, *, low: int, high: int, seed: int) -> None:
    """Scale at random under clients of both kinds; nobody may lose anything."""
    with Load(server.address, faithful(3, lines=20, pause_s=0.005), faithful(3, lines=1, pause_s=0.002)) as load:
        walk(server, load, steps, low=low, high=high, seed=seed)
    print(f"{steps} scalings: {dict(load.counts)}")
    assert load.failed == {}, load.failures


def walk(server: RunningServer, load: Load, steps: int, *, low: int, high: int, seed: int) -> None:
    """Scale to a random number so many times, some of them before the last has been reached."""
    choose = random.Random(seed)
    wanted = int(events(server.log, "ready")[0].fields["workers"])
    templates = len(server.worker_pids()) - wanted
    for _ in range(steps):
        goal = choose.randint(low, high)
        while wanted != goal:
            wanted = scale_by(server, MORE if goal > wanted else LESS)
        if choose.random() < 0.5:
            server.wait_workers(wanted + templates, within_s=15)
        load.wait_more(choose.randint(1, 20))
    server.wait_workers(wanted + templates, within_s=15)


def test_the_limit_is_named_when_it_is_reached(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1")
    wanted = 1
    for _ in range(80):
        server.signal(MORE)
        heard = server.wait_log(rf"scaling workers={wanted + 1}\b|cannot scale to {wanted + 1}\b.*from 0 to \d+")[0]
        if "cannot" in heard:
            break
        wanted += 1
    assert 60 <= wanted < 80
    server.wait_workers(wanted, within_s=20)
    assert exchange(server.address, b"hi\n") == HI
