"""How a worker ends: exit functions run, jobs that were accepted are done, and what is cut is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.control import Place
from tests.support.owner import EACH_ENGINE, EACH_KIND, KINDS, WSGI, Kind, ask
from tests.support.processes import alive
from tests.support.server import clean_environment
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

ONE = ("--workers", "1")
HOW = pytest.mark.parametrize("how", [(), ("--preload",)], ids=["each-imports", "preload"])
WITHIN_S = 20.0


def stop(server: RunningServer, _place: Place) -> None:
    """End the whole server."""
    assert server.stop() == 0


def reload(server: RunningServer, _place: Place) -> None:
    """Replace the worker."""
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")


def scale_down(_server: RunningServer, place: Place) -> None:
    """End the worker, and start none."""
    place.ok("scale", "0")


def upgrade(server: RunningServer, _place: Place) -> None:
    """Give everything to a new master, which is told to stop then."""
    server.signal(signal.SIGUSR2)
    successor = int(server.wait_log(r"handed over successor=(\d+)", within_s=WITHIN_S)[1])
    assert server.wait_exit(within_s=WITHIN_S) == 0
    os.kill(successor, signal.SIGTERM)


def recycle(_server: RunningServer, _place: Place) -> None:
    """Nothing: --max-requests does it."""


ENDS = {"stop": stop, "reload": reload, "scale-down": scale_down, "recycle": recycle, "upgrade": upgrade}
EACH_END = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)


def lines_of(diary: Path, pid: int) -> list[str]:
    """What a process has written, in order."""
    lines = [line.split() for line in diary.read_text().splitlines()] if diary.exists() else []
    return [word for word, writer in lines if writer == str(pid)]


@EACH_KIND
@HOW
@EACH_END
def test_exit_functions_run_after_the_jobs_that_were_accepted(
    serve: Serve, place: Place, tmp_path: Path, kind: Kind, how: tuple[str, ...], end: Callable[..., None]
) -> None:
    diary = tmp_path / "diary"
    options = ("--max-requests", "3") if end is recycle else ()
    server = serve(*kind, *ONE, *how, *options, env={**place.env, "DIARY": str(diary)})
    worker = int(ask(server, kind, "pid"))
    ask(server, kind, "submit")
    ask(server, kind, "thread")
    end(server, place)
    eventually(lambda: not alive(worker), within_s=WITHIN_S, what="the worker gone")
    assert lines_of(diary, worker) == ["job", "job", "atexit"]
    assert "application cut" not in server.log


@EACH_ENGINE
@pytest.mark.parametrize(
    ("deed", "named"),
    [("stuck", 'unfinished="thread uploader"'), ("hang", r'unfinished="linger_at_exit\(\) at /.*owner.py:\d+"')],
)
def test_what_is_cut_at_the_graceful_timeout_is_named_in_one_line(
    serve: Serve, kind: Kind, deed: str, named: str
) -> None:
    server = serve(*kind, *ONE, "--graceful-timeout", "1")
    ask(server, kind, deed)
    assert server.stop() == 0
    server.wait_log(rf"WARNING \[worker=0 .*\] application cut {named} after=1s")
    assert "killing worker" not in server.log


@EACH_ENGINE
def test_daemonic_processes_end_although_the_application_is_cut(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE, "--graceful-timeout", "1")
    pid = int(ask(server, kind, "process fork"))
    ask(server, kind, "stuck")
    assert alive(pid)
    assert server.stop() == 0
    server.wait_log('application cut unfinished="thread uploader" after=1s')
    eventually(lambda: not alive(pid), within_s=WITHIN_S, what="the process gone")


@pytest.mark.parametrize("kind", [KINDS["wsgi-threads"], KINDS["asgi"]], ids=["wsgi-threads", "asgi"])
def test_an_exporter_of_opentelemetry_loses_no_span(serve: Serve, tmp_path: Path, kind: Kind) -> None:
    names = tmp_path / "names"
    name = "traced_wsgi" if kind[0].endswith("wsgi") else "traced_asgi"
    app = kind[0].rpartition("/")[0] + f"/traced.py:{name}"
    server = serve(app, *kind[1:], *ONE, env={"NAMES": str(names)})
    for _ in range(3):
        ask(server, kind, "x")
    server.stop()
    assert names.read_text().split() == ["span"] * 3


CALLER = """
import atexit, os, sys, tempfile, prefork
from pathlib import Path

def write(line):
    with open(os.environ["DIARY"], "a") as file:
        file.write(f"{line} {os.getpid()}\\n")

folder = tempfile.TemporaryDirectory()
atexit.register(write, "caller")

def app(environ, start_response):
    atexit.register(write, "worker")
    start_response("200 OK", [("Content-Length", "2")])
    assert Path(folder.name).is_dir()
    return [b"ok"]

print(os.getpid(), flush=True)
prefork.serve(app, workers=1, bind=["127.0.0.1:0"])
write(f"folder-{os.path.isdir(folder.name)}")
"""


def test_what_the_caller_of_serve_has_registered_runs_in_the_caller_only(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER], env=clean_environment({"DIARY": str(diary)}), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        address = ""
        for line in process.stderr:
            if "listening address=" in line:
                address = line.split("address=")[1].strip()
            if " ready " in line:
                break
        pid = process.stdout.readline().strip()
        subprocess.run(["curl", "-sS", f"http://{address}/"], check=True, capture_output=True, timeout=WITHIN_S)
        process.terminate()
        process.communicate(timeout=WITHIN_S)
    lines = [line.split() for line in diary.read_text().splitlines()]
    assert [word for word, _ in lines] == ["worker", "folder-True", "caller"]
    assert [writer for _, writer in lines[1:]] == [pid, pid]


@pytest.mark.smoke
def test_what_an_application_registers_in_the_template_runs_in_each_worker_and_not_in_the_template(
    serve: Serve, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    server = serve(*WSGI, "--workers", "2", "--preload", env={"DIARY": str(diary)})
    children = server.worker_pids()
    server.stop()
    written = [int(line.split()[1]) for line in diary.read_text().splitlines()]
    assert len(written) == 2 == len(set(written) & children)
