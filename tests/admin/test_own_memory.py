"""The memory that the master writes for the admin process: nobody else has it, and a spoiled one is written anew."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.admin import ADMIN, address_of, admin_pid, figure, figures, status, workers_of
from tests.support.client import exchange
from tests.support.processes import alive
from tests.support.server import ROOT
from tests.support.users import as_root
from tests.support.wait import eventually
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

NOBODY = pwd.getpwnam("nobody").pw_name
MUCH = 3 << 20  # bytes: the scoreboard, which workers do write to, has fewer

# Writes over all that it shares with other processes and that is large, when it is imported and for each client.
SCRIBBLER = f"""
import ctypes, os

def scribble():
    found = 0
    with open("/proc/self/maps") as maps:
        for line in list(maps):
            span, rights, *_ = line.split()
            start, end = (int(each, 16) for each in span.split("-"))
            if rights == "rw-s" and end - start > {MUCH}:
                ctypes.memset(start, 0xff, end - start)
                found += 1
    return found

at_import = scribble()

def handle(conn):
    conn.readline()
    conn.sendall(b"%d %d %d" % (os.getpid(), at_import, scribble()))
"""


def shared_with_others(pid: int) -> list[int]:
    """The sizes of the large memories that a process shares and may write to."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, end = (int(each, 16) for each in span.split("-"))
        if rights == "rw-s" and end - start > MUCH:
            found.append(end - start)
    return found


def tells_the_truth(server: RunningServer, place: Place, *, workers: int) -> bool:
    """Whether the admin process and `prefork status` say the same, and it is so."""
    address = address_of(server)
    assert fetch(address, "/readyz").status == 200
    assert fetch(address, "/healthz").status == 200
    assert figure(figures(address), "prefork_ready") == 1
    seen, told = status(address), place.status()
    assert place.ok("status").startswith("prefork ")
    serving = [{each["pid"] for each in document["workers"]} for document in (seen, told)]
    same = serving == [workers_of(server)] * 2 and seen["totals"]["requests"] == told["totals"]["requests"]
    return same and len(serving[0]) == workers


@pytest.mark.parametrize("user", [None, pytest.param(NOBODY, marks=as_root)], ids=["", "another-user"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_an_application_finds_nothing_to_scribble_on(
    serve: Serve, open_folder: Path, place: Place, user: str | None, preload: tuple[str, ...]
) -> None:
    (open_folder / "scribbler.py").write_text(SCRIBBLER)
    args = ("--workers", "2", *preload, *(("--user", user) if user else ()), *ADMIN)
    server = serve(f"{open_folder}/scribbler.py:handle", *args, cwd=open_folder, env=place.env)
    address, admin = address_of(server), admin_pid(server)
    assert len(shared_with_others(admin)) == 1, "what the application looks for is here"
    others = server.worker_pids() - {admin}
    assert not any(map(shared_with_others, others)), "of workers, and of the template"
    for _ in range(8):
        pid, at_import, now = map(int, exchange(server.address, b"\n").split())
        assert (pid in others, at_import, now) == (True, 0, 0)
    eventually(lambda: tells_the_truth(server, place, workers=2), within_s=15, what="the truth")
    os.kill(admin, signal.SIGKILL)
    server.wait_log(rf"admin died pid={admin}")
    successor = admin_pid(server, without=admin)
    server.signal(signal.SIGTTIN)  # a worker that is forked while there is another admin process
    eventually(lambda: len(workers_of(server)) == 3, within_s=15, what="three workers")
    for _ in range(8):
        assert exchange(server.address, b"\n").endswith(b" 0 0")
    eventually(lambda: tells_the_truth(server, place, workers=3), within_s=15, what="the truth")
    assert status(address)["totals"]["requests"] == 16
    assert alive(successor)
    assert "Traceback" not in server.log
    assert server.log.count("admin died") == 1
    assert server.stop() == 0


# A server whose admin process spoils the memory, and ends, when it is asked to.
SPOILER = """
import os, sys
sys.path.insert(0, {root!r})
import prefork
from prefork.admin.process import Answers

def answer(self, method, path, authority):
    if path.startswith(b"/spoil/"):
        size = len(self._shared._memory)
        self._shared._memory[:] = os.urandom(size) if path == b"/spoil/random" else bytes([int(path[7:])]) * size
        os._exit(1)
    return answered(self, method, path, authority)

answered, Answers.answer = Answers.answer, answer
sys.exit(prefork.serve("talkback", workers=2, bind=["127.0.0.1:0"], admin="127.0.0.1:0"))
"""


@pytest.mark.parametrize("pattern", ["0", "255", "random"])
def test_what_an_admin_process_has_spoiled_its_successor_finds_whole(
    serve: Serve, place: Place, tmp_path: Path, pattern: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(SPOILER.format(root=str(ROOT)))
    server = serve(bind=None, wrapper=[sys.executable, str(program)], env=place.env)
    exchange(server.address, b"hi\n")
    eventually(lambda: tells_the_truth(server, place, workers=2), within_s=15, what="the truth")
    for count in (1, 2):
        admin = admin_pid(server)
        with Browser(address_of(server)) as browser:
            browser.send(request(f"/spoil/{pattern}"))
            assert browser.ended()
        server.wait_log('admin died .*cause="exit code 1"', count=count)
        admin_pid(server, without=admin)
        eventually(lambda: tells_the_truth(server, place, workers=2), within_s=15, what="the truth")
    assert len(workers_of(server)) == 2
    assert server.stop() == 0
