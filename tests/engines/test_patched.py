"""Applications that patch the standard library: WSGI with one thread is served, of others a line says why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.server import run
from tests.support.tls import TLS
from tests.support.wait import eventually
from tests.support.web import Browser, fetch

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve

pytestmark = pytest.mark.slow

PATCH = {
    "gevent": "from gevent import monkey\nmonkey.patch_all()\nfrom gevent import spawn\njoin = lambda job: job.get()\n",
    "eventlet": "import warnings\nwarnings.simplefilter('ignore')\nimport eventlet\neventlet.monkey_patch()\n"
    "from eventlet import spawn\njoin = lambda job: job.wait()\n",
}
# Three greenlets sleep at the same time; two talk over a socket; threads are greenlets.
WSGI = """
import os, queue, select, socket, threading, time

def talk():
    ours, theirs = socket.socketpair()
    def answer():
        theirs.sendall(theirs.recv(100).upper())
    job = spawn(answer)
    ours.sendall(b"ping")
    got = ours.recv(100)
    join(job)
    ours.close(), theirs.close()
    return got

def app(environ, start_response):
    began = time.monotonic()
    for job in [spawn(time.sleep, 0.2) for _ in range(30)]:
        join(job)
    took_s = time.monotonic() - began
    told = queue.Queue()
    thread = threading.Thread(target=told.put, args=(talk(),))
    thread.start()
    thread.join()
    print("served")
    body = told.get() + b" %d %d" % (took_s < 3, os.getpid())
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
OTHERS = {
    "asyncio cannot work": ("async def app(scope, receive, send): ...", ()),
    "asyncio cannot work; leave": ("async def app(reader, writer): ...", ("--loop", "asyncio")),
    "a stream handler, which needs threads, cannot work": ("def app(conn): ...", ()),
    "--threads 3 cannot work; use --threads 1": ("def app(environ, start_response): ...", ("--threads", "3")),
    "--tls-cert cannot work; let a proxy do TLS": ("def app(environ, start_response): ...", TLS),
}


@pytest.fixture(params=PATCH)
def patch(request: pytest.FixtureRequest) -> str:
    """The source that patches, for each library that is installed and works with this Python."""
    source = PATCH[request.param]
    if subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip(f"{request.param} cannot be used here")
    return source


def ask(browser: Browser) -> int:
    """The pid of the worker that serves."""
    upper, together, pid = browser.post("/", b"x" * 100_000).body.split()
    assert (upper, together) == (b"PING", b"1")
    return int(pid)


@pytest.mark.parametrize(
    "options",
    [pytest.param((), marks=pytest.mark.smoke), ("--preload",), ("--reload",), ("--accept", "per-worker")],
)
def test_a_patched_application_serves(serve: Serve, app: AppWriter, patch: str, options: tuple[str, ...]) -> None:
    """Through a reload, the death of a worker, and a stop."""
    spec = app(patch + WSGI, attribute="app")
    server = serve(spec, "--workers", "2", "--access-log", "-", *options)
    with Browser(server) as browser:
        first = ask(browser)
        assert ask(browser) == first
    os.kill(first, signal.SIGKILL)
    server.wait_log(r"spawned .*cause=respawn")
    eventually(lambda: first not in server.worker_pids(), within_s=30)
    for _ in range(4):
        with Browser(server) as browser:
            ask(browser)
    if "--reload" in options:
        app(patch + WSGI + "\n")
    else:
        server.signal(signal.SIGHUP)
    server.wait_log(r"reloaded generation=2")
    with Browser(server) as browser:
        ask(browser)
    assert server.stop() == 0
    assert server.log.count("served") == 7
    assert "forking is unsafe" not in server.log


def test_a_patched_worker_is_recycled(serve: Serve, app: AppWriter, patch: str) -> None:
    server = serve(app(patch + WSGI, attribute="app"), "--workers", "1", "--max-requests", "2")
    with Browser(server) as browser:
        first = {ask(browser), ask(browser)}
    server.wait_workers(1, without=first)
    with Browser(server) as browser:
        assert ask(browser) not in first


@pytest.mark.parametrize("how", [(), ("--preload",)])
@pytest.mark.parametrize("said", OTHERS)
def test_what_cannot_work_is_said_in_one_line(app: AppWriter, patch: str, said: str, how: tuple[str, ...]) -> None:
    source, options = OTHERS[said]
    spec = app(patch + source, attribute="app")
    done = run("serve", spec, "--bind", "127.0.0.1:0", "--workers", "1", *options, *how)
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    library = "gevent" if "gevent" in patch else "eventlet"
    assert last.startswith(f"prefork: cannot serve {spec!r}: {library} has patched the interpreter, where {said}")
    assert "Traceback" not in done.stderr
    if not how:
        assert run("check", spec, *options).returncode == 4


def test_a_patch_of_nobodys_is_seen_too(app: AppWriter) -> None:
    spec = app("import _thread\n_thread.start_new_thread = None\ndef app(conn): ...", attribute="app")
    done = run("serve", spec, "--bind", "127.0.0.1:0", "--workers", "1")
    assert done.returncode == 4
    assert "the application has patched the interpreter" in done.stderr


def test_a_patched_process_cannot_be_a_master() -> None:
    pytest.importorskip("gevent")
    source = f"{PATCH['gevent']}import prefork\nprefork.serve(lambda environ, start_response: [], bind='127.0.0.1:0')"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert "serve('shop.py:app')" in done.stderr.splitlines()[-1]


def test_a_library_that_does_not_patch_changes_nothing(serve: Serve, app: AppWriter) -> None:
    pytest.importorskip("gevent")
    server = serve(app("import gevent\nfrom tests.apps.web import app", attribute="app"), "--threads", "2")
    assert fetch(server).status == 200
