"""Which server a command means: none, one of several, one that has died, one that does not answer."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.control import Place

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow


@pytest.mark.smoke
@pytest.mark.parametrize("command", ["status", "reload", "scale 1", "stop", "stack"])
def test_without_a_server_a_command_says_so_and_exits_6(command: str, place: Place) -> None:
    done = place.run(*command.split())
    assert done.returncode == 6
    assert re.fullmatch(r"prefork: no server .*\n", done.stderr)


@pytest.mark.smoke
def test_a_socket_that_is_not_there_is_no_server(place: Place) -> None:
    missing = place.run("status", "--control", str(place.root / "none.sock"))
    assert (missing.returncode, "no such socket" in missing.stderr) == (6, True)


def test_several_servers_are_listed_and_each_can_be_named(serve: Serve, place: Place) -> None:
    one = serve("talkback", "--workers", "1", env=place.env)
    two = serve("echo", "--workers", "1", env=place.env)
    done = place.run("status")
    assert done.returncode == 2
    assert done.stderr.startswith("prefork: 2 servers are running")
    for server, name in ((one, "talkback"), (two, "echo")):
        path = place.socket_of(server.pid)
        assert re.search(rf"--control {path} +pid {server.pid} +{name} +{server.address}$", done.stderr, re.MULTILINE)
        assert place.shown("--control", str(path))["server"]["pid"] == server.pid
    place.ok("stop", PREFORK_CONTROL=str(place.socket_of(one.pid)))
    assert place.shown()["server"]["pid"] == two.pid


def test_sockets_of_killed_servers_are_skipped_and_removed(serve: Serve, place: Place) -> None:
    def kill_one() -> int:
        server = serve("talkback", "--workers", "1", env=place.env, expected_exit=-signal.SIGKILL)
        server.stop(signal.SIGKILL)
        return server.pid

    first = kill_one()
    assert place.sockets == [place.socket_of(first)]
    named = place.run("status", "--control", str(place.socket_of(first)))
    assert (named.returncode, "its server has gone" in named.stderr) == (6, True)
    server = serve("talkback", "--workers", "1", env=place.env)
    assert place.sockets == [place.socket_of(server.pid)], "a new server tidies up"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place.socket_of(first)))
    assert place.shown()["server"]["pid"] == server.pid
    assert place.sockets == [place.socket_of(server.pid)], "a client tidies up"
    with socket.socket(socket.AF_UNIX) as early:
        early.bind(str(place.socket_of(os.getpid())))
        assert place.shown()["server"]["pid"] == server.pid
        assert len(place.sockets) == 2, "its process lives: it may be about to listen"


def test_a_master_that_is_stopped_is_listed_as_mute(serve: Serve, place: Place) -> None:
    one = serve("talkback", "--workers", "1", env=place.env)
    two = serve("talkback", "--workers", "1", env=place.env)
    one.signal(signal.SIGSTOP)
    try:
        done = place.run("status")
    finally:
        one.signal(signal.SIGCONT)
    assert done.returncode == 2
    assert re.search(rf"{one.pid}\.sock +\(.*does not answer within 2 s", done.stderr)
    assert f"pid {two.pid}" in done.stderr
