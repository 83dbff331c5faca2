"""What code of the application says to the master: a lie costs the process that told it, and nobody else.

The applications here write into the pipes and sockets that prefork has in their process, as any code there could.
"""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange
from tests.support.processes import alive, children
from tests.support.story import events
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.control import Place

pytestmark = pytest.mark.slow

NOBODY = pwd.getpwnam("nobody").pw_name

# Writes what a file says into the pipe to the master, in the worker that is asked to.
LIAR = """
import fcntl, os, stat
LIES = os.environ["LIES"]

def pipes():
    # Those to the master: their other end is not here, and they are not the log.
    ends = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
            if stat.S_ISFIFO(found.st_mode):
                ends.setdefault(found.st_ino, []).append(int(name))
        except OSError:
            pass
    del ends[os.fstat(1).st_ino]
    return [fds[0] for fds in ends.values() if all(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_WRONLY for fd in fds)]

def lie():
    with open(LIES, "rb") as file:
        text = file.read()
    for fd in pipes():
        rest = text
        while rest:
            try:
                rest = rest[os.write(fd, rest):]
            except BlockingIOError:
                pass
            except OSError:
                break

def stream(conn):
    if conn.readline() == b"lie\\n":
        lie()
    conn.sendall(b"%d\\n" % os.getpid())

def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/lie":
        lie()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/lie":
        lie()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""

SLOW = b'{"kind": "slow", "serving": "", "elapsed_s": 1.0, "stack": "", "also": 0}\n'
LIES = {
    "a field is missing": (b'{"kind": "slow"}\n', "slow without serving"),
    "another is missing": (b'{"kind": "enough"}\n', "enough without reason"),
    "a wrong type": (SLOW.replace(b"0}", b'"z"}'), "also of slow is no number"),
    "not a number": (SLOW.replace(b"1.0", b"NaN"), "elapsed_s of slow is no number"),
    "too deep": (b'{"kind":' + b"[" * 50_000 + b"\n", "nested too deeply"),
    "failed after ready": (b'{"kind": "failed", "code": 3, "message": "", "detail": ""}\n', "failed after ready"),
    "a template's word": (b'{"kind": "prepared"}\n', "its kind is 'prepared'"),
    "no kind": (b"{}\n", "it has no kind"),
    "a flood": (SLOW * 100_000, "more than 1000 messages in a second"),
    "a flood of text": ((b"." * 9999 + b"\n") * 2000, "more than 4 MB in a second"),
}
HARMLESS = {
    "half a line": b'{"kind": "slow", "serv',
    "ready again": b'{"kind": "ready", "app_kind": "wsgi", "engine": "reactor"}\n' * 100,
    "text": b"Fatal Python error: none\n" * 100,
    "an endless line": b"[" * (1 << 20),
    "stacks that nobody asked for": b'{"kind": "stacks", "text": "\\u001b[2J", "current": ""}\n' * 100,
}
WAYS = {
    "threads": ("stream",),
    "wsgi": ("wsgi",),
    "wsgi-threads": ("wsgi", "--threads", "3"),
    "asgi": ("asgi",),
    "asgi-asyncio": ("asgi", "--loop", "asyncio"),
}


def ask(address: str, way: str, word: str) -> int:
    """Have a worker do something; return its pid, or 0 if it did not live to tell."""
    try:
        if way == "threads":
            return int(exchange(address, f"{word}\n".encode()) or 0)
        return int(fetch(address, f"/{word}").body)
    except (OSError, EOFError, AssertionError):
        return 0


def started(serve: Serve, app: AppWriter, lies: Path, way: str, *args: str):
    """A server whose workers write what `lies` says."""
    name, *options = WAYS[way]
    return serve(app(LIAR, attribute=name), *options, "--workers", "2", *args, env={"LIES": str(lies)})


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("way", ["wsgi", *(pytest.param(way, marks=pytest.mark.soak) for way in WAYS if way != "wsgi")])
def test_a_lie_costs_the_worker_that_told_it(serve: Serve, app: AppWriter, tmp_path: Path, way: str, lie: str) -> None:
    one_lie_is_paid_for(serve, app, tmp_path, way, lie)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "wsgi"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_it_does_so_in_every_engine(
    serve: Serve, app: AppWriter, tmp_path: Path, way: str, preload: tuple[str, ...]
) -> None:
    one_lie_is_paid_for(serve, app, tmp_path, way, "failed after ready", *preload)


def one_lie_is_paid_for(serve: Serve, app: AppWriter, folder: Path, way: str, lie: str, *args: str) -> None:
    text, fault = LIES[lie]
    lies = folder / "lies"
    lies.write_bytes(text)
    server = started(serve, app, lies, way, *args)
    before = server.worker_pids()
    ask(server.address, way, "lie")
    died = server.wait_log(r"worker died .*pid=(\d+) cause=SIGKILL reason=\"?(.*)")
    assert f"it sent the master a message that is none: {fault}" in died[2]
    server.wait_log("spawned .*cause=respawn")
    server.wait_workers(len(before), without={int(died[1])})
    assert server.worker_pids() >= before - {int(died[1])}, "nobody else was touched"
    assert ask(server.address, way, "truth") in server.worker_pids()
    assert len(re.findall(re.escape(fault), server.log)) == 2, "said when it is killed, and when it has died"
    assert len(server.log) < 100_000
    server.stop()


@pytest.mark.parametrize("said", HARMLESS)
def test_what_is_no_lie_is_harmless(serve: Serve, app: AppWriter, tmp_path: Path, said: str) -> None:
    lies = tmp_path / "lies"
    lies.write_bytes(HARMLESS[said])
    server = started(serve, app, lies, "wsgi")
    before, mark = server.worker_pids(), len(server.log)
    for _ in range(3):
        assert ask(server.address, "wsgi", "lie") in before
    server.signal(signal.SIGTTIN)
    server.wait_log("spawned .*cause=scale")
    assert server.worker_pids() >= before
    assert len(server.log) - mark < 1000
    server.stop()


def test_escapes_do_not_reach_the_terminal(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    """faulthandler's text is the detail of a death."""
    lies = tmp_path / "lies"
    lies.write_bytes(b"\x1b]0;owned\x07\x9b2J\n")
    server = started(serve, app, lies, "wsgi")
    victim = ask(server.address, "wsgi", "lie")
    os.kill(victim, signal.SIGKILL)
    server.wait_log(r"\\x1b\]0;owned\\x07")
    assert "\x1b" not in server.log


# Is the first to be imported, says that it is ready, and never gets there.
EARLY = """
import time

try:
    os.close(os.open(LIES + ".told", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    pass
else:
    lie()
    while True:
        time.sleep(60)
"""
READY = b'{"kind":"ready","app_kind":"wsgi","engine":"reactor"}\n'
TIMEOUT_S = 1.0
LATE_S = 2.0  # 0.5 s in which it could have answered; the rest is for busy machines


@pytest.mark.parametrize("way", ["threads", "wsgi", "asgi"])
def test_who_says_that_it_is_ready_and_never_gets_there_is_replaced(
    serve: Serve, app: AppWriter, tmp_path: Path, place: Place, way: str
) -> None:
    lies = tmp_path / "lies"
    lies.write_bytes(READY)
    name, *options = WAYS[way]
    args = (app(LIAR + EARLY, attribute=name), *options, "--workers", "1", "--timeout", f"{TIMEOUT_S:g}s")
    server = serve(*args, env={"LIES": str(lies), **place.env})
    (liar,) = server.worker_pids()
    server.wait_log(rf"worker died .*pid={liar} cause=SIGKILL reason=.its process did not move for 1\.\d s")
    (ready,), (killed,) = events(server.log, "ready"), events(server.log, "killing worker")
    assert killed.pid == liar
    assert TIMEOUT_S - 0.1 <= killed.at_s - ready.at_s <= TIMEOUT_S + LATE_S
    assert "time.sleep(60)" in server.log, "where it stood"
    successor = eventually(lambda: ask(server.address, way, "truth"), within_s=15, what="a worker that serves")
    assert server.worker_pids() == {successor}
    assert [worker["pid"] for worker in place.status()["workers"]] == [successor]
    assert place.status()["server"]["ready"]
    assert len(events(server.log, "killing worker")) == 1, "its successor has told the truth"
    assert server.stop() == 0


# --- the template


TEMPLATE = """
import os, sys
import prefork.worker.template as template
MASTER = os.getppid()
SAID = {said}

def lie(self, order, *fds, **rest):
    if not os.path.exists(os.environ["LIES"]):
        return forked(self, order, *fds, **rest)
    os.unlink(os.environ["LIES"])
    return SAID

forked, template.Template._fork = template.Template._fork, lie

def handle(conn):
    conn.sendall(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is no child of a server."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process.pid
    assert process.poll() is None, "it was signalled"
    process.kill()
    process.wait()


ANSWERS = {
    "a stranger": ('{{"pid": {stranger}}}', "named a process"),
    "init": ('{{"pid": 1}}', "named a process"),
    "everybody": ('{{"pid": -1}}', "named a process"),
    "its group": ('{{"pid": 0}}', "named a process"),
    "the master": ('{{"pid": os.getppid()}}', "named a process"),
    "itself": ('{{"pid": os.getpid()}}', "named a process"),
    "a worker": (
        '{{"pid": int(open("/proc/%d/task/%d/children" % ((os.getppid(),) * 2)).read().split()[-1])}}',
        "named",
    ),
    "no number": ('{{"pid": "12"}}', "named a process"),
    "a list": ('{{"pid": [1]}}', "named a process"),
    "huge": ('{{"pid": 10**400}}', "named a process"),
    "no errno": ('{{"errno": 1}}', "could not fork"),
    "a huge errno": ('{{"errno": 10**30}}', "could not fork"),
    "nothing": ("{{}}", "could not fork"),
    "a text": ('"pid"', "an answer that is none"),
    "null": ("None", "an answer that is none"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_template_that_lies_is_replaced(
    serve: Serve, app: AppWriter, tmp_path: Path, stranger: int, answer: str
) -> None:
    said, fault = ANSWERS[answer]
    lies = tmp_path / "lies"
    source = TEMPLATE.format(said=said.format(stranger=stranger))
    user = ("--user", NOBODY) if os.geteuid() == 0 and answer in ("a stranger", "everybody") else ()
    if user:
        tmp_path.chmod(0o777)
        for parent in tmp_path.parents[:3]:
            parent.chmod(0o755)
    server = serve(app(source), "--workers", "2", "--preload", *user, env={"LIES": str(lies)})
    pids = children(server.pid)
    lies.write_bytes(b"")
    server.signal(signal.SIGTTIN)
    died = server.wait_log("template died .*reason=(.*)")
    assert fault in died[1]
    server.wait_workers(4)
    assert len(children(server.pid) & pids) == 2, "the workers, not the template"
    assert int(exchange(server.address, b"")) in children(server.pid)
    assert len(re.findall("template died", server.log)) == 1
    assert server.stop() == 0
    assert alive(stranger)


def test_the_first_template_that_lies_ends_the_start(
    serve: Serve, app: AppWriter, tmp_path: Path, stranger: int
) -> None:
    lies = tmp_path / "lies"
    lies.write_bytes(b"")
    source = TEMPLATE.format(said=f'{{"pid": {stranger}}}')
    server = serve(app(source), "--preload", ready=False, env={"LIES": str(lies)}, expected_exit=3)
    assert server.wait_exit() == 3
    assert "named a process that is no new child" in server.log


# --- the next master of an upgrade


HEIR = """
import json, os, socket, sys, time
SAID = {said}
if "PREFORK_INHERITED" in os.environ:
    found = json.loads(os.environ["PREFORK_INHERITED"])
    socket.socket(fileno=found["channel"]).send(SAID)
    time.sleep(60)
"""
HEIRS = {
    "no object": 'b"[]"',
    "not ready, without a reason": "b'{\"ready\": false}'",
    "ready, without descriptors": "b'{\"ready\": true}'",
    "descriptors that are none": 'b\'{"ready": true, "took": [[]]}\'',
    "descriptors that it has not": 'b\'{"ready": true, "took": [0, 1, 2]}\'',
    "many": 'json.dumps({"ready": True, "took": list(range(20_000))}).encode()',
    "deep": 'b"[" * 15_000',
    "bytes": r'b"\xff\x00"',
}


@pytest.mark.parametrize("said", HEIRS)
def test_a_new_master_that_lies_is_told_to_go(serve: Serve, app: AppWriter, tmp_path: Path, said: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(HEIR.format(said=HEIRS[said]))
    app("def handle(conn): conn.sendall(b'served\\n')")
    server = serve(
        f"{tmp_path / 'app.py'}:handle", "--workers", "1", "--graceful-timeout", "1", env={"PYTHONPATH": str(tmp_path)}
    )
    server.signal(signal.SIGUSR2)
    failed = server.wait_log("upgrade failed .*reason=(.*) serving")
    assert re.search("a message that is none|descriptors that it was not given", failed[1])
    assert exchange(server.address, b"") == b"served\n"
    assert server.stop() == 0


# --- who is sacrificed when memory runs out


def test_the_kernel_would_rather_take_a_worker_than_the_master(serve: Serve) -> None:
    server = serve("--workers", "1", "--preload", *(("--user", NOBODY) if os.geteuid() == 0 else ()))
    eventually(lambda: len(children(server.pid)) == 2, within_s=15, what="a template and a worker")

    def score(pid: int) -> int:
        with open(f"/proc/{pid}/oom_score_adj") as file:
            return int(file.read())

    assert {score(pid) for pid in children(server.pid)} == {min(1000, score(server.pid) + 50)}
