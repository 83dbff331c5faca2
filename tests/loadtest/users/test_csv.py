"""locust's own CSV files have every exchange of the run, also those of its last second."""

from __future__ import annotations

import csv
import json
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.loadtest.locust_process import Generator
    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]

pytestmark = pytest.mark.slow


class FailingLate:
    """An HTTP server that answers with status 500 from 1.5 s after its first connection on; counts both."""

    def __init__(self) -> None:
        self.answers = {200: 0, 500: 0}
        self._first_s = 0.0
        self._lock = threading.Lock()

    def __call__(self, peer: socket.socket) -> Iterator[None]:
        self._first_s = self._first_s or time.monotonic()
        requests = peer.makefile("rb")
        while requests.readline():
            while requests.readline() not in (b"\r\n", b""):
                continue
            threading.Event().wait(0.002)
            status = 500 if time.monotonic() > self._first_s + 1.5 else 200
            with self._lock:
                self.answers[status] += 1
            peer.sendall(b"HTTP/1.1 %d Some\r\nContent-Length: 0\r\n\r\n" % status)
            yield


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("processes", [(), pytest.param(("--processes", "2"), id="2 processes")])
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_the_files_have_every_exchange(
    engine: str,
    processes: tuple[str, ...],
    stand_in: StartServer,
    generate: Generate,
    free_port: int,
    tmp_path: Path,
) -> None:
    failing = FailingLate()
    server = stand_in(failing)
    clients = ("--connections", "4") if engine == "fast" else ("--users", "4", "--spawn-rate", "4")
    ports = ("--master-bind-port", str(free_port), "--master-port", str(free_port)) if processes else ()
    files = ("--csv", str(tmp_path / "d"), "--csv-full-history", "--json-file", str(tmp_path / "d"))
    options = ("--scenario", "http", "--engine", engine, "--run-time", "2s", *clients, *processes, *ports, *files)
    generate("--host", server.address, *options).wait(exit_code=1)
    good, bad = failing.answers[200], failing.answers[500]
    assert min(good, bad) > 0
    (counted,) = json.loads((tmp_path / "d.json").read_text())
    assert (counted["num_requests"], counted["num_failures"]) == (good + bad, bad)
    for row in rows(tmp_path / "d_stats.csv"):
        assert (int(row["Request Count"]), int(row["Failure Count"])) == (good + bad, bad)
    (failure,) = rows(tmp_path / "d_failures.csv")
    assert (failure["Error"], int(failure["Occurrences"])) == ("status 500", bad)
    for row in rows(tmp_path / "d_stats_history.csv")[-2:]:
        assert (int(row["Total Request Count"]), int(row["Total Failure Count"])) == (good + bad, bad)
    assert rows(tmp_path / "d_exceptions.csv") == []


RAISING = """
    import gevent
    import loadtest.users
    from locust import User, constant, events, task

    class RaisingUser(User):
        wait_time = constant(0.05)
        protocol, unix = "tcp", True

        @task
        def begin(self):
            raise ValueError("this one")

    @events.quit.add_listener
    def tell(**_):
        print("raised", sum(found["count"] for found in runner.exceptions.values()), flush=True)

    @events.init.add_listener
    def note(environment, **_):
        global runner
        runner = environment.runner
"""


def test_the_files_have_every_exception(generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(textwrap.dedent(RAISING))
    options = ("--csv", str(tmp_path / "d"), "--run-time", "1s", "--users", "3", "--spawn-rate", "3")
    run = generate(*options, headless=True, locustfile=tmp_path / "raising.py")
    assert run.process.wait(40) == 1
    (found,) = rows(tmp_path / "d_exceptions.csv")
    assert (found["Message"], f"raised {found['Count']}\n" in run.log) == ("this one", True)
    assert int(found["Count"]) > 20
