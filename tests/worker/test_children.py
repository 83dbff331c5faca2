"""Processes that an application forks: nothing of the server stays open in them, and no client of it is touched."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, read_to_end
from tests.support.owner import EACH_ENGINE, EACH_KIND, KINDS, Kind, ask, links, question
from tests.support.processes import alive, wait_idle
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

ONE = ("--workers", "1")
AT_ONCE_S = 5.0  # the children sleep for a minute
HOW = pytest.mark.parametrize("how", [(), ("--preload",)], ids=["each-imports", "preload"])
FORKS = ["fork", "cfork", "process fork", "process forkserver", "process spawn", "program", "compute"]


@contextmanager
def asked(server: RunningServer, kind: Kind, deed: str) -> Iterator[list[int]]:
    """The pids of the processes that a deed has started; they are killed in the end."""
    pids = [int(word) for word in ask(server, kind, deed, timeout_s=AT_ONCE_S).split()]
    try:
        yield pids
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, pids)), within_s=AT_ONCE_S, what="the children gone")


def holds_none(pid: int, ours: set[str]) -> bool:
    """Whether a process has none of these open."""
    return not links(pid) & ours


def bindable(address: str) -> bool:
    """Whether another server could listen there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, int(port)))
            sock.listen()
        except OSError:
            return False
    return True


@EACH_KIND
@HOW
def test_a_child_cuts_nobody_and_holds_nothing_of_the_server(serve: Serve, kind: Kind, how: tuple[str, ...]) -> None:
    server = serve(*kind, *ONE, *how)
    worker = int(ask(server, kind, "pid"))
    ours = links(worker) | links(server.pid)
    for deed in FORKS:
        with dial(server.address) as neighbour, asked(server, kind, deed) as pids:  # its end came at once
            ours |= {link for link in links(worker) if link.startswith("socket:")}  # the connections
            for pid in pids if deed != "cfork" else ():
                eventually(partial(holds_none, pid, ours), within_s=AT_ONCE_S, what=f"nothing of ours in {deed}")
            clients = [dial(server.address) for _ in range(3)]
            for client in clients:
                client.sendall(question(kind, "slow 0.1"))
            assert [read_to_end(client)[-2:] for client in clients] == [b"ok"] * 3, deed
            neighbour.sendall(question(kind, "slow 0.1"))
            assert read_to_end(neighbour)[-2:] == b"ok", deed
            for client in clients:
                client.close()
            wait_idle(worker)
    assert ask(server, kind, "pid") == str(worker)
    assert ask(server, kind, "terminate fork") == "False -15"


@pytest.mark.smoke
@EACH_ENGINE
def test_a_child_is_named_after_its_worker(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    with asked(server, kind, "fork") as (pid,):
        title = Path(f"/proc/{pid}/cmdline")
        named = "prefork: child of worker 0 gen=1"
        eventually(lambda: title.read_text().rstrip("\0 ") == named, within_s=AT_ONCE_S, what="the title")


@EACH_KIND
def test_a_child_that_returns_into_the_server_is_ended_and_counts_nothing(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE, "--access-log", "-")
    worker = int(ask(server, kind, "pid"))
    child = int(ask(server, kind, "back"))
    server.wait_log(rf"pid={child}\] a child that the application forked has returned into the server")
    eventually(lambda: not alive(child), within_s=AT_ONCE_S, what="its end")
    assert ask(server, kind, "pid") == str(worker)
    server.stop()
    assert " accepted=3 completed=3 errors=0 " in server.log
    if kind[0].endswith(("wsgi", "asgi")):
        assert server.log.count("GET /") == 3  # lines of the access log


@EACH_KIND
def test_a_child_that_leaves_by_an_exception_leaves_as_it_wants_to(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    worker = ask(server, kind, "pid")
    assert ask(server, kind, "leave 7") == "7"
    assert ask(server, kind, "pid") == worker
    assert "returned into the server" not in server.log


@EACH_KIND
@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_a_child_may_run_an_event_loop_of_its_own(serve: Serve, kind: Kind, library: str) -> None:
    server = serve(*kind, *ONE)
    worker = ask(server, kind, "pid")
    assert ask(server, kind, f"loop {library}", timeout_s=30) == "False 0", server.log
    assert ask(server, kind, "pid") == worker


@EACH_ENGINE
@HOW
@pytest.mark.parametrize("end", ["stop", "kill-worker", "kill-master", "reload"])
@pytest.mark.parametrize("deed", ["fork", "compute"])
def test_the_port_is_free_whatever_has_ended(
    serve: Serve, kind: Kind, how: tuple[str, ...], end: str, deed: str
) -> None:
    killed = -signal.SIGKILL if end == "kill-master" else 0
    server = serve(*kind, *ONE, *how, expected_exit=killed)
    worker = int(ask(server, kind, "pid"))
    address = server.address
    with asked(server, kind, deed) as pids:
        if end == "kill-worker":
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: not alive(worker), within_s=AT_ONCE_S, what="its end")
        elif end == "reload":
            server.signal(signal.SIGHUP)
            server.wait_log("reloaded generation=2")
            if deed == "compute":
                eventually(
                    lambda: not any(map(alive, pids)), within_s=AT_ONCE_S, what="the pool of the old worker gone"
                )
        if end == "kill-master":
            server.signal(signal.SIGKILL)
            server.wait_exit()
        else:
            assert server.stop() == 0
        eventually(lambda: bindable(address), within_s=AT_ONCE_S, what="the address free")
        if end == "stop" and deed == "compute":
            assert not any(map(alive, pids)), "its pool outlived the worker"


@pytest.mark.parametrize("kind", [KINDS[name] for name in ("stream", "wsgi", "wsgi-threads", "coroutine", "asgi")])
def test_the_port_is_free_after_a_stop_although_c_code_has_forked(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    with asked(server, kind, "cfork"):
        assert server.stop() == 0
        assert bindable(server.address)


@EACH_ENGINE
def test_daemonic_processes_end_with_their_worker(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    with asked(server, kind, "process fork") as (pid,):
        server.signal(signal.SIGHUP)
        server.wait_log("reloaded generation=2")
        eventually(lambda: not alive(pid), within_s=AT_ONCE_S, what="the process ended by Python")


@pytest.mark.parametrize("kind", [KINDS[name] for name in ("wsgi", "wsgi-threads", "asgi", "asgi-asyncio")])
@pytest.mark.parametrize("deed", ["fork", "cfork"])
def test_under_tls_an_ended_connection_ends_at_once_as_well(serve: Serve, kind: Kind, deed: str) -> None:
    server = serve(*kind, *ONE, *TLS)
    dialled = dial(server.address, timeout_s=AT_ONCE_S)
    with dialled as sock, trusting().wrap_socket(sock, server_hostname="localhost") as tls:
        tls.sendall(question(kind, deed))
        pid = int(read_to_end(tls).rpartition(b"\r\n\r\n")[2])
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), within_s=AT_ONCE_S, what="the child gone")
