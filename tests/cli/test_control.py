"""All commands at once, and rude clients of the control socket."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, talkback_reply
from tests.support.control import Place, converse, dial_control, finish, read_lines, succeeded
from tests.support.processes import open_fds
from tests.support.server import APPS, RunningServer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
STATUS = b'{"command": "status"}\n'


@pytest.mark.parametrize(
    ("deed", "frame"), [pytest.param(b"work 60\n", "in work", marks=pytest.mark.smoke), (b"spin\n", "in spin_forever")]
)
def test_all_commands_work_while_every_worker_is_busy(deed: bytes, frame: str, serve: Serve, place: Place) -> None:
    """Each command as a program of its own, as operators run it."""

    def program(*args: str) -> str:
        return succeeded(finish(place.start(*args)))

    server = serve(OBEY, "--workers", "2", "--graceful-timeout", "300ms", env=place.env)
    stuck = [dial(server.address) for _ in range(2)]
    for client in stuck:
        client.sendall(deed)

    def all_busy() -> bool:
        return all(worker["deadline_in_s"] is not None for worker in place.status()["workers"])

    eventually(all_busy, within_s=30, what="handler code in both workers")
    for worker in place.status()["workers"]:
        assert (worker["state"], worker["connections"]) == ("BUSY", 1)
        assert 0 < worker["deadline_in_s"] <= 30  # to a tenth
        assert worker["busy_ratio"] > 0
        assert worker["serving_s"] > 0
    assert {worker["serving"] for worker in place.status()["workers"]} == {
        "{}:{}".format(*client.getsockname()) for client in stuck
    }
    assert json.loads(program("status", "--json"))["server"]["pid"] == server.pid
    stacks = program("stack")
    assert stacks.count(frame) == 2
    assert stacks.count("BUSY") == 2
    assert program("scale", "3").startswith("scaled: 3 workers (before: 2)")
    assert exchange(server.address, b"work\n") == b"done\n"
    assert program("reload").startswith("reloaded: generation 2, 3 workers")
    assert exchange(server.address, b"work\n") == b"done\n"
    assert program("stop").startswith("stopped")
    assert server.wait_exit(within_s=15) == 0
    for client in stuck:
        client.close()


# --- rude clients


def test_more_clients_than_allowed_are_turned_away_and_the_others_kept(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    path = place.socket_of(server.pid)
    with ExitStack() as stack:
        silent = [stack.enter_context(dial_control(path)) for _ in range(32)]
        (answer,) = converse(path, b"")
        assert (answer["ok"], "32 control clients" in answer["error"]) == (False, True)
        silent[7].sendall(STATUS)
        assert read_lines(silent[7])[0]["ok"]
    eventually(lambda: converse(path, STATUS)[0]["ok"], within_s=15, what="room again")


@pytest.mark.timing
def test_a_client_that_never_finishes_its_line_is_told_so_and_dropped(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    began = time.monotonic()
    (answer,) = converse(place.socket_of(server.pid), b'{"command": "sta')
    assert answer == {"ok": False, "error": "no request came within 10 s"}
    assert 9.5 < time.monotonic() - began < 20
    assert exchange(server.address) == talkback_reply(b"hello")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (b"\n", "one line of JSON"),
        (b"status\n", "one line of JSON"),
        (b"[]\n", "it is not an object"),
        (b"[" * 60_000 + b"\n", "one line of JSON"),
        (b'{"command": ' + b"9" * 5000 + b"}\n", "one line of JSON"),
        (b"\xff\xfe\x00\n", "one line of JSON"),
        (b"{}\n", "there is no command None"),
        (b'{"command": "Status"}\n', "there is no command 'Status'"),
        (b'{"command": ["status"]}\n', "there is no command ['status']"),
        (b'{"command": "scale"}\n', "a whole number of workers, not None"),
        (b'{"command": "scale", "workers": true}\n', "a whole number of workers, not True"),
        (b'{"command": "scale", "workers": 2.0}\n', "a whole number of workers, not 2.0"),
        (b'{"command": "scale", "workers": -1}\n', "cannot scale to -1"),
        (b'{"command": "stack", "slot": "0"}\n', "a slot is a whole number, not '0'"),
        (b"x" * 70_000, "longer than 65536 bytes"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(
    control_of_shared: tuple[str, int], request_: bytes, words: str
) -> None:
    path, _pid = control_of_shared
    (answer,) = converse(path, request_)
    assert answer["ok"] is False
    assert words in answer["error"]


@pytest.fixture(scope="module")
def control_of_shared() -> Iterator[tuple[str, int]]:
    """One server for the requests that change nothing."""
    with Place() as place:
        server = RunningServer("talkback", "--workers", "1", env=place.env)
        try:
            server.wait_ready()
            yield str(place.socket_of(server.pid)), server.pid
        finally:
            server.close()


def test_a_request_may_end_with_the_connections_half(control_of_shared: tuple[str, int]) -> None:
    path, pid = control_of_shared
    with dial_control(path) as client:
        client.sendall(STATUS.rstrip())
        client.shutdown(socket.SHUT_WR)
        (answer,) = read_lines(client)
    assert answer["answer"]["server"]["pid"] == pid


def test_two_hundred_kinds_of_rubbish_leave_the_master_alive_and_without_a_leak(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    path = place.socket_of(server.pid)
    workers, before = server.worker_pids(), len(open_fds(server.pid))
    choose = random.Random(1935)
    for _ in range(200):
        with dial_control(path) as client:
            try:
                client.sendall(rubbish(choose))
                match choose.randrange(4):
                    case 0:
                        client.shutdown(socket.SHUT_WR)
                    case 1:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    case 2:
                        client.settimeout(0.001)
                        client.recv(10)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass  # its right
    answer = eventually(lambda: converse(path, STATUS)[0].get("answer"), within_s=15, what="room for one more client")
    assert answer["server"]["pid"] == server.pid
    eventually(lambda: len(open_fds(server.pid)) <= before, within_s=15, what="as few descriptors as before")
    assert server.worker_pids() == workers
    assert "control command failed" not in server.log


def rubbish(choose: random.Random) -> bytes:
    """Random bytes, broken JSON, and requests of the wrong shape that could do no harm if they were taken."""
    match choose.randrange(5):
        case 0:
            return choose.randbytes(choose.choice([0, 1, 100, 5000, 70_000]))
        case 1:
            return STATUS[: choose.randrange(len(STATUS))]
        case 2:
            value = choose.choice([None, 0, -1, 1e308, "x" * 1000, [], {}, [[[]]], True, "\ud800"])
            return (
                json.dumps({"command": choose.choice(["scale", "stack", value]), "workers": [value]}).encode() + b"\n"
            )
        case 3:
            flipped = bytearray(STATUS * choose.choice([1, 3]))
            flipped[choose.randrange(len(flipped))] ^= 1 << choose.randrange(8)
            return bytes(flipped)
        case _:
            return choose.choice([b"{", b"[", b'{"a":', b'"']) * choose.choice([1, 1000, 20_000]) + b"\n"


def test_a_worker_that_is_forked_while_clients_are_connected_holds_none_of_their_sockets(
    serve: Serve, place: Place
) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    (worker,) = server.worker_pids()
    was = sockets_of(worker)
    with dial_control(place.socket_of(server.pid)) as one, dial_control(place.socket_of(server.pid)) as two:
        assert exchange(server.address) == talkback_reply(b"hello")
        two.sendall(b'{"command": "stack"}\n')
        assert read_lines(two)[-1]["ok"], "so both have been accepted"
        os.kill(worker, signal.SIGKILL)
        (successor,) = server.wait_workers(1, without={worker})
        assert exchange(server.address) == talkback_reply(b"hello")
        eventually(lambda: sockets_of(successor) == was, within_s=15, what=f"{was}, the listener alone")
        one.sendall(STATUS)
        assert read_lines(one)[0]["ok"], "and the end of the connection is seen at once"


def sockets_of(pid: int) -> set[str]:
    return {target for target in open_fds(pid).values() if target.startswith("socket:")}
