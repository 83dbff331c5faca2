"""--log PATH and USR1: a rotated log loses no line and no request, also when workers are another user."""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, exchange
from tests.support.processes import open_fds
from tests.support.server import run
from tests.support.users import as_root
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

SOMEBODY = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, os.geteuid()))
TELLING = """
import logging
logger = logging.getLogger("prefork.app")
def handle(conn):
    logger.info("served")
    conn.sendall(b"done")
"""


def wait_ready(server: RunningServer, log: Path) -> str:
    """Wait for the lines that --log has taken away from standard error, and return the address."""
    eventually(lambda: server.running and log.exists() and "ready workers=" in log.read_text(), within_s=20)
    return log.read_text().partition("listening address=")[2].split()[0]


def holders(server: RunningServer, path: Path) -> set[int]:
    """The server's processes that have the file open."""
    return {pid for pid in {server.pid, *server.worker_pids()} if str(path) in open_fds(pid).values()}


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_a_rotation_under_load_loses_no_line_and_no_request(
    serve: Serve, app: AppWriter, tmp_path: Path, preload: bool
) -> None:
    log, files = tmp_path / "log", []
    args = ["--preload"] if preload else []
    server = serve(app(TELLING), "--workers", "2", "--log", str(log), *args, ready=False)
    address = wait_ready(server, log)
    everyone = {server.pid, *server.worker_pids()}
    with Hammer(address, clients=2, data=b"", expected=b"done") as hammer:
        for turn in range(5):
            old = log.rename(tmp_path / f"log.{turn}")
            files.append(old)
            server.signal(signal.SIGUSR1)
            eventually(lambda: holders(server, log) == everyone, within_s=30)
            assert not holders(server, old)
    server.stop()
    served = sum(path.read_text().count("INFO [worker=") for path in [*files, log])
    assert served == hammer.count > 0
    assert not hammer.failures
    assert server.log == ""


@as_root
def test_workers_of_another_user_follow_into_the_new_file(serve: Serve, open_folder: Path) -> None:
    """The folder is root's: the worker may open the file only since it is its own from its creation."""
    log = open_folder / "log"
    (open_folder / "telling.py").write_text(TELLING)
    server = serve(
        f"{open_folder}/telling.py:handle",
        "--workers",
        "1",
        "--user",
        SOMEBODY.pw_name,
        "--log",
        str(log),
        ready=False,
        cwd=open_folder,
    )
    address = wait_ready(server, log)
    old = log.rename(open_folder / "log.1")
    server.signal(signal.SIGUSR1)
    eventually(lambda: len(holders(server, log)) == 2, within_s=30)
    assert (log.stat().st_uid, log.stat().st_gid) == (SOMEBODY.pw_uid, SOMEBODY.pw_gid)
    assert log.stat().st_mode & 0o777 == 0o640
    exchange(address, b"")
    assert "served" in log.read_text()
    assert "served" not in old.read_text()


def test_a_log_that_cannot_be_opened_again_goes_on_in_the_old_file(
    serve: Serve, app: AppWriter, tmp_path: Path
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    server = serve(app(TELLING), "--workers", "1", "--log", str(folder / "log"), ready=False)
    wait_ready(server, folder / "log")
    folder.rename(tmp_path / "moved")
    server.signal(signal.SIGUSR1)
    old = tmp_path / "moved" / "log"
    eventually(lambda: old.read_text().count("cannot reopen the log") == 2, within_s=30)
    assert 'reason="No such file or directory"' in old.read_text()


def test_without_a_file_the_signal_changes_nothing(serve: Serve) -> None:
    server = serve("--workers", "1")
    workers = server.worker_pids()
    server.signal(signal.SIGUSR1)
    server.signal(signal.SIGTTIN)  # comes after it, so the first has been heeded
    server.wait_log("scaling workers=2")
    assert workers < server.wait_workers(2)


def test_a_log_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    done = run("serve", "--log", "no/such/folder/log", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "prefork: cannot open the log 'no/such/folder/log': No such file or directory\n"
