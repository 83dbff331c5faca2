"""Real listeners: what is opened, and what a failed step is told."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.address import Address, format_sockaddr, part_families
from prefork.core.listener import Listener, open_group, open_listener, own_share, timeval
from prefork.errors import BindError, ConfigError
from tests.support.users import as_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT_S = 10.0  # of every wait for loopback


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def opened() -> Iterator[Callable[..., Listener]]:
    """`opened("127.0.0.1:0")`: a listener that is closed, and its path removed, with the test."""
    made: list[Listener] = []

    def make(text: str, *, backlog: int = 8) -> Listener:
        listener = open_listener(Address.parse(text), backlog=backlog)
        made.append(listener)
        return listener

    yield make
    for listener in made:
        listener.close()
        listener.unlink()


@pytest.fixture
def clients() -> Iterator[Callable[[str], socket.socket]]:
    """`clients("127.0.0.1:4000")`: a connected client."""
    made: list[socket.socket] = []

    def connect(address: str) -> socket.socket:
        where = Address.parse(address)
        sock = socket.socket(where.family)
        made.append(sock)
        sock.settimeout(LIMIT_S)
        sock.connect(where.path or (where.host, where.port))
        return sock

    yield connect
    for sock in made:
        sock.close()


def refused(text: str) -> str:
    """The sentence with which `text` cannot be opened."""
    with pytest.raises(BindError) as caught:
        open_listener(Address.parse(text), backlog=8)
    assert caught.value.exit_code == 5
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def port_of(listener: Listener) -> int:
    return int(listener.address.rpartition(":")[2])


# --- TCP


def test_port_0_becomes_a_real_one(opened: Callable[..., Listener], clients: Callable[[str], socket.socket]) -> None:
    listener = opened("127.0.0.1:0")
    assert port_of(listener) > 0
    assert listener.owned
    client = clients(listener.address)
    sock, peer = listener.sock.accept()
    with sock:
        assert format_sockaddr(sock.family, peer) == format_sockaddr(client.family, client.getsockname())
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # inherited


def test_the_queue_is_what_waits_for_accept(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket]
) -> None:
    listener = opened("127.0.0.1:0", backlog=7)
    assert (listener.queue(), listener.waiting()) == ((0, 7), False)
    for count in (1, 2, 3):
        clients(listener.address)
        assert (listener.queue(), listener.waiting()) == ((count, 7), True)
    listener.sock.accept()[0].close()
    assert listener.queue() == (2, 7)


def test_drops_are_counted_while_the_queue_is_full(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket]
) -> None:
    listener = opened("127.0.0.1:0", backlog=1)
    for _ in range(2):  # so many fit into a queue of 1
        clients(listener.address)
    assert listener.drops() == 0
    with socket.socket() as late:
        late.setblocking(False)
        late.connect_ex(("127.0.0.1", port_of(listener)))
        assert (listener.drops() or 0) >= 1


@needs_ipv6
def test_ipv6(opened: Callable[..., Listener], clients: Callable[[str], socket.socket]) -> None:
    port = port_of(opened("127.0.0.1:0"))
    listener = opened(f"[::1]:{port}")  # an IPv6 listener does not ask for the IPv4 port too
    assert listener.address == f"[::1]:{port}"
    clients(listener.address)
    assert listener.queue() == (1, 8)


@needs_ipv6
@pytest.mark.parametrize("text", [":0", "[::]:0"])
def test_every_address_is_both_families(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], text: str
) -> None:
    listener = opened(text)
    port = port_of(listener)
    assert listener.address == f"[::]:{port}"
    for host in ("127.0.0.1", "[::1]"):
        client = clients(f"{host}:{port}")
        sock, peer = listener.sock.accept()
        sock.close()
        assert format_sockaddr(sock.family, peer) == f"{host}:{client.getsockname()[1]}"


def test_every_address_is_ipv4_where_there_is_no_ipv6(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork.core.listener._has_ipv6", lambda: False)
    listener = opened(":0")
    assert listener.address == f"0.0.0.0:{port_of(listener)}"
    assert listener.bind == ":0"
    clients(f"127.0.0.1:{port_of(listener)}")
    assert listener.queue() == (1, 8)


@needs_ipv6
def test_both_families_by_name_have_a_socket_each(opened: Callable[..., Listener]) -> None:
    port = port_of(opened("0.0.0.0:0"))
    (other, _) = part_families([Address.parse(f"[::]:{port}"), Address.parse(f"0.0.0.0:{port}")])
    listener = open_listener(other, backlog=8)
    assert listener.address == f"[::]:{port}"
    listener.close()


def test_a_port_in_use_is_refused_with_advice(opened: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork.core.listener.BIND_RETRY_S", 0.0)
    address = opened("127.0.0.1:0").address
    assert refused(address) == (
        f"cannot bind {address}: Address already in use; another process listens there (`ss -ltnp` shows which); "
        "stop it or choose another address"
    )


def test_no_other_program_can_join_the_port(opened: Callable[..., Listener]) -> None:
    """Whatever a stop needs of SO_REUSEPORT must not let others of the same user take connections meanwhile."""
    listener = opened("127.0.0.1:0")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", port_of(listener)))


def test_a_port_that_a_predecessor_still_holds_is_tried_again() -> None:
    """The blocker lets go between the second try and the third: seen by an audit hook, which a process keeps."""
    script = """
        import socket, sys
        from prefork.core.address import Address
        from prefork.core.listener import open_listener

        blocker = socket.create_server(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % blocker.getsockname()[1]
        tries = 0

        def watch(event, args):
            global tries
            if event == "socket.bind":
                tries += 1
                if tries == 3:
                    blocker.close()

        sys.addaudithook(watch)
        listener = open_listener(Address.parse(address), backlog=1)
        assert listener.address == address
        assert tries >= 3
    """
    subprocess.run([sys.executable, "-W", "ignore::ResourceWarning", "-c", dedent(script)], check=True, timeout=30)


def test_connections_that_were_closed_first_by_us_do_not_hold_the_port(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TIME_WAIT lasts a minute; a restart does not wait for it."""
    monkeypatch.setattr("prefork.core.listener.BIND_RETRY_S", 0.0)
    listener = opened("127.0.0.1:0")
    client = clients(listener.address)
    listener.sock.accept()[0].close()
    assert client.recv(1) == b""
    client.close()
    listener.close()
    assert opened(listener.address).address == listener.address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("203.0.113.7:0", "Cannot assign requested address; no interface of this machine has that address"),
        ("[127.0.0.1]:80", "cannot resolve '127.0.0.1' of [127.0.0.1]:80: Address family for hostname not supported"),
        ("x" * 64 + ".example:80", "cannot resolve 'xxxx"),
    ],
)
def test_what_cannot_be_bound_names_the_step_the_address_and_the_reason(text: str, reason: str) -> None:
    sentence = refused(text)
    assert reason in sentence
    assert text in sentence
    assert sentence.startswith("cannot ")


def test_a_refused_bind_leaves_no_descriptor(opened: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork.core.listener.BIND_RETRY_S", 0.0)
    address = opened("127.0.0.1:0").address
    before = set(os.listdir("/proc/self/fd"))
    refused(address)
    refused("fd://999")
    assert set(os.listdir("/proc/self/fd")) == before


def test_closing_one_copy_leaves_the_queue_to_the_others(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket]
) -> None:
    listener = opened("127.0.0.1:0")
    with listener.sock.dup() as other:  # as another process would have it
        client = clients(listener.address)
        listener.close()
        late = clients(listener.address)
        for expected in (client, late):
            with other.accept()[0] as sock:
                assert sock.getpeername() == expected.getsockname()


@given(seconds=st.floats(0, 1e9))
def test_a_time_limit_never_becomes_no_limit(seconds: float) -> None:
    whole, micros = struct.unpack("@ll", timeval(seconds))
    assert whole + micros / 1e6 == pytest.approx(seconds, abs=1.1e-6)
    assert (whole, micros) > (0, 0)
    assert 0 <= micros < 1_000_000


# --- the stop


@pytest.mark.parametrize(
    ("bind", "host"),
    [("127.0.0.1:0", "127.0.0.1"), pytest.param(":0", "127.0.0.1", marks=needs_ipv6),
     pytest.param(":0", "[::1]", marks=needs_ipv6), pytest.param("[::1]:0", "[::1]", marks=needs_ipv6),
     pytest.param("[::ffff:127.0.0.1]:0", "127.0.0.1", marks=needs_ipv6)],
    ids=["v4", "both-by-v4", "both-by-v6", "v6", "v4-in-v6"],
)  # fmt: skip
def test_at_the_stop_who_waits_is_served_and_newcomers_are_held_off(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], bind: str, host: str
) -> None:
    listener = opened(bind)
    early = [clients(f"{host}:{port_of(listener)}") for _ in range(3)]
    listener.hold_off()
    newcomer = socket.socket(early[0].family)
    newcomer.setblocking(False)
    assert newcomer.connect_ex((host.strip("[]"), port_of(listener))) == errno.EINPROGRESS
    for client in early:
        sock, _peer = listener.sock.accept()
        with sock:
            sock.sendall(b"served")
        assert client.recv(100) == b"served"
    with pytest.raises(BlockingIOError):  # no process may sleep in accept() any more
        listener.sock.accept()
    assert not listener.waiting()
    assert select.select([], [newcomer], [], 0)[1] == []
    newcomer.close()


def test_at_the_stop_a_unix_listener_keeps_its_queue_and_refuses_newcomers(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], tmp_path: Path
) -> None:
    listener = opened(f"unix:{tmp_path}/s")
    early = clients(listener.address)
    listener.hold_off()
    with pytest.raises(ConnectionRefusedError):
        clients(listener.address)
    with listener.sock.accept()[0] as sock:
        sock.sendall(b"served")
    assert early.recv(100) == b"served"


# --- one socket for each worker


@pytest.fixture
def group() -> Iterator[list[Listener]]:
    """Three listeners of one address."""
    made = open_group(Address.parse("127.0.0.1:0"), backlog=64, sockets=3)
    yield made
    for listener in made:
        listener.close()


def test_a_group_has_one_address_and_a_slot_for_each(group: list[Listener]) -> None:
    assert len({listener.address for listener in group}) == 1
    assert [listener.slot for listener in group] == [0, 1, 2]
    assert all(listener.owned for listener in group)


def test_a_group_shares_connections_by_chance(group: list[Listener], clients: Callable[[str], socket.socket]) -> None:
    for _ in range(60):
        clients(group[0].address)
    waiting = [listener.queue() for listener in group]
    assert sum(count for count, _limit in waiting if count) == 60  # type: ignore[misc]
    assert all(listener.waiting() for listener in group)  # none has none but once in 10^10 runs


def test_a_group_is_held_off_as_one(group: list[Listener], clients: Callable[[str], socket.socket]) -> None:
    early = [clients(group[0].address) for _ in range(12)]
    for listener in group:
        listener.hold_off()
    newcomer = socket.socket()
    newcomer.setblocking(False)
    assert newcomer.connect_ex(("127.0.0.1", port_of(group[0]))) == errno.EINPROGRESS
    served = 0
    for listener in group:
        while listener.waiting():
            with listener.sock.accept()[0] as sock:
                sock.sendall(b"served")
            served += 1
    assert served == 12
    assert [client.recv(10) for client in early] == [b"served"] * 12
    assert select.select([], [newcomer], [], 0)[1] == []
    newcomer.close()


def test_a_group_takes_no_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not one that would share it."""
    monkeypatch.setattr("prefork.core.listener.BIND_RETRY_S", 0.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        address = Address.parse(format_sockaddr(other.family, other.getsockname()))
        with pytest.raises(BindError, match="Address already in use"):
            open_group(address, backlog=1, sockets=2)


@pytest.mark.parametrize("text", ["unix:/tmp/never-made.sock", "fd://0"])
def test_what_is_one_socket_cannot_be_a_group(text: str) -> None:
    with pytest.raises(ConfigError, match=f"needs addresses of TCP: {text} is one socket; use --accept shared"):
        open_group(Address.parse(text), backlog=1, sockets=2)


def test_a_worker_keeps_the_listeners_of_its_slot_and_those_of_all(
    opened: Callable[..., Listener], group: list[Listener]
) -> None:
    shared = opened("127.0.0.1:0")
    assert own_share([shared, *group], 1, everything=True) == [shared, *group]
    assert own_share([shared, *group], 1, everything=False) == [shared, group[1]]
    assert [listener.sock.fileno() >= 0 for listener in group] == [False, True, False]


# --- Unix sockets


def test_a_unix_listener(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    listener = opened(f"unix:{path}")
    assert listener.address == f"unix:{path}"
    assert listener.owned
    clients(listener.address)
    assert (listener.queue(), listener.waiting(), listener.drops()) == (None, False, None)  # the kernel does not tell
    sock, peer = listener.sock.accept()
    sock.close()
    assert format_sockaddr(sock.family, peer) == "unix:"
    listener.close()
    assert path.exists()  # a worker that closes its copy leaves the path
    listener.unlink()
    assert not path.exists()
    listener.unlink()


def test_the_path_of_a_killed_server_is_taken_over(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/app.sock"
    opened(address).close()  # not unlinked, as after SIGKILL
    listener = opened(address)
    clients(address)
    listener.sock.accept()[0].close()


def test_the_path_of_a_living_server_is_left_alone(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], tmp_path: Path
) -> None:
    """Also while its queue is full."""
    address = f"unix:{tmp_path}/app.sock"
    listener = opened(address, backlog=1)
    for _ in range(4):
        assert f"cannot bind {address}: Address already in use; another process listens there" in refused(address)
    listener.sock.setblocking(False)
    for _probe in range(2):  # so many fit into a queue of 1
        listener.sock.accept()[0].close()
    clients(address)


def test_a_successor_may_take_the_path_while_the_queue_drains(
    opened: Callable[..., Listener], clients: Callable[[str], socket.socket], tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/app.sock"
    first = opened(address)
    first.hold_off()
    opened(address)
    first.unlink()
    first.close()
    clients(address)


def test_a_path_that_is_anothers_by_now_is_not_removed(opened: Callable[..., Listener], tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    first = opened(f"unix:{path}")
    first.hold_off()  # it lives, and refuses newcomers
    second = opened(f"unix:{path}")
    first.unlink()
    assert path.exists()
    path.unlink()
    path.write_text("mine")
    second.unlink()
    assert path.read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_another_file_of_that_name_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("data")
    else:
        path.mkdir()
    assert refused(f"unix:{path}") == (f"cannot bind unix:{path}: there is a file of that name that is not a socket")
    assert path.exists()


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    assert refused(f"unix:{tmp_path}/run/app.sock") == (
        f"cannot bind unix:{tmp_path}/run/app.sock: No such file or directory; "
        "its directory does not exist; create it first"
    )
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(f"unix:{tmp_path}/file/app.sock")


def test_advice_for_a_path_does_not_speak_of_ports(tmp_path: Path) -> None:
    """A folder that one may not write to: as an unprivileged user, so in a process of its own."""
    script = """
        import os, sys
        from prefork.errors import BindError
        from prefork.core.address import Address
        from prefork.core.listener import open_listener

        if os.getuid() == 0:
            os.setresuid(64321, 64321, 64321)
        try:
            open_listener(Address.parse("unix:app.sock"), backlog=1)
        except BindError as error:
            print(error)
    """
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)], cwd=folder, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.startswith("cannot bind unix:app.sock: Permission denied")
    assert "1024" not in done.stdout


@pytest.mark.parametrize("mode", [0o660, 0o777, 0o000, 0o060])
def test_the_file_of_a_unix_socket_has_the_mode_and_other_files_keep_the_mask(
    opened: Callable[..., Listener], tmp_path: Path, mode: int
) -> None:
    before = os.umask(0o027)
    try:
        listener = opened(f"unix:{tmp_path}/s,mode={mode:03o}")
        (tmp_path / "file").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert listener.address == listener.bind == f"unix:{tmp_path}/s"


@as_root
def test_the_file_of_a_unix_socket_is_given_to_its_owner(tmp_path: Path) -> None:
    listener = open_listener(Address.parse(f"unix:{tmp_path}/s,mode=620"), backlog=1, owner=(65534, 33))
    found = (tmp_path / "s").stat()
    listener.close()
    listener.unlink()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 33, 0o620)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files away")
def test_who_may_not_give_its_file_away_is_told_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BindError, match=r"cannot give unix:.* to user 0, group 0"):
        open_listener(Address.parse(f"unix:{tmp_path}/s"), backlog=1, owner=(0, 0))
    assert not list(tmp_path.iterdir())


# --- inherited descriptors


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_an_inherited_listener_is_adopted_and_left_to_its_owner(
    family: socket.AddressFamily, tmp_path: Path, clients: Callable[[str], socket.socket]
) -> None:
    where = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "app.sock")
    with socket.socket(family) as theirs:
        theirs.bind(where)
        theirs.listen(5)
        theirs.settimeout(LIMIT_S)
        address = format_sockaddr(family, theirs.getsockname())
        listener = open_listener(Address.parse(f"fd://{theirs.fileno()}"), backlog=99)
        assert listener.address == address
        assert not listener.owned
        client = clients(address)
        assert not listener.waiting()  # what waits there is not ours to drain
        if family == socket.AF_INET:
            assert listener.queue() == (1, 5)
        listener.hold_off()
        listener.close()
        listener.unlink()
        clients(address)
        with theirs.accept()[0] as sock:
            sock.sendall(b"theirs")
        assert client.recv(10) == b"theirs"


def test_descriptors_that_are_no_listeners(tmp_path: Path) -> None:
    connected, peer = socket.socketpair()
    with (
        connected,
        peer,
        socket.socket() as unbound,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        (tmp_path / "file").open("w") as file,
    ):
        datagrams.bind(("127.0.0.1", 0))
        for other in (unbound, datagrams, connected):
            where = f"fd://{other.fileno()}"
            assert refused(where) == f"cannot use {where}: it is not a listening stream socket"
        assert refused(f"fd://{file.fileno()}").startswith(f"cannot use fd://{file.fileno()}: ")
    assert refused("fd://999") == "cannot use fd://999: Bad file descriptor; no socket is open there"
