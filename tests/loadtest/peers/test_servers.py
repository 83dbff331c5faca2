"""The servers of the plans that ship, started as a round starts them: each says what its scenario says, to the byte."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import loadtest.measure.server
from loadtest.measure import procfs
from loadtest.measure.child import Interrupt
from loadtest.measure.server import RunningServer, ServerMissingError
from loadtest.measure.server import exchange as prove_ready
from loadtest.plan import file as planfile
from tests.support.client import exchange, read_to_end, talkback_reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtest.plan.plan import Plan, Server

pytestmark = pytest.mark.slow

PLANS = Path(loadtest.measure.server.__file__).parents[1] / "plans"
PEERS = planfile.read(PLANS / "peers-stream.toml", {})
WEB = [planfile.read(PLANS / f"peers-{kind}.toml", {}) for kind in ("wsgi", "asgi")]
CPU_BOUND = planfile.read(PLANS / "workers-cpu.toml", {})
ONE_AT_A_TIME = ("prefork", "C", "1 worker")
LINES = {
    b"good morning\n": b"good morning",
    b"with a carriage return\r\n": b"with a carriage return",
    b"\n": b"",
    b"a" * 5000 + b"\n": b"a" * 5000,
}


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    with Interrupt() as waiting:
        yield waiting


def start(plan: Plan, server: Server, tmp_path: Path, interrupt: Interrupt) -> RunningServer:
    """The server, or a skip where this machine lacks what it needs."""
    try:
        running = RunningServer(
            server, folder=PLANS, log=tmp_path / "log", scratch=str(tmp_path), interrupt=interrupt, cpus=()
        )
    except ServerMissingError as error:
        pytest.skip(str(error))
    try:
        running.wait_ready(plan.loads[0])
    except BaseException as error:
        running.__exit__()
        if isinstance(error, ServerMissingError):
            pytest.skip(str(error))
        raise
    return running


def servers() -> list[object]:
    pairs = [(PEERS, server) for server in PEERS.servers] + [(CPU_BOUND, CPU_BOUND.servers[0])]
    return [pytest.param(plan, server, id=f"{plan.name}: {server.name}") for plan, server in pairs]


@pytest.mark.parametrize(("plan", "server"), servers())
def test_each_server_of_the_comparison_does_the_same_work(
    plan: Plan, server: Server, tmp_path: Path, interrupt: Interrupt
) -> None:
    with start(plan, server, tmp_path, interrupt) as running:
        address = str(running.address)
        for sent, line in LINES.items():
            assert exchange(address, sent) == talkback_reply(line)
        assert exchange(address, b"ended by the stream", half_close=True) == talkback_reply(b"ended by the stream")
        with socket.create_connection((running.address.host, running.address.port), 15) as slow:
            slow.sendall(b"in two ")
            if server.name not in ONE_AT_A_TIME:
                assert exchange(address, b"meanwhile\n") == talkback_reply(b"meanwhile")
            slow.sendall(b"pieces\n")
            assert read_to_end(slow) == talkback_reply(b"in two pieces")
        queue = procfs.listening(running.address.port)
    assert queue is not None
    assert queue.limit == min(2048, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    assert running.notes == []


def web_servers() -> list[object]:
    return [
        pytest.param(plan, server, id=f"{plan.name}: {server.name}", marks=[pytest.mark.slow] * bool(number))
        for plan in WEB
        for number, server in enumerate(plan.servers)  # the first is prefork
    ]


@pytest.mark.parametrize(("plan", "server"), web_servers())
def test_each_web_server_of_a_comparison_answers_every_load(
    plan: Plan, server: Server, tmp_path: Path, interrupt: Interrupt
) -> None:
    """With answers of one length: the exchange that proves a server to be ready looks at it."""
    lengths = {"hello": 14, "browser": 14, "post": 6, "large": 102_400, "connection each": 14}
    with start(plan, server, tmp_path, interrupt) as running:
        for load in plan.loads:
            prove_ready(dataclasses.replace(load, length=lengths.get(load.name)), running.address, PLANS, 15.0)


def test_peers_that_are_not_installed_are_left_out_with_the_way_to_install_them(
    tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadtest.measure.server, "_PEERS", tmp_path / "nowhere")
    gevent = next(server for server in PEERS.servers if server.name == "gevent")
    with pytest.raises(ServerMissingError, match=r"the peers are not installed; .*: make peers"):
        RunningServer(gevent, folder=PLANS, log=tmp_path / "log", scratch=str(tmp_path), interrupt=interrupt)


def test_every_peer_that_must_be_installed_is_pinned() -> None:
    lines = (PLANS.parent / "peers" / "requirements.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert set(pinned) >= {"gevent", "granian", "gunicorn", "hypercorn", "uvicorn", "uvloop"}
    assert all(version[0].isdecimal() for version in pinned.values())
