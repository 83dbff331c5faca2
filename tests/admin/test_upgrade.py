"""--admin in an upgrade: one server answers at a time, the address stays open, and a new address is judged before."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.master.test_upgrade import Line
from tests.support.admin import ADMIN, TITLE, address_of, admin_pid, figure, figures, status, title
from tests.support.client import Outcome, attempt, exchange, talkback_reply
from tests.support.processes import children
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")


@pytest.fixture
def upgrading(serve: Serve) -> Iterator[list[Line]]:
    """Lines of masters that are ended with the test; a test appends its own."""
    lines: list[Line] = []
    yield lines
    for line in lines:
        line.stop()


class Prober:
    """Asks for /healthz in a loop, as a service manager would, only faster. `faults` are answers that are not 200."""

    def __init__(self, address: str) -> None:
        self.faults: list[str] = []
        self.count = 0
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                answer = fetch(self._address, "/healthz")
            except (OSError, EOFError) as error:
                self.faults.append(repr(error))
            else:
                self.count += 1
                if answer.status != 200:
                    self.faults.append(str(answer))

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)

    def wait_more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = self.count + count
        eventually(lambda: self.count >= wanted, within_s=20, what="answers")


def test_the_new_master_is_asked_at_the_same_address_without_a_gap(serve: Serve, upgrading: list[Line]) -> None:
    server = serve("talkback", "--workers", "2", *ADMIN)
    line = Line(server)
    upgrading.append(line)
    address = address_of(server)
    exchange(server.address, b"hi\n")
    with Prober(address) as prober:
        for _ in range(3):
            prober.wait_more(5)
            line.upgrade()
            eventually(lambda: status(address)["server"]["pid"] == line.master, within_s=30, what="the new master")
            assert [title(pid) for pid in children(line.master)].count(TITLE) == 1
            assert server.log.count("admin listening address=" + address) >= 2, "the port is the same"
    assert not prober.faults
    found = figures(address)
    assert figure(found, "prefork_generation") == 4
    assert figure(found, "prefork_requests_total") == 0, "a new master counts from the beginning"
    assert figure(found, "prefork_ready") == 1


def configured(path: Path, admin: str) -> None:
    path.write_text(f"workers = 1\nadmin = {admin!r}\nbind = '127.0.0.1:0'\n")


def upgraded(serve: Serve, upgrading: list[Line], path: Path) -> tuple[RunningServer, Line]:
    server = serve("--config", str(path), bind=None)
    upgrading.append(Line(server))
    return server, upgrading[-1]


def test_another_address_and_none(serve: Serve, upgrading: list[Line], tmp_path: Path) -> None:
    path, socket_path = tmp_path / "prefork.toml", tmp_path / "admin.sock"
    configured(path, f"unix:{socket_path}")
    server, line = upgraded(serve, upgrading, path)
    assert status(f"unix:{socket_path}")["server"]["pid"] == line.master
    line.upgrade()
    assert status(f"unix:{socket_path}")["server"]["pid"] == line.master, "the path stays"
    configured(path, "127.0.0.1:0")
    line.upgrade()
    address = server.wait_log(r"admin listening address=(127\S+)")[1]
    assert status(address)["server"]["pid"] == line.master
    assert not socket_path.exists()
    configured(path, "none")
    line.upgrade()
    assert attempt(address, b"", b"") is Outcome.REFUSED
    assert exchange(server.address, b"hi\n") == HI


def test_an_address_that_is_taken_is_seen_before_anything_is_given_up(
    serve: Serve, upgrading: list[Line], tmp_path: Path
) -> None:
    path = tmp_path / "prefork.toml"
    configured(path, "127.0.0.1:0")
    server, line = upgraded(serve, upgrading, path)
    address, admin = address_of(server), admin_pid(server)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        configured(path, f"127.0.0.1:{taken.getsockname()[1]}")
        assert "prefork.toml:2: cannot bind" in line.failed(line.usr2())
    assert status(address)["server"]["pid"] == server.pid
    assert admin_pid(server) == admin
    assert exchange(server.address, b"hi\n") == HI


def test_an_admin_that_is_asked_is_heard_out(serve: Serve, upgrading: list[Line]) -> None:
    """Its answer is complete, although the other master has taken over meanwhile."""
    server = serve("talkback", "--workers", "1", *ADMIN)
    line = Line(server)
    upgrading.append(line)
    old = admin_pid(server)
    os.kill(old, signal.SIGSTOP)
    answers: list[object] = []
    asker = threading.Thread(target=lambda: answers.append(fetch(address_of(server), "/metrics").status))
    asker.start()
    os.kill(line.master, signal.SIGUSR2)
    server.wait_log("took over", within_s=20)
    line.master = int(server.wait_log(r"upgrading successor=(\d+)")[1])
    os.kill(old, signal.SIGCONT)
    asker.join(20)
    assert answers == [200]
    eventually(lambda: not server.running, within_s=20, what="the old master's end")
