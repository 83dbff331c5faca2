"""Thousands of WebSockets that say nothing, on one worker: what each costs in memory, and that none is lost.

`--results DIR` writes what was measured to DIR/idle-websockets.json. Memory is that of the worker process; what the
kernel keeps for a socket is not in it.
"""

from __future__ import annotations

import json
import resource
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pytest

from loadtest.data import provenance
from loadtest.generator.websocket import CLOSE, NORMAL, TEXT, Handshake, frame
from prefork.core.proc import pss_bytes, rss_bytes
from tests.support.client import dial, read_exactly
from tests.support.processes import open_fds
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

APP = f"{ROOT / 'loadtest' / 'peers' / 'asgi_app.py'}:app"
OPENING = Handshake.made(path="/ws", headers=(), host="test")
MASK = b"\1\2\3\4"
MOST_BYTES_EACH = 20_000
SPARE_FILES = 100
ENOUGH_FOR_ALLOCATORS = 50  # connections before the first look: code is imported, pools are made


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the worker used at one moment."""

    pss_bytes: int
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        pss, rss = pss_bytes(pid), rss_bytes(pid)
        assert pss
        assert rss
        return cls(pss_bytes=pss, rss_bytes=rss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One crowd. `opened_s` is the time that all the handshakes took, one after the other."""

    clients: int
    opened_s: float
    before: Memory
    idle: Memory  # all are connected and have said nothing
    spoken: Memory  # each has had one message echoed
    gone: Memory  # all have closed
    bytes_each: float  # by PSS, from before to idle
    bytes_each_spoken: float


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[list[Measured]]:
    made: list[Measured] = []
    yield made
    if (folder := request.config.getoption("--results")) and made:
        folder.mkdir(parents=True, exist_ok=True)
        document = {"provenance": provenance.collect(), "crowds": [asdict(crowd) for crowd in made]}
        (folder / "idle-websockets.json").write_text(json.dumps(document, indent=1) + "\n")


@pytest.fixture
def allow_files() -> Iterator[None]:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_one(server: RunningServer) -> socket.socket:
    client = dial(server.address)
    client.sendall(OPENING.request)
    came = b""
    while (rest := OPENING.read(came)) is None:
        came += client.recv(65536)
    assert rest == b""
    return client


def talk(client: socket.socket, number: int) -> None:
    text = b"number %d" % number
    client.sendall(frame(TEXT, text, MASK))
    assert read_exactly(client, len(text) + 2) == frame(TEXT, text)


def close(client: socket.socket) -> None:
    """Say goodbye and read the answer to its end."""
    client.sendall(frame(CLOSE, NORMAL, MASK))
    assert read_exactly(client, 4) == frame(CLOSE, NORMAL)
    assert client.recv(1) == b""
    client.close()


def measure(server: RunningServer, count: int) -> Measured:
    (pid,) = server.worker_pids()
    for number in range(ENOUGH_FOR_ALLOCATORS):
        client = open_one(server)
        talk(client, number)
        close(client)
    before, files = Memory.of(pid), len(open_fds(pid))
    with ExitStack() as opened:
        began_s = time.monotonic()
        clients = [opened.enter_context(open_one(server)) for _ in range(count)]
        opened_s = time.monotonic() - began_s
        idle = Memory.of(pid)
        for number, client in enumerate(clients):
            talk(client, number)
        spoken = Memory.of(pid)
        for client in clients:
            close(client)
    eventually(lambda: len(open_fds(pid)) <= files, within_s=30, what="no connection is left")
    assert server.worker_pids() == {pid}
    return Measured(
        clients=count,
        opened_s=round(opened_s, 3),
        before=before,
        idle=idle,
        spoken=spoken,
        gone=Memory.of(pid),
        bytes_each=(idle.pss_bytes - before.pss_bytes) / count,
        bytes_each_spoken=(spoken.pss_bytes - before.pss_bytes) / count,
    )


@pytest.mark.usefixtures("allow_files")
@pytest.mark.parametrize(
    "count",
    [
        1_000,
        pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_idle_websockets_cost_little_memory_and_all_are_served(
    count: int, serve: Serve, results: list[Measured]
) -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < count + SPARE_FILES:
        pytest.skip(f"{count} clients need as many open files in one process, and {files} are allowed")
    room = str(count + SPARE_FILES)
    server = serve(APP, "--workers", "1", "--max-connections", room, "--ws-ping", "0", "--log-level", "debug")
    measured = measure(server, count)
    results.append(measured)
    assert 0 < measured.bytes_each < MOST_BYTES_EACH, measured
    assert measured.bytes_each_spoken < MOST_BYTES_EACH, measured
