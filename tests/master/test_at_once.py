"""SIGQUIT, and a second SIGINT: the server is gone at once, whatever its workers do and whoever waits."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import crowd
from tests.support.processes import children, session_members
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

AT_ONCE_S = 1.0
HUNG = """
import asyncio, os, signal, time

def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.write(1, b"hung\\n")
    while True:
        time.sleep(60)

def stream(conn):
    conn.readline()
    hang()

async def streams(reader, writer):
    hang()

def wsgi(environ, start_response):
    hang()

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        hang()

class Protocol(asyncio.Protocol):
    def data_received(self, data):
        hang()
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ENGINES = {
    "threads": ("stream",),
    "wsgi": ("wsgi",),
    "wsgi-threads": ("wsgi", "--threads", "3"),
    "streams": ("streams",),
    "protocol": ("Protocol",),
    "asgi": ("asgi",),
    "asgi-asyncio": ("asgi", "--loop", "asyncio"),
}
QUIT = (signal.SIGQUIT,)
INT_TWICE = (signal.SIGINT, signal.SIGINT)


def end_at_once(server: RunningServer, signals: tuple[signal.Signals, ...]) -> None:
    """Send the signals; nobody is spawned after the last, and all processes are gone within a second."""
    *before, last = signals
    for signum in before:
        mark = len(server.log)
        server.signal(signum)
        server.wait_log(rf"(stopping|leaving) signal={signum.name}", after=mark)
    mark, began_s = len(server.log), time.monotonic()
    server.signal(last)
    assert server.wait_exit() == 0
    eventually(lambda: not session_members(server.pid), within_s=10, what="nobody left")
    took_s = time.monotonic() - began_s
    assert "spawned" not in server.log[mark:]
    assert took_s < AT_ONCE_S, server.log[mark:]


@pytest.mark.parametrize("signals", [QUIT, INT_TWICE, (signal.SIGTERM, signal.SIGQUIT)], ids=["QUIT", "INT", "TERM"])
@pytest.mark.parametrize("engine", ENGINES)
def test_clients_in_the_queue_bring_no_worker_back(
    serve: Serve, app: AppWriter, engine: str, signals: tuple[signal.Signals, ...]
) -> None:
    attribute, *options = ENGINES[engine]
    server = serve(app(HUNG, attribute=attribute), *options, "--workers", "2")
    clients = crowd(server.address, 30, REQUEST)
    server.wait_log("^hung$")
    end_at_once(server, signals)
    for client in clients:
        client.close()


def stop_workers(server: RunningServer) -> None:
    for pid in children(server.pid):
        os.kill(pid, signal.SIGSTOP)


def upgrade(server: RunningServer) -> None:
    server.signal(signal.SIGUSR2)
    server.wait_log("upgrading")


def lame_duck(server: RunningServer) -> None:
    server.signal(signal.SIGTERM)
    server.wait_log("leaving")


SITUATIONS: dict[str, tuple[tuple[str, ...], Callable[[RunningServer], None]]] = {
    "a template": (("--preload",), lambda _: None),
    "an admin": (("--admin", "127.0.0.1:0"), lambda _: None),
    "a watcher": (("--reload",), lambda _: None),
    "all of them stopped": (("--preload", "--admin", "127.0.0.1:0"), stop_workers),
    "an upgrade": ((), upgrade),
    "a lame duck": (("--lame-duck", "60"), lame_duck),
    "a socket for each worker": (("--accept", "per-worker"), lambda _: None),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_else_is_waited_for(serve: Serve, app: AppWriter, situation: str) -> None:
    options, begin = SITUATIONS[situation]
    server = serve(app(HUNG, attribute="wsgi"), "--workers", "2", *options)
    clients = crowd(server.address, 20, REQUEST)
    server.wait_log("^hung$")
    begin(server)
    end_at_once(server, QUIT)
    for client in clients:
        client.close()
