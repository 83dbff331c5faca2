"""Processes that are traced: their ends are not seen, and their stops are, so neither may hold up the master."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.admin import ADMIN, title, workers_of
from tests.support.client import exchange
from tests.support.processes import alive, children, session_members, zombies_of
from tests.support.wait import eventually
from tests.support.web import request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

AT_ONCE_S = 1.5
TERM_S = 18.0  # 1 s for the requests, 1 s until it is killed, 5 s twice for what a process with much memory takes
CANNOT_END = r'ERROR .*cannot end a process pid={} reason="it is traced, or waits in the kernel"'

# Traces a process from outside (ptrace(2), PTRACE_SEIZE) and never asks for its news, as a debugger at its prompt.
TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
libc.ptrace.restype = ctypes.c_long
failed = libc.ptrace(0x4206, int(sys.argv[1]), 0, 0)
print(os.strerror(ctypes.get_errno()) if failed else "traces", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def trace() -> Iterator[Callable[[int], None]]:
    """Trace a process until the end of the test."""
    tracers: list[subprocess.Popen[str]] = []

    def begin(pid: int) -> None:
        tracer = subprocess.Popen(
            [sys.executable, "-c", TRACER, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        tracers.append(tracer)
        assert tracer.stdout
        if (said := tracer.stdout.readline().strip()) != "traces":
            pytest.skip(f"a process may not be traced here: {said}")

    yield begin
    for tracer in tracers:
        tracer.kill()
        tracer.communicate()


WHO = {
    "a worker": ("prefork: worker", ()),
    "a worker of a template": ("prefork: worker", ("--preload",)),
    "the template": ("prefork: template", ("--preload",)),
    "the admin": ("prefork: admin", ADMIN),
    "the watcher": ("prefork: watcher", ("--reload",)),
}


def of_title(server: RunningServer, beginning: str) -> int:
    """Wait for a child that calls itself so; return its pid."""

    def look() -> int:
        return next((pid for pid in children(server.pid) if title(pid).startswith(beginning)), 0)

    return eventually(look, within_s=15, what=beginning)


@pytest.mark.parametrize("who", WHO)
def test_whoever_is_traced_the_server_ends_at_once(serve: Serve, trace: Callable[[int], None], who: str) -> None:
    beginning, options = WHO[who]
    server = serve("talkback", "--workers", "2", *options)
    pid = of_title(server, beginning)
    trace(pid)
    began_s = time.monotonic()
    assert server.stop(signal.SIGQUIT) == 0
    took_s = time.monotonic() - began_s
    eventually(lambda: not session_members(server.pid), within_s=10, what="nobody left")
    assert took_s < AT_ONCE_S
    if "worker" in beginning or "template" in beginning:
        server.wait_log(CANNOT_END.format(pid))
    server.wait_log("stopped uptime")


@pytest.mark.parametrize("who", ["a worker", "the template", "the admin"])
def test_whoever_is_traced_a_graceful_stop_comes_to_an_end(
    serve: Serve, trace: Callable[[int], None], who: str
) -> None:
    beginning, options = WHO[who]
    server = serve("talkback", "--workers", "2", "--graceful-timeout", "1s", *options)
    pid = of_title(server, beginning)
    trace(pid)
    assert server.stop(within_s=TERM_S) == 0
    assert not session_members(server.pid)
    if "worker" in beginning or "template" in beginning:
        server.wait_log(CANNOT_END.format(pid))
    server.wait_log("stopped uptime")


def test_a_traced_worker_serves_and_is_told_to_go_as_any(serve: Serve, trace: Callable[[int], None]) -> None:
    server = serve("talkback", "--workers", "1", "--graceful-timeout", "1s")
    pid = of_title(server, "prefork: worker")
    trace(pid)
    assert exchange(server.address, b"hi\n").endswith(b"hi\n")
    server.signal(signal.SIGHUP)
    server.wait_log("spawned .*gen=2")
    eventually(lambda: not alive(pid), within_s=20, what="the end of the traced worker")
    assert exchange(server.address, b"hi\n").endswith(b"hi\n")
    assert server.stop(signal.SIGQUIT) == 0


# --- a worker that asks its parent, the master, to trace it


TRACE_ME = """
import ctypes, os, signal, threading

def trace_me():
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME, of this thread
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

def stream(conn):
    if conn.readline() == b"trace\\n":
        trace_me()
    conn.sendall(b"%d\\n" % os.getpid())

def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/trace":
        trace_me()
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\\n"]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/trace":
        trace_me()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok\\n"})
"""
WAYS = {
    "stream": ("stream",),
    "stream-threads": ("stream", "--threads", "3"),
    "wsgi": ("wsgi",),
    "wsgi-threads": ("wsgi", "--threads", "3"),
    "asgi": ("asgi",),
}


def ask(server: RunningServer, way: str, word: str) -> bytes:
    """Say a word to the application; return the answer, nothing if the worker died of it."""
    data = f"{word}\n".encode() if way.startswith("stream") else request(f"/{word}", connection="close")
    try:
        return exchange(server.address, data)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_worker_that_asks_to_be_traced_and_stops_is_replaced(
    serve: Serve, app: AppWriter, way: str, preload: tuple[str, ...]
) -> None:
    attribute, *options = WAYS[way]
    server = serve(app(TRACE_ME, attribute=attribute), *options, *preload, "--workers", "2", "--timeout", "0")
    before = workers_of(server)
    assert len(before) == 2
    assert ask(server, way, "trace") == b""
    victim = int(server.wait_log(r'worker died .*pid=(\d+) cause=SIGKILL reason="it had asked to be traced')[1])
    assert victim in before
    eventually(lambda: len(workers_of(server)) == 2, within_s=15, what="two workers")
    assert workers_of(server) & before == before - {victim}, "nobody else was touched"
    assert not alive(victim)
    assert not zombies_of(server.pid)
    for _ in range(4):
        assert ask(server, way, "hi").rstrip()
    assert "exit code" not in server.log
    assert len(server.log.split("worker died")) == 2
    assert server.stop() == 0
    assert not session_members(server.pid)


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_an_application_that_asks_for_it_while_it_is_imported_cannot_boot(
    serve: Serve, app: AppWriter, preload: tuple[str, ...]
) -> None:
    spec = app(TRACE_ME + "\ntrace_me()\n", attribute="wsgi")
    server = serve(spec, *preload, "--workers", "2", ready=False, expected_exit=3)
    assert server.wait_exit() == 3
    assert "cannot boot" in server.log
    assert "exit code" not in server.log
    assert not session_members(server.pid)
