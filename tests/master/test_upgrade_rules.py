"""Both ends of an upgrade, each against the other's protocol: real sockets and descriptors, no second program."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefork.core.address import Address
from prefork.core.listener import open_group, open_listener
from prefork.core.log import open_log
from prefork.core.pidfile import PidFile
from prefork.core.privileges import WorkingDirectory
from prefork.core.systemd import Notifier
from prefork.master.children import Children
from prefork.master.upgrade import VARIABLE, NewMasterReady, Takeover, Upgrade, _read
from prefork.runtime.transfer import SIZE, VERSION, TransferQueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefork.core.listener import Listener


def copied(entry: dict[str, Any]) -> dict[str, Any]:
    """A listener's entry with descriptors of its own, as exec would leave them in another process."""
    hold = entry["hold"]
    if hold and hold["fd"] >= 0:
        hold = {**hold, "fd": os.dup(hold["fd"])}
    return {**entry, "fd": os.dup(entry["fd"]), "hold": hold, "activated": False}


def variable(**entries: object) -> str:
    """The variable's value, with these entries in place of, or beside, those of an old master without listeners."""
    given = {
        "successor": os.getpid(),
        "master": 4242,
        "generation": 7,
        "configured": 4,
        "workers": 4,
        "listeners": [],
        "pid_file": None,
    }
    return json.dumps(given | entries)


class Family:
    """An old master's end of the channel, and what it leaves."""

    def __init__(self) -> None:
        self.channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(5)
        self.listeners: list[Listener] = []
        self.takeovers: list[Takeover] = []

    def takeover(self, *, entries: list[dict[str, Any]] | None = None, **more: Any) -> Takeover:
        listed = entries if entries is not None else [copied(each.export()) for each in self.listeners]
        environ = {VARIABLE: variable(listeners=listed, channel=self._theirs.detach(), **more), "HOME": "/root"}
        takeover = Takeover.of(environ)
        assert takeover
        assert environ == {"HOME": "/root"}
        self.takeovers.append(takeover)
        return takeover

    def close(self) -> None:
        self.channel.close()
        self._theirs.close()
        for takeover in self.takeovers:
            takeover.leave_the_rest()
            takeover.close_in_child()
        for listener in self.listeners:
            listener.unlink()
            listener.close()


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.close()


# --- the new master


@pytest.mark.parametrize("text", [None, "", "nonsense", "[]", "{}", '{"successor": 1}', "null", '{"successor": "x"}'])
def test_a_variable_that_is_not_for_this_process_is_ignored_and_removed(text: str | None) -> None:
    environ = {} if text is None else {VARIABLE: text}
    assert Takeover.of(environ) is None
    assert environ == {}


def test_a_variable_with_parts_missing_is_ignored() -> None:
    assert Takeover.of({VARIABLE: json.dumps({"successor": os.getpid()})}) is None


@pytest.mark.parametrize(
    ("configured", "now", "before", "workers"),
    [(4, 4, 4, 4), (4, 6, 4, 6), (8, 4, 4, 8), (8, 6, 4, 8), (4, 0, 4, 1)],
    ids=["as ever", "scaled", "configured anew", "both", "scaled to none"],
)
def test_how_many_workers_to_have(family: Family, configured: int, now: int, before: int, workers: int) -> None:
    assert family.takeover(configured=before, workers=now).follows(configured) == (workers, 7)


def test_listeners_are_found_by_the_words_that_asked_for_them(family: Family, tmp_path: Path) -> None:
    for text in ("127.0.0.1:0", "127.0.0.1:0", f"unix:{tmp_path}/s"):
        family.listeners.append(open_listener(Address.parse(text), backlog=8))
    takeover = family.takeover()
    taken = [*takeover.take("127.0.0.1:0"), *takeover.take("127.0.0.1:0"), *takeover.take(f"unix:{tmp_path}/s")]
    assert [each.address for each in taken] == [each.address for each in family.listeners]
    assert all(each.borrowed and each.owned and not each.sock.get_inheritable() for each in taken)
    assert takeover.take("127.0.0.1:0") == []
    for each in taken:
        each.unlink()  # borrowed: not yet ours to remove
        each.close()
    assert (tmp_path / "s").exists()


def test_a_group_is_taken_whole_and_with_its_slots(family: Family) -> None:
    for _ in range(2):
        family.listeners += open_group(Address.parse("127.0.0.1:0"), backlog=8, sockets=3)
    takeover = family.takeover()
    first, second = takeover.take("127.0.0.1:0"), takeover.take("127.0.0.1:0")
    assert [each.slot for each in first] == [each.slot for each in second] == [0, 1, 2]
    assert {each.address for each in first} == {family.listeners[0].address}
    assert {each.address for each in second} == {family.listeners[3].address}
    for each in first + second:
        each.close()


def test_a_borrowed_listener_is_neither_drained_nor_held_off(family: Family) -> None:
    listener = open_listener(Address.parse("127.0.0.1:0"), backlog=8)
    family.listeners.append(listener)
    (theirs,) = family.takeover().take("127.0.0.1:0")
    with socket.create_connection(listener.sock.getsockname()), theirs.sock:
        assert listener.waiting()
        assert not theirs.waiting()
        theirs.hold_off()
        with socket.create_connection(listener.sock.getsockname(), timeout=5):
            assert listener.queue() == (2, 8)
        theirs.borrowed = False
        assert theirs.waiting()
        theirs.hold_off()
        newcomer = socket.socket()
        newcomer.settimeout(0.2)
        with newcomer, pytest.raises(TimeoutError):
            newcomer.connect(listener.sock.getsockname())
        theirs.close_hold()


def test_the_old_master_hears_what_was_taken(family: Family, tmp_path: Path) -> None:
    family.listeners.append(open_listener(Address.parse("127.0.0.1:0"), backlog=8))
    entry = copied(family.listeners[0].export())
    pid_file = PidFile.claim(str(tmp_path / "pid"))
    takeover = family.takeover(entries=[entry], pid_file=[pid_file.path, os.dup(pid_file.fd)])
    assert takeover.take_pid_file(str(tmp_path / "other")) is None
    inherited = takeover.take_pid_file(str(tmp_path / "pid"))
    assert inherited
    (taken,) = takeover.take("127.0.0.1:0")
    takeover.ready(takes=True)
    said = {"ready": True, "took": [inherited.fd, entry["fd"]], "reads": [VERSION]}
    assert json.loads(family.channel.recv(9999)) == said
    inherited.close()
    pid_file.release()
    taken.close()


def test_the_new_master_owns_everything_when_the_word_is_said(family: Family) -> None:
    takeover = family.takeover()
    assert not takeover.granted()
    assert takeover.fds() != []
    family.channel.send(b"yours")
    assert takeover.granted()
    assert takeover.owner
    assert not takeover.granted(), "once"
    assert takeover.fds() == []


def test_the_new_master_owns_everything_when_the_old_one_dies(family: Family) -> None:
    takeover = family.takeover()
    takeover.ready(takes=False)
    family.channel.close()
    assert takeover.granted()
    takeover.failed("nobody hears that")


def test_a_failure_is_told_in_one_message_however_long(family: Family) -> None:
    family.takeover().failed("é" * 100_000)
    message = json.loads(family.channel.recv(1 << 20))
    assert message["ready"] is False
    assert message["reason"].startswith("éé")


@pytest.mark.parametrize("said", [{}, {"transfer": None}, {"transfer": []}, {"transfer": "x"}, {"transfer": {"1": 2}}])
def test_beside_an_old_master_that_tells_of_no_queue_there_is_one_of_our_own(
    family: Family, said: dict[str, Any]
) -> None:
    takeover = family.takeover(**said)
    assert not takeover.shares_transfer
    queue = takeover.transfer()
    assert queue.waiting() == 0
    queue.close()


def test_the_queue_of_the_old_master_is_taken(family: Family) -> None:
    theirs = TransferQueue()
    fds = [os.dup(fd) for fd in theirs.fds]
    for fd in fds:
        os.set_inheritable(fd, True)  # as exec has left them
    takeover = family.takeover(transfer=fds)
    assert takeover.shares_transfer
    ours = takeover.transfer()
    assert not any(os.get_inheritable(fd) for fd in fds)
    assert theirs.give(ours.fds[0], bytes(SIZE))
    assert ours.waiting() == 1
    for queue in (ours, theirs):
        queue.close()


@pytest.mark.parametrize("numbers", [[-1, 3], ["3", "4"], [3, None], [True, 4], [3.0, 4]], ids=json.dumps)
def test_a_variable_whose_queue_has_no_descriptors_is_not_ours(numbers: list[object]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert Takeover.of({VARIABLE: variable(transfer=numbers, channel=theirs.fileno())}) is None


# --- the old master


@pytest.fixture
def upgrade() -> Upgrade:
    return Upgrade(
        log=open_log(),
        children=Children(open_log()),
        started_in=WorkingDirectory.current(),
        notifier=Notifier({}),
        boot_timeout_s=5.0,
        graceful_timeout_s=5.0,
    )


READ: list[tuple[object, bool]] = [
    ([VERSION], True),
    ([VERSION, VERSION + 1], True),
    ([VERSION + 1, VERSION, "more"], True),
    ([VERSION + 1], False),
    ([], False),
    (None, False),
    (VERSION, False),
    (str(VERSION), False),
    ({str(VERSION): VERSION}, False),
    ([str(VERSION)], False),
    ([[VERSION]], False),
    ([{"v": VERSION}], False),
    ([None, -VERSION, VERSION + 0.5], False),
]


@pytest.mark.parametrize(("reads", "takes"), READ, ids=[json.dumps(reads) for reads, _ in READ])
def test_a_new_master_takes_connections_if_it_says_that_it_reads_our_messages(reads: object, takes: bool) -> None:
    data = json.dumps({"ready": True, "took": [3, 4], "reads": reads}).encode()
    assert _read(7, data) == (NewMasterReady(7, frozenset({3, 4}), takes=takes), "")


def test_a_new_master_that_says_nothing_of_messages_takes_no_connections() -> None:
    ready, _ = _read(7, b'{"ready": true, "took": []}')
    assert ready == NewMasterReady(7, frozenset(), takes=False)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"null", b"[1]", b'{"ready": true}', b'{"ready": true, "took": ["3"], "reads": [1]}', b"[" * 9000],
    ids=["nothing", "no text", "null", "a list", "a part", "no descriptors", "nested"],
)
def test_a_new_master_that_says_anything_else_is_not_ready(data: bytes) -> None:
    ready, reason = _read(7, data)
    assert ready is None
    assert reason


FINE = {"ready": True, "stopping": False, "reloading": False, "from_python": False}


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        ({}, None),
        ({"ready": False}, "still starting"),
        ({"stopping": True}, "is stopping"),
        ({"reloading": True}, "a reload is under way"),
        ({"ready": False, "reloading": True}, "still starting"),
        ({"from_python": True}, "no command line to start anew"),
    ],
)
def test_when_an_upgrade_is_refused(upgrade: Upgrade, obstacle: dict[str, bool], words: str | None) -> None:
    refusal = upgrade.refusal(**(FINE | obstacle))
    assert refusal is None if words is None else words in (refusal or "")


def test_what_there_is_to_do_without_an_upgrade(upgrade: Upgrade) -> None:
    assert upgrade.fds() == []
    assert upgrade.wake_s == float("inf")
    assert upgrade.step(time.monotonic()) is None
    upgrade.cancel("never begun", time.monotonic())
    upgrade.kill()
    assert not upgrade.running
