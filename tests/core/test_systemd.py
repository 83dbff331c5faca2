"""What a service manager passes and is told: against a real datagram socket that plays its part."""

from __future__ import annotations

import os
import re
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefork.config.config import resolve
from prefork.core.address import Address
from prefork.core.log import open_log
from prefork.core.systemd import Notifier, activated
from prefork.errors import BindError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
ME = str(os.getpid())


class Manager:
    """The service manager's end of the notification socket."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + place[1:] if place.startswith("@") else place)
        self._sock.setblocking(False)

    def heard(self) -> list[str]:
        """Every message that has arrived."""
        messages = []
        while True:
            try:
                messages.append(self._sock.recv(65536).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._sock.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    place = str(tmp_path / "notify") if request.param == "path" else f"@prefork-test-{ME}"
    found = Manager(place)
    yield found
    found.close()


def environment(manager: Manager, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.place, "HOME": "/root", **more}


# --- what is told


def test_ready_reload_and_stop(manager: Manager) -> None:
    environ = environment(manager)
    notifier = Notifier(environ)
    assert environ == {"HOME": "/root"}, "the variables are not for workers"
    notifier.ready("2 workers serve talkback")
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.ready("2 workers\nserve")
    notifier.stopping("stopping: SIGTERM")
    ready, reloading, again, stopping = manager.heard()
    assert ready == f"READY=1\nSTATUS=2 workers serve talkback\nMAINPID={ME}"
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)\nSTATUS=reloading", reloading)
    assert match
    assert before <= int(match[1]) <= time.monotonic_ns() // 1000
    assert again.splitlines()[1] == "STATUS=2 workers serve", "no text can add a line of its own"
    assert stopping == "STOPPING=1\nSTATUS=stopping: SIGTERM"


def test_after_the_hand_over_only_the_new_process_speaks(manager: Manager) -> None:
    notifier = Notifier(environment(manager, WATCHDOG_USEC="2000000"))
    notifier.handing_over(4242)
    notifier.stopping("stopping: upgrade")
    assert notifier.tick(100.0) == float("inf")
    assert manager.heard() == ["MAINPID=4242"]


def test_if_the_new_process_dies_at_the_hand_over_the_old_one_stays(manager: Manager) -> None:
    notifier = Notifier(environment(manager))
    notifier.handing_over(4242)
    notifier.hand_over_failed()
    notifier.stopping("later")
    assert manager.heard() == ["MAINPID=4242", f"MAINPID={ME}", "STOPPING=1\nSTATUS=later"]


def test_a_new_master_is_silent_until_it_owns_everything(manager: Manager) -> None:
    notifier = Notifier(environment(manager))
    notifier.mute(True)
    notifier.ready("too early")
    notifier.mute(False)
    notifier.ready("now")
    assert [message.splitlines()[1] for message in manager.heard()] == ["STATUS=now"]


def test_the_watchdog_is_fed_twice_in_its_time(manager: Manager) -> None:
    notifier = Notifier(environment(manager, WATCHDOG_USEC="3000000", WATCHDOG_PID=ME))
    assert notifier.tick(100.0) == 101.5
    assert notifier.tick(101.0) == 101.5, "other events do not feed it more often"
    assert notifier.tick(101.5) == 103.0
    assert manager.heard() == ["WATCHDOG=1", "WATCHDOG=1"]


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}]
)
def test_no_watchdog_where_none_is_wanted_of_this_process(manager: Manager, more: dict[str, str]) -> None:
    notifier = Notifier(environment(manager, **more))
    assert notifier.tick(100.0) == float("inf")
    assert manager.heard() == []


def test_a_successor_gets_the_variables_with_its_own_pid(manager: Manager) -> None:
    assert Notifier(environment(manager)).environment(7) == {"NOTIFY_SOCKET": manager.place}
    notifier = Notifier(environment(manager, WATCHDOG_USEC="3000000", WATCHDOG_PID=ME))
    assert notifier.environment(7) == {
        "NOTIFY_SOCKET": manager.place,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": "7",
    }


def test_what_a_slow_manager_has_no_room_for_is_said_later(manager: Manager) -> None:
    """The queue of a datagram socket holds a few messages (net.unix.max_dgram_qlen)."""
    notifier = Notifier(environment(manager))
    said = 0
    while notifier.tick(100.0) == float("inf"):
        said += 1
        notifier.ready(f"number {said}")
        assert said < 10_000
    assert notifier.tick(100.0) == 100.1
    heard = manager.heard()
    assert len(heard) == said - 1
    assert notifier.tick(100.2) == float("inf")
    assert manager.heard() == [f"READY=1\nSTATUS=number {said}\nMAINPID={ME}"]


@pytest.mark.parametrize("place", ["", "/no/such/socket", "@nobody-listens-here", "relative", "x" * 200])
def test_without_a_manager_nothing_happens(place: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "1000000"} if place else {})
    notifier.ready("hello")
    notifier.tick(100.0)
    notifier.stopping("bye")


# --- what is passed


def test_passed_sockets_are_addresses_of_descriptors() -> None:
    environ = {"LISTEN_PID": ME, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:admin", "HOME": "/root"}
    assert activated(environ, open_log()) == [Address(socket.AF_UNSPEC, fd=3), Address(socket.AF_UNSPEC, fd=4)]
    assert environ == {"HOME": "/root"}


def test_nothing_was_passed() -> None:
    assert activated({"HOME": "/root"}, open_log()) == []
    assert activated({"LISTEN_PID": ME, "LISTEN_FDS": "0"}, open_log()) == []


def test_sockets_of_another_process(capfd: pytest.CaptureFixture[str]) -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert activated(environ, open_log()) == []
    assert environ == {}
    assert "passed sockets ignored listen_pid=1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("pid", "count"),
    [("", "1"), (ME, ""), (ME, "-1"), (ME, "1_0"), (ME, "٣"), ("x", "1"), (ME, "9" * 30)],
    ids=["no pid", "no count", "minus one", "underscore", "other digits", "pid is a word", "too many"],
)
def test_variables_that_make_no_sense(pid: str, count: str) -> None:
    with pytest.raises(BindError, match="cannot use the sockets passed to us: LISTEN_PID="):
        activated({"LISTEN_PID": pid, "LISTEN_FDS": count}, open_log())


# --- the unit files


def unit(name: str) -> dict[str, str]:
    """The settings of a unit file; continued lines are joined."""
    text = (ROOT / "contrib/systemd" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "["))]
    settings = dict(line.split("=", 1) for line in lines)
    assert len(settings) == len(lines), "a setting is given twice"
    return settings


def test_the_service_unit_agrees_with_the_options_it_gives() -> None:
    service = unit("prefork.service")
    _program, command, app, *words = shlex.split(service["ExecStart"])
    flags = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    config = resolve(app, flags, {})
    assert command == "serve"
    assert float(service["TimeoutStopSec"]) > config.graceful_timeout_s
    assert float(service["TimeoutStartSec"]) > config.boot_timeout_s
    assert (service["Type"], service["NotifyAccess"], service["KillMode"]) == ("notify", "main", "mixed")


def test_the_socket_unit_is_where_a_default_server_listens() -> None:
    config = resolve("talkback", {}, {})
    settings = unit("prefork.socket")
    assert settings["ListenStream"] == str(config.bind[0])
    assert int(settings["Backlog"]) == config.backlog
