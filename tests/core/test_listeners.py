"""Where a server listens: several addresses, IPv6, Unix sockets, inherited descriptors, a service manager's sockets."""

from __future__ import annotations

import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, attempt, collect, crowd, dial, exchange, read_to_end, talkback_reply
from tests.support.processes import open_fds
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
CANNOT_BIND = 5
# Become the process that a service manager starts: sockets from descriptor 3 on, and variables that name this pid.
ACTIVATE = """
import os, sys
fds, names, pid = [int(n) for n in sys.argv[1].split(",")], sys.argv[2], sys.argv[3]
spare = [os.dup2(fd, 100 + n) for n, fd in enumerate(fds)]
for n, fd in enumerate(spare):
    os.dup2(fd, 3 + n)
    os.close(fd)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=pid or str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(sys.argv[4], sys.argv[4:])
"""


def activation(*socks: socket.socket, names: str = "", pid: str = "") -> dict[str, object]:
    """Keywords of `serve` that pass the sockets as a service manager does."""
    fds = [sock.fileno() for sock in socks]
    return {
        "wrapper": [sys.executable, "-c", ACTIVATE, ",".join(map(str, fds)), names, pid],
        "pass_fds": fds,
    }


@pytest.fixture
def theirs() -> Iterator[socket.socket]:
    """A listener of somebody else's."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as sock:
        yield sock


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


def said(address: str) -> bytes:
    """What the server says to a client that says nothing."""
    with dial(address) as sock:
        return read_to_end(sock)


def refused(serve: Serve, *args: str, **kwargs: object) -> str:
    """The log of a server that cannot bind."""
    server: RunningServer = serve(*args, ready=False, expected_exit=CANNOT_BIND, **kwargs)
    assert server.wait_exit() == CANNOT_BIND
    assert "Traceback" not in server.log
    return server.log


# --- several addresses


def test_every_address_is_served_by_every_worker(serve: Serve, tmp_path: Path) -> None:
    pid = f"{APPS / 'identity.py'}:pid"
    unix = f"unix:{tmp_path}/app.sock"
    server = serve(pid, "--workers", "2", bind=["127.0.0.1:0", "127.0.0.1:0", unix])
    assert len(set(server.addresses)) == 3
    for address in server.addresses:
        seen: set[int] = set()
        eventually(
            lambda: seen.add(int(said(address))) or seen == server.worker_pids(),  # noqa: B023 - called at once
            within_s=30,
            what=f"an answer of each worker on {address}",
        )


def test_ipv4_and_ipv6(serve: Serve) -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    server = serve("--workers", "1", bind=["127.0.0.1:0", "[::1]:0"])
    assert [exchange(address, b"hi\n") for address in server.addresses] == [HI, HI]
    assert server.addresses[1].startswith("[::1]:")


def test_one_address_that_cannot_be_bound_ends_the_start_and_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    log = refused(serve, bind=[f"unix:{path}", "203.0.113.7:80"])
    assert "cannot bind 203.0.113.7:80" in log
    assert not path.exists()


def test_a_port_that_another_program_has(serve: Serve, theirs: socket.socket) -> None:
    log = refused(serve, bind=address_of(theirs))
    assert f"cannot bind {address_of(theirs)}: Address already in use" in log
    assert "choose another address" in log


# --- Unix sockets


@pytest.mark.parametrize(("umask", "mode"), [("077", 0o700), ("007", 0o770), ("000", 0o777)])
def test_the_mode_of_a_unix_socket_follows_the_umask(serve: Serve, tmp_path: Path, umask: str, mode: int) -> None:
    path = tmp_path / "app.sock"
    server = serve("--workers", "1", "--umask", umask, bind=f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert exchange(f"unix:{path}", b"hi\n") == HI
    assert server.stop() == 0
    assert not path.exists()


def test_a_killed_servers_path_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as sock:  # as after SIGKILL: the file is there, nobody listens
        sock.bind(str(path))
    serve("--workers", "1", bind=f"unix:{path}")
    assert exchange(f"unix:{path}", b"hi\n") == HI


def test_a_living_servers_path_is_not_stolen(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    serve("--workers", "1", bind=f"unix:{path}")
    assert f"cannot bind unix:{path}: Address already in use" in refused(serve, bind=f"unix:{path}")
    assert exchange(f"unix:{path}", b"hi\n") == HI


def test_only_the_own_path_is_removed_at_the_end(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    server = serve("--workers", "1", bind=f"unix:{path}")
    path.unlink()
    path.write_text("mine")
    assert server.stop() == 0
    assert path.read_text() == "mine"


# --- descriptors of others


def test_an_inherited_listener_is_served_and_left_as_it_was(serve: Serve, theirs: socket.socket) -> None:
    fd = theirs.fileno()
    server = serve("--workers", "2", bind=f"fd://{fd}", pass_fds=[fd])
    assert server.address == address_of(theirs)
    assert exchange(server.address, b"hi\n") == HI
    assert server.stop() == 0
    theirs.settimeout(5)
    with socket.create_connection(theirs.getsockname()):  # its owner goes on
        theirs.accept()[0].close()


def test_who_waits_on_an_inherited_listener_at_the_stop_is_left_to_its_owner(
    serve: Serve, theirs: socket.socket, gate: Gate
) -> None:
    fd = theirs.fileno()
    app = f"{APPS / 'gated.py'}:handle"
    server = serve(app, "--workers", "1", bind=f"fd://{fd}", pass_fds=[fd], env=gate.env)
    inside, *waiting = crowd(server.address, 4)
    gate.wait_entered(1)
    server.signal(15)
    server.wait_log("SIGTERM")
    gate.open()
    assert server.wait_exit() == 0
    assert collect([inside], HI) == {Outcome.OK: 1}
    successor = serve("--workers", "1", bind=f"fd://{fd}", pass_fds=[fd])
    assert successor.address == address_of(theirs)
    assert collect(waiting, HI) == {Outcome.OK: 3}


def test_a_descriptor_that_is_no_listener(serve: Serve, tmp_path: Path) -> None:
    assert "cannot use fd://0: " in refused(serve, bind="fd://0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        fd = datagrams.fileno()
        assert "it is not a listening stream socket" in refused(serve, bind=f"fd://{fd}", pass_fds=[fd])


# --- a service manager's sockets


def test_passed_sockets_stand_in_place_of_the_default_address(serve: Serve, theirs: socket.socket) -> None:
    server = serve("--workers", "1", bind=None, **activation(theirs, names="web"))
    assert server.addresses == [address_of(theirs)]
    assert exchange(server.address, b"hi\n") == HI


def test_passed_sockets_and_an_address_are_both_served(serve: Serve, theirs: socket.socket, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "s"))
        local.listen(8)
        server = serve("--workers", "1", bind="127.0.0.1:0", **activation(theirs, local))
        assert len(server.addresses) == 3
        assert server.addresses[:2] == [address_of(theirs), f"unix:{tmp_path}/s"]
        assert [exchange(address, b"hi\n") for address in server.addresses] == [HI, HI, HI]
        assert server.stop() == 0
    assert (tmp_path / "s").exists(), "the path is its maker's"


def test_neither_workers_nor_their_programs_learn_of_passed_sockets(
    serve: Serve, theirs: socket.socket, app: object
) -> None:
    source = (
        "import os\n"
        "def handle(conn):\n"
        "    found = sorted(name for name in os.environ if name.startswith('LISTEN_'))\n"
        "    conn.sendall(repr((found, os.get_inheritable(3))).encode())\n"
    )
    server = serve(app(source), "--workers", "1", bind=None, **activation(theirs))  # type: ignore[operator]
    assert said(server.address) == b"([], False)"


def test_sockets_that_were_passed_to_another_process_are_left_alone(serve: Serve, theirs: socket.socket) -> None:
    server = serve("--workers", "1", **activation(theirs, pid="1"))
    server.wait_log("passed sockets ignored listen_pid=1")
    assert server.addresses != [address_of(theirs)]
    assert attempt(server.address, b"hi\n", HI) is Outcome.OK


def test_passed_variables_that_make_no_sense(serve: Serve) -> None:
    log = refused(serve, wrapper=["env", "LISTEN_PID=1", "LISTEN_FDS=many"])
    assert "LISTEN_PID='1' LISTEN_FDS='many'" in log


def test_workers_of_a_server_with_many_sockets_hold_no_plug(serve: Serve) -> None:
    """What only the master needs at the stop stays with it."""
    server = serve("--workers", "1", bind=["127.0.0.1:0", "127.0.0.1:0"])
    (worker,) = server.worker_pids()
    sockets = [fd for fd, what in open_fds(worker).items() if what.startswith("socket:")]
    assert len(sockets) == 2 + 2, "and the two ends of the queue of connections that change hands"
