"""From the command to `ready`: addresses, log lines, processes."""

from __future__ import annotations

import re
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, talkback_reply
from tests.support.processes import stat as process_stat
from tests.support.processes import thread_count
from tests.support.server import APPS, LISTENING, READY, run

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hello")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.smoke
def test_the_default_app_is_talkback(serve: Serve) -> None:
    assert exchange(serve().address) == HI


@pytest.mark.smoke
def test_one_listening_line_with_the_real_port_comes_before_one_ready_line(serve: Serve) -> None:
    server = serve("--workers", "3")
    log = server.log
    (listening,) = re.finditer(LISTENING, log)
    (ready,) = re.finditer(READY, log)
    assert listening.start() < ready.start()
    host, port = listening[1].rsplit(":", 1)
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert ready[1] == "3"
    assert 0 < float(ready[2]) < 20


@pytest.mark.smoke
def test_the_direct_children_of_the_started_process_are_exactly_the_workers(serve: Serve) -> None:
    server = serve(str(APPS / "identity.py") + ":pid", "--workers", "4")
    pids = server.worker_pids()
    assert len(pids) == 4
    seen = set[int]()
    for _ in range(2_000):  # a worker may be late to its first accept
        seen.add(int(exchange(server.address)))
        if seen == pids:
            break
    assert seen == pids
    assert {found.session for pid in pids if (found := process_stat(pid))} == {server.pid}


def test_the_master_stays_single_threaded(serve: Serve) -> None:
    server = serve("--workers", "2")
    exchange(server.address)
    assert thread_count(server.pid) == 1


def test_a_client_that_connects_before_any_worker_is_ready_is_served(serve: Serve) -> None:
    server = serve("--workers", "2", ready=False)
    assert exchange(server.address) == HI


@pytest.mark.smoke
def test_titles_name_the_role_and_the_app(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2")
    exchange(server.address)
    assert command_line(server.pid).startswith("prefork: master talkback")
    titles = sorted(command_line(pid) for pid in server.worker_pids())
    assert [re.sub(r" *$", "", title) for title in titles] == [
        "prefork: worker 0 gen=1 serving",
        "prefork: worker 1 gen=1 serving",
    ]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def test_workers_know_their_slot_and_generation(serve: Serve) -> None:
    server = serve(str(APPS / "identity.py") + ":slot", "--workers", "3")
    seen: set[tuple[bytes, ...]] = set()
    for _ in range(2_000):
        seen.add(tuple(exchange(server.address).split()[:2]))
        if len(seen) == 3:
            break
    assert seen == {(b"0", b"1"), (b"1", b"1"), (b"2", b"1")}


def test_every_bind_gets_its_line_and_is_served(serve: Serve) -> None:
    server = serve("--workers", "2", bind=["127.0.0.1:0", "127.0.0.1:0"])
    assert len(set(server.addresses)) == 2
    for address in server.addresses * 10:
        assert exchange(address) == HI


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
def test_ipv6_addresses_are_written_in_brackets(serve: Serve) -> None:
    server = serve("--workers", "1", bind="[::1]:0")
    assert re.fullmatch(r"\[::1\]:\d+", server.address)
    assert exchange(server.address) == HI


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
class TestBothFamilies:
    """`:8000` and `[::]:8000`."""

    @pytest.mark.parametrize("accept", ["shared", "per-worker"])
    @pytest.mark.parametrize(
        ("app", "said"), [("connection.py:facts", "{}:"), ("classic.py:Shout", "HI {}\n"), ("coroutines.py:talk", "")]
    )
    def test_clients_of_both_are_served(self, serve: Serve, app: str, said: str, accept: str) -> None:
        server = serve(str(APPS / app), "--workers", "2", "--accept", accept, bind=":0")
        port = server.address.rpartition(":")[2]
        for near in ("127.0.0.1", "[::1]") * 4:
            reply = exchange(f"{near}:{port}", b"hi\n").decode()
            assert reply.partition("|")[0].startswith(said.format(near.strip("[]") if "HI" in said else near))

    def test_the_status_has_the_ipv4_address_of_a_client(self, serve: Serve, tmp_path: Path, gate: Gate) -> None:
        control = str(tmp_path / "control")
        app = str(APPS / "gated.py") + ":at_once"
        server = serve(app, "--workers", "1", "--control", control, bind="[::]:0", env=gate.env)
        with dial(f"127.0.0.1:{server.address.rpartition(':')[2]}") as client:
            gate.wait_entered(1)
            assert f"127.0.0.1:{client.getsockname()[1]}" in run("status", "--control", control).stdout
            gate.open()

    def test_each_by_its_name_has_a_socket_of_its_own(self, serve: Serve) -> None:
        with socket.create_server(("0.0.0.0", 0)) as free:
            port = free.getsockname()[1]
        server = serve("--workers", "2", bind=[f"[::]:{port}", f"0.0.0.0:{port}"])
        assert server.addresses == [f"[::]:{port}", f"0.0.0.0:{port}"]
        for host in ("127.0.0.1", "[::1]"):
            assert exchange(f"{host}:{port}") == HI


def test_a_port_alone_is_loopback(serve: Serve) -> None:
    assert serve("--workers", "1", bind="0").address.startswith("127.0.0.1:")


def test_localhost_is_a_host_name(serve: Serve) -> None:
    assert exchange(serve("--workers", "1", bind="localhost:0").address) == HI


@pytest.mark.smoke
def test_a_unix_socket_is_served_and_removed_at_the_end(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    server = serve("--workers", "2", bind=f"unix:{path}")
    assert server.address == f"unix:{path}"
    assert stat.S_ISSOCK(path.stat().st_mode)
    for _ in range(10):
        assert exchange(server.address) == HI
    assert server.stop() == 0
    assert not path.exists()


def test_a_unix_socket_left_by_a_killed_server_is_replaced(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert exchange(serve("--workers", "1", bind=f"unix:{path}").address) == HI


def test_a_descriptor_that_was_handed_over_is_served(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        server = serve("--workers", "2", bind=f"fd://{listener.fileno()}", pass_fds=[listener.fileno()])
        assert server.address == f"127.0.0.1:{port}"
        assert exchange(server.address) == HI


def test_an_inherited_listener_is_left_working_for_its_other_owner(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        server = serve("--workers", "2", bind=f"fd://{listener.fileno()}", pass_fds=[listener.fileno()])
        assert exchange(server.address) == HI
        assert server.stop() == 0
        with dial(f"127.0.0.1:{listener.getsockname()[1]}") as client:
            listener.settimeout(10)
            accepted, peer = listener.accept()
            with accepted:
                assert peer == client.getsockname()


def test_a_module_in_the_current_folder_is_found(serve: Serve) -> None:
    server = serve("identity:pid", "--workers", "1", cwd=APPS)
    assert int(exchange(server.address)) in server.worker_pids()


def test_a_source_file_is_found_from_the_current_folder(serve: Serve) -> None:
    server = serve("apps/identity.py:pid", "--workers", "1", cwd=APPS.parent)
    assert int(exchange(server.address)) in server.worker_pids()


def test_environment_variables_stand_in_for_options_and_lose_against_them(serve: Serve) -> None:
    from_environment = serve(env={"PREFORK_WORKERS": "2"})
    assert len(from_environment.worker_pids()) == 2
    from_flag = serve("--workers", "1", env={"PREFORK_WORKERS": "2"})
    assert len(from_flag.worker_pids()) == 1
