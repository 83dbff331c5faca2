"""Workers that die without having completed anything are respawned ever more slowly, and the server recovers."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, Outcome, exchange
from tests.support.processes import stat
from tests.support.server import APPS
from tests.support.story import events
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"

# Dies on its first connection while the file `broken` exists; every import leaves one byte in `spawns`.
FRAGILE = """
import os
folder = {folder!r}
with open(folder + "/spawns", "a") as file:
    file.write("x")

def handle(conn):
    if os.path.exists(folder + "/broken"):
        os._exit(1)
    conn.sendall(b"fine\\n")
"""


@pytest.mark.timing
def test_barren_deaths_delay_the_next_spawn_and_one_success_clears_that(
    serve: Serve, app: AppWriter, tmp_path: Path
) -> None:
    broken, spawns = tmp_path / "broken", tmp_path / "spawns"
    broken.touch()
    verbose = ("--log-level", "debug")
    server = serve(app(FRAGILE.format(folder=str(tmp_path))), "--workers", "2", "--backlog", "64", *verbose)
    cpu_before_s = stat(server.pid).cpu_s  # type: ignore[union-attr]
    with Hammer(server.address, clients=2, data=b"", expected=b"fine\n") as hammer:
        server.wait_log(r"worker died .*respawn_in=[1-9]", within_s=60)
        cpu_s = stat(server.pid).cpu_s - cpu_before_s  # type: ignore[union-attr]
        assert_ever_more_slowly(server, workers=2, tries=len(spawns.read_text()))
        assert cpu_s < 0.5, "waiting costs nothing"
        broken.unlink()
        hammer.wait_more(10)
    assert Outcome.REFUSED not in hammer.outcomes, "the master holds the listener: clients wait, none is refused"
    for pid in server.wait_workers(2):
        server.wait_log(rf"worker ready .*pid={pid}\b")  # what is served from here on counts for it
    exchange(server.address, b"")
    known = len(server.log)
    broken.touch()
    exchange(server.address, b"")
    broken.unlink()
    died = server.wait_log(r"worker died .*", after=known, within_s=20)[0]
    assert "respawn_in" not in died, "it had served, so the next comes at once"
    server.wait_workers(2)


def assert_ever_more_slowly(server: RunningServer, *, workers: int, tries: int) -> None:
    """Each death is followed by the delay that the log states, and these grow."""
    deaths = events(server.log, "worker died")
    delays_s = [float(death.fields["respawn_in"].rstrip("s")) for death in deaths]
    assert delays_s[-1] > 2 * delays_s[0]
    assert tries <= len(deaths) + workers
    spawned_s = [event.at_s for event in events(server.log, "spawned")]
    for death, delay_s in zip(deaths, delays_s, strict=True):
        next_s = min((at_s for at_s in spawned_s if at_s > death.at_s), default=float("inf"))
        assert next_s >= death.at_s + delay_s - 0.05


def test_a_worker_that_dies_of_its_first_client_was_ready_and_is_no_boot_failure(
    serve: Serve, app: AppWriter, tmp_path: Path
) -> None:
    """Its `ready` and its death may reach the master together: the first must be heard all the same."""
    broken = tmp_path / "broken"
    target = app(FRAGILE.format(folder=str(tmp_path)))
    for _ in range(5):
        broken.touch()
        server = serve(target, "--workers", "1", ready=False)
        assert exchange(server.address, b"") == b""  # it connects before the worker is there
        broken.unlink()
        assert exchange(server.address, b"") == b"fine\n"


def test_what_a_worker_does_before_its_master_hears_that_it_is_ready_counts(
    serve: Serve, gate: Gate, app: AppWriter
) -> None:
    source = (
        f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nfrom obey import handle\n"
    )
    server = serve(app(source), "--workers", "1", env=gate.env, ready=False)
    address = server.address
    gate.wait_entered(1)
    server.signal(signal.SIGSTOP)
    gate.open()
    first = int(exchange(address, b"pid\n"))
    exchange(address, b"exit 1\n")
    server.signal(signal.SIGCONT)
    server.wait_workers(1, without={first})
    (death,) = events(server.log, "worker died")
    assert "respawn_in" not in death.fields


def test_each_attempt_is_logged_with_its_delay(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    server = serve(app(FRAGILE.format(folder=str(tmp_path))), "--workers", "1")
    with Hammer(server.address, clients=1, data=b"", expected=b"fine\n"):
        server.wait_log(r"(?i)(delay|back-?off|in)=\d", count=3, within_s=15)


def test_a_stop_during_the_delay_ends_at_once(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    server = serve(app(FRAGILE.format(folder=str(tmp_path))), "--workers", "1")
    with Hammer(server.address, clients=1, data=b"", expected=b"fine\n"):
        server.wait_log(r"(?i)exited|died", count=4, within_s=15)
        assert server.stop(within_s=15) == 0


def test_deaths_of_workers_that_had_served_are_never_delayed(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1")
    for _ in range(10):
        before = {int(exchange(server.address, b"pid\n"))}
        exchange(server.address, b"exit 1\n")
        server.wait_workers(1, without=before)
    assert [death.fields.get("respawn_in") for death in events(server.log, "worker died")] == [None] * 10


def test_workers_that_die_by_themselves_soon_after_they_are_ready(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    spawns = tmp_path / "spawns"
    source = (
        f"import os, threading\nopen({str(spawns)!r}, 'a').write('x')\n"
        "def handle(conn): ...\nthreading.Timer(0.5, os._exit, (1,)).start()\n"
    )
    server = serve(app(source), "--workers", "2")
    started = time.monotonic()
    eventually(lambda: time.monotonic() - started > 8, within_s=30)
    assert 4 <= len(spawns.read_text()) <= 20
    assert server.running
