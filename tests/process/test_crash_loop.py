"""Workers that die without having completed anything are respawned ever more slowly, and the server recovers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, Outcome, exchange
from tests.support.processes import stat
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve

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


@pytest.mark.slow
def test_barren_deaths_delay_the_next_spawn_and_one_success_clears_that(
    serve: Serve, app: AppWriter, tmp_path: Path
) -> None:
    broken, spawns = tmp_path / "broken", tmp_path / "spawns"
    broken.touch()
    server = serve(app(FRAGILE.format(folder=str(tmp_path))), "--workers", "2", "--backlog", "64")
    cpu_before_s = stat(server.pid).cpu_s  # type: ignore[union-attr]
    started = time.monotonic()
    with Hammer(server.address, clients=2, data=b"", expected=b"fine\n") as hammer:
        eventually(lambda: time.monotonic() - started > 3, within_s=5)
        tries = len(spawns.read_text())
        cpu_s = stat(server.pid).cpu_s - cpu_before_s  # type: ignore[union-attr]
        assert 3 <= tries <= 14, "it keeps trying, ever more slowly"
        assert cpu_s < 0.5, "waiting costs nothing"
        broken.unlink()
        hammer.wait_more(10)
    assert Outcome.REFUSED not in hammer.outcomes, "the master holds the listener: clients wait, none is refused"
    before = server.wait_workers(2)
    exchange(server.address, b"")
    started = time.monotonic()
    broken.touch()
    exchange(server.address, b"")
    broken.unlink()
    eventually(lambda: len(server.worker_pids()) == 2 and server.worker_pids() != before, within_s=3)


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
        assert server.stop(within_s=5) == 0


def test_deaths_of_workers_that_had_served_are_never_delayed(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1")
    started = time.monotonic()
    for _ in range(10):
        before = {int(exchange(server.address, b"pid\n"))}
        exchange(server.address, b"exit 1\n")
        server.wait_workers(1, without=before)
    took_s = time.monotonic() - started
    assert took_s < 6, "ten delays of the least length, growing by half, would be 28 s"


@pytest.mark.slow
def test_workers_that_die_by_themselves_soon_after_they_are_ready(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    spawns = tmp_path / "spawns"
    source = (
        f"import os, threading\nopen({str(spawns)!r}, 'a').write('x')\n"
        "def handle(conn): ...\nthreading.Timer(0.5, os._exit, (1,)).start()\n"
    )
    server = serve(app(source), "--workers", "2")
    started = time.monotonic()
    eventually(lambda: time.monotonic() - started > 8, within_s=10)
    assert 4 <= len(spawns.read_text()) <= 20
    assert server.running
