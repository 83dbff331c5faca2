"""Thousands of kept connections that wait for a next request: each costs little memory, all of them no CPU.

`--results DIR` writes what was measured to DIR/idle-connections.json. Memory is that of the worker process; what the
kernel keeps for a socket is not in it.
"""

from __future__ import annotations

import json
import resource
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.data import provenance
from prefork.core.proc import cpu_s, pss_bytes
from tests.support.client import GREETING, dial
from tests.support.processes import open_fds
from tests.support.wait import eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

SPARE_FILES = 100
ENOUGH_FOR_ALLOCATORS = 50  # connections before the first look: code is imported, pools are made
WINDOW_S = 20.0  # longer than --header-timeout, after which a deadline that has moved is looked at
MOST_CPU_S = 0.1  # more than without connections, in that time
ROUNDS, REQUESTS = 30, 1_500  # in turn with and without; the kernel counts CPU time in ticks of 10 ms
# Of the CPU time of a request. Two processes that serve alike differ by up to 1.8 under asyncio (measured); what takes
# 5 ns for each of ten thousand connections would make it 3.
MOST_RATIO = 2.5

# A browser's head; the cookie is the client's own, so no two are the same.
HEAD = (
    "GET / HTTP/1.1\r\nHost: localhost:8000\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
    "\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\nConnection: keep-alive\r\n"
    "Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: none\r\n"
    "Cookie: session={number:032d}; theme=dark\r\n\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How an application is served, and the bytes that an idle connection may take: of 2,000, and of 10,000."""

    args: tuple[str, ...]
    most_bytes: int
    bar_bytes: int


ENGINES = {
    "wsgi": Engine(args=("hello",), most_bytes=3_000, bar_bytes=4_096),
    "threads": Engine(args=("hello", "--threads", "4"), most_bytes=3_000, bar_bytes=4_096),
    "asyncio": Engine(args=("ahello", "--loop", "asyncio"), most_bytes=5_400, bar_bytes=8_192),
    "uvloop": Engine(args=("ahello", "--loop", "uvloop"), most_bytes=5_400, bar_bytes=8_192),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    made: list[dict[str, Any]] = []
    yield made
    if (folder := request.config.getoption("--results")) and made:
        folder.mkdir(parents=True, exist_ok=True)
        document = {"provenance": provenance.collect(), "crowds": made}
        (folder / "idle-connections.json").write_text(json.dumps(document, indent=1) + "\n")


@pytest.fixture
def need_files() -> Iterator[Callable[[int], None]]:
    """Ask for so many open files, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def need(count: int) -> None:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"{count} open files are needed, and {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    yield need
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """One that keeps its connection."""

    def __init__(self, address: str, number: int = 0) -> None:
        self.sock: socket.socket = dial(address)
        self._head = HEAD.format(number=number).encode()

    def ask(self) -> None:
        """Have one request answered."""
        self.sock.sendall(self._head)
        came = b""
        while not came.endswith(GREETING):
            data = self.sock.recv(65536)
            assert data, "the server has closed the connection"
            came += data


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one crowd, by PSS."""

    engine: Engine
    connections: int
    bytes_each: float
    bytes_each_after_another_request: float


def serve_many(serve: Serve, engine: Engine, count: int) -> tuple[RunningServer, int]:
    room = str(count + SPARE_FILES)
    server = serve(*engine.args, "--workers", "1", "--max-connections", room, "--keep-alive", "600")
    (pid,) = server.worker_pids()
    return server, pid


def pss(pid: int) -> int:
    found = pss_bytes(pid)
    assert found
    return found


def open_all(server: RunningServer, count: int, opened: ExitStack) -> list[Client]:
    """Open so many connections, each with one request."""
    clients = []
    for number in range(count):
        client = Client(server.address, number)
        opened.enter_context(client.sock)
        client.ask()
        clients.append(client)
    return clients


def measure_memory(server: RunningServer, pid: int, engine: Engine, count: int) -> Costs:
    with ExitStack() as opened:
        open_all(server, ENOUGH_FOR_ALLOCATORS, opened)
    before, files = pss(pid), len(open_fds(pid))
    with ExitStack() as opened:
        clients = open_all(server, count, opened)
        idle = pss(pid)
        for client in clients:
            client.ask()
        again = pss(pid)
    eventually(lambda: len(open_fds(pid)) <= files, within_s=30, what="no connection is left")
    return Costs(
        engine=engine,
        connections=count,
        bytes_each=(idle - before) / count,
        bytes_each_after_another_request=(again - before) / count,
    )


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_an_idle_connection_takes_little_memory(
    engine: Engine, count: int, serve: Serve, need_files: Callable[[int], None], results: list[dict[str, Any]]
) -> None:
    need_files(count + SPARE_FILES)
    server, pid = serve_many(serve, engine, count)
    costs = measure_memory(server, pid, engine, count)
    results.append(asdict(costs))
    assert 0 < costs.bytes_each < (engine.most_bytes if count < 10_000 else engine.bar_bytes), costs
    assert server.worker_pids() == {pid}


def used_s(pid: int) -> float:
    used = cpu_s(pid)
    assert used is not None
    return used


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_ten_thousand_idle_connections_cost_no_cpu(
    engine: Engine, serve: Serve, need_files: Callable[[int], None], results: list[dict[str, Any]]
) -> None:
    count = 10_000
    need_files(count + SPARE_FILES)
    servers = [serve_many(serve, engine, count) for _ in range(2)]
    pids = [pid for _, pid in servers]
    with ExitStack() as opened:
        crowd = open_all(servers[1][0], count, opened)
        began_s = [used_s(pid) for pid in pids]
        threading.Event().wait(WINDOW_S)
        without, beside = (used_s(pid) - before_s for pid, before_s in zip(pids, began_s, strict=True))

        busy = [open_all(server, 1, opened)[0] for server, _ in servers]
        spent = [0.0, 0.0]
        for number in range(ROUNDS):
            for which in (0, 1) if number % 2 else (1, 0):
                before_s = used_s(pids[which])
                for _ in range(REQUESTS):
                    busy[which].ask()
                spent[which] += used_s(pids[which]) - before_s
        for client in crowd:
            client.ask()  # none was lost
    ratio = spent[1] / spent[0]
    results.append({"engine": asdict(engine), "idle_s": without, "idle_beside_s": beside, "request_ratio": ratio})
    assert beside - without < MOST_CPU_S, (without, beside)
    assert ratio < MOST_RATIO, spent
