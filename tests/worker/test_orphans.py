"""The master is SIGKILLed at any moment: a second later nothing of its server is alive, and the address is free."""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange
from tests.support.load import Load, fresh
from tests.support.processes import children, session_members
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

KILLED = -signal.SIGKILL
GONE_WITHIN_S = 1.0  # promised, and judged by the median of many
LATE_S = 10.0  # for a single one, on a busy machine: by itself nobody would ever end

HOW = pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])


def kill_master(server: RunningServer) -> float:
    """Send SIGKILL; return after how many seconds nobody is left and the address can be bound."""
    began_s = time.monotonic()
    server.signal(signal.SIGKILL)
    try:
        eventually(lambda: not session_members(server.pid), within_s=LATE_S)
    except AssertionError:
        left = {pid: title(pid) for pid in session_members(server.pid)}
        raise AssertionError(f"alive {LATE_S:g} s after the master's death: {left}") from None
    # A process counts as dead with its first thread; its sockets are closed with the last.
    eventually(lambda: bindable(server.address), within_s=LATE_S, what="the address free")
    return time.monotonic() - began_s


def title(pid: int) -> str:
    """Read what a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return "gone meanwhile"


def bindable(address: str) -> bool:
    """Listen there for a moment, as the next server would."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except OSError:
        return False
    return True


@HOW
def test_while_idle(serve: Serve, how: list[str]) -> None:
    server = serve("talkback", "--workers", "3", *how, expected_exit=KILLED)
    assert len(children(server.pid)) == 3 + len(how)
    kill_master(server)


@HOW
def test_under_load(serve: Serve, how: list[str]) -> None:
    server = serve("nap", "--workers", "3", "--threads", "2", *how, expected_exit=KILLED)
    with Load(server.address, fresh(8)) as load:
        load.wait_more(50)
        kill_master(server)


@HOW
def test_while_the_application_is_imported(serve: Serve, app: AppWriter, gate: Gate, how: list[str]) -> None:
    source = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nhandle = gated.handle\n"
    server = serve(app(source), "--workers", "2", *how, env=gate.env, ready=False, expected_exit=KILLED)
    _ = server.address
    gate.wait_entered(1)
    kill_master(server)


@HOW
def test_while_an_import_sits_in_c(serve: Serve, app: AppWriter, gate: Gate, how: list[str]) -> None:
    """No Python code of the child runs any more: only the kernel can end it."""
    source = "import ctypes, os, socket\nhost, _, port = os.environ['GATE_ADDRESS'].rpartition(':')\n"
    source += "said = socket.create_connection((host, int(port)))\nctypes.PyDLL(None).sleep(600)\n"
    server = serve(app(source), "--workers", "2", *how, env=gate.env, ready=False, expected_exit=KILLED)
    _ = server.address
    gate.wait_entered(1)
    kill_master(server)


@HOW
def test_during_a_reload(serve: Serve, how: list[str]) -> None:
    server = serve("talkback", "--workers", "2", *how, expected_exit=KILLED)
    server.signal(signal.SIGHUP)
    server.wait_log("spawned .*gen=2")
    kill_master(server)


@HOW
def test_respawned_workers_and_a_second_template(serve: Serve, how: list[str]) -> None:
    server = serve("talkback", "--workers", "2", *how, expected_exit=KILLED)
    before = children(server.pid)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: len(children(server.pid)) == len(before) and not children(server.pid) & before,
        within_s=30,
        what="all of them replaced",
    )
    kill_master(server)


def test_a_worker_that_drains_holds_on_to_nothing(serve: Serve) -> None:
    server = serve("echo", "--workers", "1", "--log-level", "debug", expected_exit=KILLED)
    with dial(server.address) as client:
        client.sendall(b"one\n")
        assert client.recv(4)
        server.signal(signal.SIGHUP)
        server.wait_log("retiring .*reason=reload")
        kill_master(server)


def test_while_the_master_is_stopped_and_its_workers_die(serve: Serve) -> None:
    """SIGSTOP, then a worker dies: the killed master has not buried it, and nobody needs to."""
    server = serve("talkback", "--workers", "2", "--preload", expected_exit=KILLED)
    exchange(server.address)
    server.signal(signal.SIGSTOP)
    os.kill(min(children(server.pid)), signal.SIGKILL)
    kill_master(server)


@pytest.mark.timing
@HOW
def test_twenty_times_at_any_moment(serve: Serve, how: list[str]) -> None:
    choose = random.Random(23)
    moments: list[Callable[[RunningServer], object]] = [
        lambda server: server.wait_ready(),
        lambda server: server.signal(signal.SIGHUP),
        lambda server: (server.wait_ready(), server.signal(signal.SIGHUP), server.wait_log("reloading")),
        lambda server: (server.wait_ready(), server.signal(signal.SIGTTIN), server.wait_log("scaling")),
        lambda server: (server.wait_ready(), server.signal(signal.SIGTERM)),
        lambda server: (server.wait_ready(), os.kill(max(children(server.pid)), signal.SIGKILL)),
        lambda server: None,
    ]
    took_s = []
    for number in range(20):
        server = serve("talkback", "--workers", "4", *how, ready=False, expected_exit=KILLED)
        _ = server.address
        moments[number % len(moments)](server)
        for _ in range(choose.randrange(3)):
            server.signal(signal.SIGCHLD)
        took_s.append(kill_master(server))
    assert statistics.median(took_s) < GONE_WITHIN_S, took_s


@pytest.mark.timing
def test_twenty_times_while_the_template_forks_a_worker(serve: Serve) -> None:
    """The worker is nobody's child for a moment: it looks for a master that is dead by then."""
    took_s = []
    for _ in range(20):
        server = serve("talkback", "--workers", "2", "--preload", expected_exit=KILLED)
        server.signal(signal.SIGTTIN)
        server.wait_log("scaling")
        took_s.append(kill_master(server))
    assert statistics.median(took_s) < GONE_WITHIN_S, took_s
