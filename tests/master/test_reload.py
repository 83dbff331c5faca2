"""HUP: every worker is replaced, each by one that is ready before the old one leaves, and nobody loses anything."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, collect, crowd, dial, exchange, read_exactly, read_to_end, talkback_reply
from tests.support.load import Load, faithful, fresh
from tests.support.processes import children, session_members
from tests.support.server import APPS
from tests.support.story import events, strengths
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"
SLOT = f"{APPS / 'identity.py'}:slot"
HI = talkback_reply(b"hi")
HUP = signal.SIGHUP

HOW = pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])


def version(number: int) -> str:
    """Write the source of an application that tells its version."""
    return f"def handle(conn):\n    conn.sendall(b'version {number}\\n')\n"


def assert_at_strength(server: RunningServer, workers: int) -> None:
    """Never fewer serving workers than asked, and never more than one extra: by the log, event for event."""
    followed = strengths(server.log)
    assert len(followed) > 1, "the log is read at level debug"
    for each in followed:
        assert each.serving >= workers, each
        assert each.alive <= workers + 1, each


@pytest.mark.smoke
@HOW
def test_every_worker_is_replaced_and_runs_the_new_code(serve: Serve, app: AppWriter, how: list[str]) -> None:
    name = app(version(1))
    server = serve(name, "--workers", "2", "--log-level", "debug", *how)
    before = children(server.pid)
    assert exchange(server.address, b"") == b"version 1\n"
    app(version(2))
    server.signal(HUP)
    server.wait_log(r"reloaded generation=2\b")
    assert {exchange(server.address, b"") for _ in range(10)} == {b"version 2\n"}
    eventually(lambda: not before & children(server.pid), within_s=15, what="no process of the old generation")
    assert len(children(server.pid)) == len(before)
    assert_at_strength(server, 2)


@HOW
def test_successors_take_the_slots_of_their_predecessors(serve: Serve, how: list[str]) -> None:
    server = serve(SLOT, "--workers", "2", *how)
    server.signal(HUP)
    server.wait_log(r"reloaded generation=2\b")
    answers = set[tuple[bytes, ...]]()

    def both() -> bool:
        answers.add(tuple(exchange(server.address, b"").split()[:2]))
        return len(answers) == 2

    eventually(both, within_s=20, what="both workers answer")
    assert answers == {(b"0", b"2"), (b"1", b"2")}


@HOW
def test_signals_during_a_reload_ask_for_exactly_one_more(serve: Serve, how: list[str]) -> None:
    server = serve("talkback", "--workers", "1", *how)
    server.signal(HUP)
    server.wait_log(r"spawned .*gen=2\b")
    for count in range(2, 6):
        server.signal(HUP)
        server.wait_log("reloading", count=count)
    server.wait_log(r"reloaded generation=3\b")
    server.signal(signal.SIGTTIN)  # the next worker is of the generation that is in force
    assert "gen=3" in server.wait_log("spawned .*cause=scale")[0]
    assert not [event for event in events(server.log, "reloaded") if int(event.fields["generation"]) > 3]


def test_who_is_being_served_is_served_to_the_end_by_the_old_worker(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "1", "--log-level", "debug", env=gate.env)
    clients = crowd(server.address, 1)
    gate.wait_entered(1)
    server.signal(HUP)
    server.wait_log("retiring .*reason=reload")
    clients += crowd(server.address, 1)
    gate.wait_entered(1)  # the successor serves already
    assert "reloaded" not in server.log, "a reload is done when the last of the old has left"
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 2}
    server.wait_log(r"reloaded generation=2\b")


def test_who_stays_past_the_graceful_timeout_is_cut_and_the_reload_goes_on(serve: Serve) -> None:
    server = serve("echo", "--workers", "1", "--graceful-timeout", "300ms")
    with dial(server.address) as client:
        client.sendall(b"one\n")
        assert read_exactly(client, 4) == b"one\n"
        server.signal(HUP)
        server.wait_log(r"connections cut .*count=1\b")
        try:
            assert read_to_end(client) == b""
        except ConnectionResetError:
            pass  # cut is cut
    server.wait_log(r"reloaded generation=2\b")
    assert exchange(server.address, b"two\n", half_close=True) == b"two\n"


@HOW
def test_a_stop_during_a_reload_serves_everyone_and_leaves_nobody(serve: Serve, gate: Gate, how: list[str]) -> None:
    server = serve(GATED, "--workers", "2", *how, env=gate.env)
    clients = crowd(server.address, 12)
    gate.wait_entered(2)
    server.signal(HUP)
    server.wait_log("spawned .*gen=2")
    server.signal(signal.SIGTERM)
    server.wait_log("stopping")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 12}
    assert server.wait_exit() == 0
    assert not session_members(server.pid)


@HOW
def test_a_stop_right_after_the_signal_is_obeyed(serve: Serve, how: list[str]) -> None:
    server = serve("talkback", "--workers", "2", *how)
    server.signal(HUP)
    assert server.stop() == 0


def test_a_reload_asked_for_during_the_start_follows_it(serve: Serve, gate: Gate, tmp_path: Path) -> None:
    """The application stands at the gate while it is imported."""
    source = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nhandle = gated.handle\n"
    (tmp_path / "slow.py").write_text(source)
    server = serve(f"{tmp_path / 'slow.py'}:handle", "--workers", "1", env=gate.env, ready=False)
    gate.wait_entered(1)
    server.signal(HUP)
    server.wait_log("reloading")
    gate.open()
    server.wait_ready()
    server.wait_log(r"reloaded generation=2\b")
    assert exchange(server.address, b"hi\n") == HI


@HOW
def test_a_worker_that_is_killed_during_a_reload_is_replaced(serve: Serve, gate: Gate, how: list[str]) -> None:
    """The old worker is held by its client, so that the reload cannot end before the successor is killed."""
    server = serve(GATED, "--workers", "1", "--log-level", "debug", *how, env=gate.env)
    clients = crowd(server.address, 1)
    gate.wait_entered(1)
    server.signal(HUP)
    server.wait_log("retiring .*reason=reload")
    (successor,) = (event.pid for event in events(server.log, "worker ready") if event.fields["gen"] == "2")
    doomed = crowd(server.address, 1)
    gate.wait_entered(1)
    os.kill(successor, signal.SIGKILL)
    server.wait_log(rf"worker died .*pid={successor}\b")
    clients += crowd(server.address, 1)
    gate.wait_entered(1)
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 2}
    assert Outcome.OK not in collect(doomed, HI)
    server.wait_log(r"reloaded generation=2\b")


@HOW
def test_reloads_under_load_lose_nothing(serve: Serve, how: list[str]) -> None:
    server = serve("echo", "--workers", "1", "--threads", "8", "--log-level", "debug", *how)
    with Load(server.address, faithful(3), faithful(3, lines=1, pause_s=0.005)) as load:
        load.wait_more(20)
        reload_n_times(server, load, 3)
    assert load.failed == {}, load.failures
    assert_at_strength(server, 1)


def reload_n_times(server: RunningServer, load: Load, count: int, *, for_s: float = float("inf")) -> int:
    """Reload again and again, each time waiting for its end, for at most `for_s` seconds; return how often."""
    ends_s = time.monotonic() + for_s
    done = 0
    while done < count and time.monotonic() < ends_s:
        server.signal(HUP)
        server.wait_log(rf"reloaded generation={done + 2}\b", within_s=30)
        load.wait_more(10)
        done += 1
    return done


@HOW
def test_new_connections_lose_nothing_in_twenty_seconds_of_reloads(serve: Serve, how: list[str]) -> None:
    server = serve("talkback", "--workers", "4", "--log-level", "debug", *how)
    with Load(server.address, fresh(8, pause_s=0.002)) as load:
        reloads = reload_n_times(server, load, 1_000, for_s=20)
    assert load.failed == {}, load.failures
    assert reloads >= 5
    assert_at_strength(server, 4)


def test_persistent_clients_lose_nothing_in_twenty_seconds_of_reloads(serve: Serve) -> None:
    server = serve("echo", "--workers", "4", "--threads", "4", "--log-level", "debug")
    with Load(server.address, faithful(6, lines=50), faithful(4, lines=1, pause_s=0.005)) as load:
        reloads = reload_n_times(server, load, 1_000, for_s=20)
    assert load.failed == {}, load.failures
    assert reloads >= 3
    assert_at_strength(server, 4)


@pytest.mark.soak
@pytest.mark.timeout(1_200)
@HOW
def test_a_hundred_reloads_under_load_lose_nothing(serve: Serve, how: list[str]) -> None:
    server = serve("echo", "--workers", "4", "--threads", "4", "--log-level", "debug", *how)
    with Load(server.address, faithful(6, lines=20), faithful(6, lines=1, pause_s=0.005), limit_s=1_200) as load:
        assert reload_n_times(server, load, 100) == 100
    assert load.failed == {}, load.failures
    assert_at_strength(server, 4)
