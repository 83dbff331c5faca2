"""`prefork reload`: it waits for the end, and says why it came to nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, exchange
from tests.support.control import Place, dial_control, finish

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve

pytestmark = pytest.mark.slow


def test_reload_waits_until_every_worker_is_new_and_loses_nobody(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    before = server.worker_pids()
    with Hammer(server.address, clients=2) as hammer:
        place.ok("reload")
        after = server.worker_pids()
        hammer.wait_more(20)
    assert len(after) == 2
    assert not after & before
    assert hammer.failures == []
    last = place.status()["server"]["last_reload"]
    assert (last["generation"], last["ok"], last["reason"]) == (2, True, None)
    assert place.status()["totals"]["respawns"] == {"reload": 2}


def test_a_broken_reload_is_abandoned_and_says_why(serve: Serve, place: Place, app: AppWriter) -> None:
    name = app("def handle(conn):\n    conn.sendall(b'one')\n")
    server = serve(name, "--workers", "2", env=place.env)
    before = server.worker_pids()
    app("def handle(conn:\n")
    failed = place.run("reload")
    assert failed.returncode == 1
    assert failed.stderr.startswith("prefork: reload to generation 2 abandoned, the old generation serves on: ")
    assert "SyntaxError" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert exchange(server.address) == b"one"
    head = place.status()["server"]
    assert (head["generation"], head["ready"], head["reloading"]) == (1, True, False)
    assert head["last_reload"]["ok"] is False
    assert "SyntaxError" in head["last_reload"]["reason"]
    assert "SyntaxError" in place.ok("status")
    assert server.worker_pids() == before
    app("def handle(conn):\n    conn.sendall(b'two')\n")
    assert place.ok("reload").startswith("reloaded: generation 3")
    assert exchange(server.address) == b"two"
    server.expect_traceback = True  # the application's own, of its SyntaxError


def test_reloads_at_the_same_time_all_end(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    asked = [place.start("reload") for _ in range(4)]
    done = [finish(process) for process in asked]
    assert [process.returncode for process in done] == [0, 0, 0, 0], [process.stderr for process in done]
    generations = {re.search(r"generation (\d+)", process.stdout)[1] for process in done}  # type: ignore[index]
    assert generations <= {"2", "3", "4", "5"}
    assert len(server.worker_pids()) == 2


def test_a_reload_queued_behind_one_that_is_abandoned_still_comes(serve: Serve, place: Place, app: AppWriter) -> None:
    """The queued one loads what is there by then."""
    held = place.root / "held"
    name = app("def handle(conn):\n    conn.sendall(b'one')\n")
    server = serve(name, "--workers", "1", env=place.env)
    app(
        f"import pathlib, time\nwhile not pathlib.Path({str(held)!r}).exists(): time.sleep(0.01)\nraise SystemExit(1)\n"
    )
    first = place.start("reload")
    server.wait_log("reloading control")
    server.wait_log("spawned .*cause=reload")
    second = place.start("reload")
    server.wait_log("reloading control", count=2)
    app("def handle(conn):\n    conn.sendall(b'two')\n")
    held.touch()
    assert finish(first).returncode == 1
    done = finish(second)
    assert (done.returncode, done.stderr) == (0, "")
    assert exchange(server.address) == b"two"
    server.expect_traceback = True


def test_a_client_that_leaves_in_the_middle_takes_nothing_back(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    before = server.worker_pids()
    with dial_control(place.socket_of(server.pid)) as client:
        client.sendall(b'{"command": "reload"}\n')
        assert b"generation 2" in client.recv(65536)
    server.wait_log("reloaded generation=2")
    assert not server.worker_pids() & before
