"""`prefork stop`: it waits for what is in flight, and tells how many are left."""

from __future__ import annotations

import os
import pty
import select
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, collect, crowd, talkback_reply
from tests.support.control import Place, finish
from tests.support.processes import alive
from tests.support.server import APPS

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"


def test_stop_waits_for_what_is_in_flight_and_then_the_server_is_gone(serve: Serve, place: Place, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=place.env | gate.env)
    clients = crowd(server.address, 2)
    gate.wait_entered(2)
    stopping = place.start("stop")
    server.wait_log('stopping signal="prefork stop')
    head = place.status()["server"]
    assert (head["stopping"], head["ready"]) == (True, False)
    assert {worker["state"] for worker in place.status()["workers"]} == {"DRAINING"}
    for command in (("reload",), ("scale", "3")):
        refused = place.run(*command)
        assert (refused.returncode, refused.stderr) == (1, "prefork: the server is stopping\n")
    assert stopping.poll() is None
    gate.open()
    done = finish(stopping)
    assert (done.returncode, done.stderr) == (0, "")
    assert not alive(server.pid)
    assert place.sockets == []
    assert collect(clients, talkback_reply(b"hi"))[Outcome.OK] == 2
    assert server.wait_exit() == 0
    assert place.run("stop").returncode == 6


def test_progress_is_shown_on_a_terminal(serve: Serve, place: Place, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=place.env | gate.env)
    clients = crowd(server.address, 1)
    gate.wait_entered(1)
    ours, theirs = pty.openpty()
    process = place.start("stop", terminal=theirs)
    os.close(theirs)
    server.wait_log("stopping")
    shown = b""
    deadline = time.monotonic() + 10
    while b"1 workers left" not in shown and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 4096)
    assert b"1 workers left" in shown
    gate.open()
    assert finish(process).returncode == 0
    os.close(ours)
    collect(clients, b"")
