"""SIGQUIT, and a second SIGINT: the server is gone at once, whatever its workers do and whoever waits."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import crowd
from tests.support.control import finish
from tests.support.processes import children, session_members
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import AppWriter, Serve
    from tests.support.control import Place
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


def end_at_once(server: RunningServer, signals: tuple[signal.Signals, ...], *, within_s: float = AT_ONCE_S) -> str:
    """Send the signals; all processes are gone soon after the last. Return what the log says from then on."""
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
    told = server.log[mark:]
    assert took_s < within_s, told
    return told


@pytest.mark.parametrize("signals", [QUIT, INT_TWICE, (signal.SIGTERM, signal.SIGQUIT)], ids=["QUIT", "INT", "TERM"])
@pytest.mark.parametrize("engine", ENGINES)
def test_clients_in_the_queue_bring_no_worker_back(
    serve: Serve, app: AppWriter, engine: str, signals: tuple[signal.Signals, ...]
) -> None:
    attribute, *options = ENGINES[engine]
    server = serve(app(HUNG, attribute=attribute), *options, "--workers", "2")
    clients = crowd(server.address, 30, REQUEST)
    server.wait_log("^hung$")
    assert "spawned" not in end_at_once(server, signals)
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
    assert "spawned" not in end_at_once(server, QUIT)
    for client in clients:
        client.close()


# A template that takes its time: 0.6 s for each worker, as it forks twice.
SLOW_FORKS = """
import os, time

def fork_slowly():
    os.write(1, b"forks\\n")
    time.sleep(0.3)

os.register_at_fork(before=fork_slowly)
"""
MANY = 8
ALL_FORKS = 2 * MANY
ONE_FORK_LATER_S = 1.5  # the one that was under way, and the end; all would take 4.8 s


@pytest.mark.parametrize("signals", [QUIT, INT_TWICE, (signal.SIGTERM, signal.SIGQUIT)], ids=["QUIT", "INT", "TERM"])
def test_a_start_that_takes_long_is_given_up(serve: Serve, app: AppWriter, signals: tuple[signal.Signals, ...]) -> None:
    """The first worker serves, and hangs, while the others are still to be forked."""
    options = ("--preload", "--workers", str(MANY))
    server = serve(app(SLOW_FORKS + HUNG, attribute="wsgi"), *options, ready=False)
    clients = crowd(server.address, 1, REQUEST)
    server.wait_log("^hung$")
    told = end_at_once(server, signals, within_s=ONE_FORK_LATER_S)
    assert told.count("forks") <= 2, "one worker"
    assert server.log.count("forks") < ALL_FORKS
    for client in clients:
        client.close()


@pytest.mark.parametrize("signals", [QUIT, INT_TWICE], ids=["QUIT", "INT"])
def test_growth_that_takes_long_is_given_up(
    serve: Serve, app: AppWriter, place: Place, signals: tuple[signal.Signals, ...]
) -> None:
    server = serve(app(SLOW_FORKS + HUNG, attribute="wsgi"), "--preload", "--workers", "1", env=place.env)
    clients = crowd(server.address, 1, REQUEST)
    server.wait_log("^hung$")
    scale = place.start("scale", str(MANY))
    server.wait_log("spawned .*cause=scale")
    told = end_at_once(server, signals, within_s=ONE_FORK_LATER_S)
    assert told.count("spawned") <= 1, "the one that was under way"
    assert told.count("forks") <= 2
    assert server.log.count("forks") < ALL_FORKS
    finish(scale)
    for client in clients:
        client.close()
