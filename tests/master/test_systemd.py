"""A server under a service manager: this test plays its part, with a datagram socket that hears what it is told."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, talkback_reply
from tests.support.processes import children
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")


class Manager:
    """Hears notifications, each with the pid of its sender, in the kernel's word."""

    def __init__(self, place: Path) -> None:
        self.env = {"NOTIFY_SOCKET": str(place)}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(str(place))

    def next(self, *, within_s: float = 20.0) -> tuple[int, list[str]]:
        """The next message: its sender, and its lines."""
        self._sock.settimeout(within_s)
        text, ancillary, _flags, _address = self._sock.recvmsg(65536, socket.CMSG_SPACE(12))
        pid = int.from_bytes(ancillary[0][2][:4], "little")
        return pid, text.decode().splitlines()

    def nothing_more(self) -> bool:
        """True if no message waits."""
        self._sock.setblocking(False)
        try:
            self._sock.recv(1)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


def test_ready_is_told_when_every_worker_serves(serve: Serve, manager: Manager) -> None:
    server = serve("--workers", "2", env=manager.env)
    pid, lines = manager.next()
    assert pid == server.pid
    status = f"STATUS=2 workers serve talkback on {server.address}"
    assert lines == ["READY=1", status, f"MAINPID={server.pid}"]
    assert server.stop() == 0
    pid, lines = manager.next()
    assert (pid, lines) == (server.pid, ["STOPPING=1", "STATUS=stopping: SIGTERM"])
    assert manager.nothing_more()


def test_nothing_is_told_before_the_workers_serve(serve: Serve, manager: Manager, gate: Gate, app: object) -> None:
    source = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nhandle = gated.handle\n"
    serve(app(source), "--workers", "1", env=manager.env | gate.env, ready=False)  # type: ignore[operator]
    gate.wait_entered(1)
    assert manager.nothing_more()
    gate.open()
    assert manager.next()[1][0] == "READY=1"


def test_a_reload_is_told_from_its_beginning_to_its_end(serve: Serve, manager: Manager) -> None:
    server = serve("--workers", "2", env=manager.env)
    manager.next()
    server.signal(signal.SIGHUP)
    pid, lines = manager.next()
    assert pid == server.pid
    assert lines[0] == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", lines[1])
    assert manager.next()[1][0] == "READY=1"
    server.wait_log("reloaded generation=2")


def test_a_template_that_is_replaced_is_no_reload(serve: Serve, manager: Manager) -> None:
    server = serve("--workers", "1", "--preload", env=manager.env)
    manager.next()
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children(server.pid)}
    (template,) = [pid for pid, title in titles.items() if title.startswith("prefork: template")]
    os.kill(template, signal.SIGKILL)
    server.wait_log("template died")
    eventually(lambda: len(children(server.pid) - {template}) == 2, within_s=15, what="another template")
    assert server.stop() == 0
    assert manager.next()[1][0] == "STOPPING=1"


def test_a_reload_that_fails_is_told_with_its_reason(serve: Serve, manager: Manager, app: object) -> None:
    name: str = app("def handle(conn): pass\n")  # type: ignore[operator]
    server = serve(name, "--workers", "1", env=manager.env)
    manager.next()
    app("syntax error\n")  # type: ignore[operator]
    server.expect_traceback = True
    server.signal(signal.SIGHUP)
    assert manager.next()[1][0] == "RELOADING=1"
    _pid, (ready, status, _main_pid) = manager.next()
    assert ready == "READY=1"
    assert "the last reload was abandoned: cannot load" in status


def test_the_watchdog_is_fed_while_nothing_happens(serve: Serve, manager: Manager) -> None:
    server = serve("--workers", "1", env=manager.env | {"WATCHDOG_USEC": "400000"})
    told = [manager.next(within_s=30) for _ in range(6)]
    assert {pid for pid, _lines in told} == {server.pid}
    assert [lines for _pid, lines in told].count(["WATCHDOG=1"]) == 5


def test_programs_of_a_handler_do_not_find_the_managers_socket(serve: Serve, manager: Manager, app: object) -> None:
    source = "import os\ndef handle(conn): conn.sendall(repr('NOTIFY_SOCKET' in os.environ).encode())\n"
    server = serve(app(source), "--workers", "1", env=manager.env)  # type: ignore[operator]
    with dial(server.address) as client:
        assert client.recv(100) == b"False"


def test_a_manager_that_has_gone_harms_nobody(serve: Serve, tmp_path: Path) -> None:
    server = serve("--workers", "1", env={"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "100000"})
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert server.stop() == 0
