"""--lame-duck: after TERM the server is not ready and serves on, until the time is over or it is told again."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.master.test_systemd import Manager
from tests.support.admin import ADMIN, address_of, status, workers_of
from tests.support.client import Hammer, Outcome, attempt, exchange, talkback_reply
from tests.support.control import Place, finish
from tests.support.processes import alive
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
LONG = ("--lame-duck", "10m")  # no test waits for its end
AT_THE_GATE = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nhandle = gated.handle\n"


def leaving(server: RunningServer, signum: signal.Signals = signal.SIGTERM) -> None:
    """Ask the server to stop, and wait until it says that it will."""
    server.signal(signum)
    server.wait_log(r"leaving signal=SIGTERM stops_in=600s")


def test_until_the_time_is_over_clients_are_served(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2", "--lame-duck", "300ms")
    with Hammer(server.address, clients=4) as hammer:
        hammer.wait_more(20)
        server.signal(signal.SIGTERM)
        server.wait_log("leaving")
        hammer.wait_more(20)
        assert server.wait_exit() == 0
    assert {failure.outcome for failure in hammer.failures} <= {Outcome.REFUSED, Outcome.RESET}
    said = re.findall(r"(leaving signal=\S+ stops_in=\S+|stopping signal=.*(?= workers)|stopped)", server.log)
    assert said == ["leaving signal=SIGTERM stops_in=0.3s", 'stopping signal="--lame-duck is over"', "stopped"]


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_ends_the_wait(serve: Serve, again: signal.Signals) -> None:
    server = serve("talkback", "--workers", "1", *LONG)
    leaving(server)
    assert exchange(server.address, b"hi\n") == HI
    assert server.stop(again) == 0
    assert f"stopping signal={again.name}" in server.log


def test_an_interrupt_at_a_terminal_does_not_wait(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *LONG)
    assert server.stop(signal.SIGINT) == 0
    assert "leaving" not in server.log


def test_status_says_so_and_stop_waits_or_ends_the_wait(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", *LONG, env=place.env)
    assert (place.status()["server"]["ready"], place.status()["server"]["stopping"]) == (True, False)
    first = place.start("stop")
    server.wait_log(r"leaving signal=\"prefork stop")
    head = place.status()["server"]
    assert (head["ready"], head["stopping"]) == (False, True)
    assert [worker["state"] for worker in place.status()["workers"]] == ["IDLE", "IDLE"]
    assert "the server is stopping" in place.run("reload").stderr
    assert exchange(server.address, b"hi\n") == HI
    assert place.ok("stop").startswith("stopped in ")
    assert finish(first).returncode == 0
    assert server.wait_exit() == 0


def test_what_would_change_the_server_is_not_begun_any_more(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *LONG)
    leaving(server)
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGUSR2)
    server.wait_log(r'upgrade refused reason="the server is stopping"')
    assert "reloading" not in server.log
    assert server.stop() == 0


def test_a_worker_that_dies_meanwhile_is_replaced(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *LONG)
    (worker,) = server.worker_pids()
    leaving(server)
    os.kill(worker, signal.SIGKILL)
    server.wait_workers(1, without={worker})
    assert attempt(server.address, b"hi\n", HI) is Outcome.OK
    assert server.stop() == 0


def test_a_signal_to_the_whole_group_is_no_death(serve: Serve) -> None:
    """Workers leave at once then, and are replaced; the admin stays, as somebody has to say that we leave."""
    server = serve("talkback", "--workers", "2", *LONG, *ADMIN)
    admin, before = address_of(server), workers_of(server)
    with Hammer(server.address, clients=4) as hammer:
        hammer.wait_more(20)
        server.signal_group(signal.SIGTERM)
        server.wait_log(r"leaving signal=SIGTERM")
        eventually(lambda: fetch(admin, "/readyz").status == 503, within_s=15)
        eventually(lambda: len(workers_of(server) - before) == 2, within_s=15, what="two new workers")
        hammer.wait_more(20)
    assert not hammer.failures
    assert "died" not in server.log
    assert status(admin)["deaths"]["count"] == 0
    assert server.stop() == 0


def test_a_server_that_nobody_knows_of_yet_does_not_wait(serve: Serve, app: AppWriter, gate: Gate) -> None:
    server = serve(app(AT_THE_GATE), "--workers", "1", *LONG, env=gate.env, ready=False)
    gate.wait_entered(1)
    assert server.stop() == 0
    assert "leaving" not in server.log


def test_an_upgrade_under_way_is_given_up(serve: Serve, app: AppWriter, gate: Gate) -> None:
    handler = app("def handle(conn):\n    conn.sendall(b'old')\n")
    server = serve(handler, "--workers", "1", *LONG, env=gate.env)
    app(AT_THE_GATE)
    server.signal(signal.SIGUSR2)
    gate.wait_entered(1)
    leaving(server)
    server.wait_log(r"upgrade failed .*reason=\"the server stops\"")
    assert exchange(server.address, b"") == b"old"
    assert server.stop() == 0


def test_an_upgrade_hands_over_at_once(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *LONG)
    server.signal(signal.SIGUSR2)
    successor = int(server.wait_log(r"upgrading successor=(\d+)")[1])
    server.wait_log("took over predecessor=", within_s=20)
    try:
        eventually(lambda: not server.running, within_s=30, what="the old master's end")
    finally:
        os.kill(successor, signal.SIGINT)
        eventually(lambda: not alive(successor), within_s=30, what="the new master's end")
    assert "leaving" not in server.log


def test_the_service_manager_is_told_at_once(serve: Serve, tmp_path: Path) -> None:
    manager = Manager(tmp_path / "notify")
    server = serve("talkback", "--workers", "1", *LONG, env=manager.env)
    assert manager.next()[1][0] == "READY=1"
    leaving(server)
    assert manager.next()[1] == ["STOPPING=1", "STATUS=stopping: SIGTERM"]
    assert manager.nothing_more()
    assert server.stop() == 0
    manager.close()
