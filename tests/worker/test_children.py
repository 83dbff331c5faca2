"""Processes that an application forks: nothing of the server stays open in them, and no client of it is touched."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, read_to_end
from tests.support.owner import EACH_ENGINE, EACH_KIND, KINDS, OWNER, Kind, ask, links, question
from tests.support.processes import alive, wait_idle
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve
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


@EACH_KIND
@HOW
def test_a_process_that_is_terminated_at_once_ends(serve: Serve, kind: Kind, how: tuple[str, ...]) -> None:
    server = serve(*kind, *ONE, *how)
    assert ask(server, kind, "terminate_at_once", timeout_s=60) == "0", "it would have lived for a minute"


@pytest.mark.parametrize("kind", [KINDS[name] for name in ("stream", "wsgi", "wsgi-threads", "asgi")])
@HOW
def test_pools_end_one_after_the_other(serve: Serve, kind: Kind, how: tuple[str, ...]) -> None:
    server = serve(*kind, *ONE, *how)
    assert ask(server, kind, "pools", timeout_s=30) == "[0, 1, 4, 9]"


@pytest.mark.smoke
@EACH_ENGINE
def test_a_child_is_named_after_its_worker(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    with asked(server, kind, "fork") as (pid,):
        title = Path(f"/proc/{pid}/cmdline")
        named = "prefork: child of worker 0 gen=1"
        eventually(lambda: title.read_text().rstrip("\0 ") == named, within_s=AT_ONCE_S, what="the title")


@EACH_KIND
@HOW
def test_a_daemon_does_not_keep_the_log_open(serve: Serve, kind: Kind, how: tuple[str, ...], tmp_path: Path) -> None:
    access = ("--access-log", str(tmp_path / "access")) if kind[0].endswith(("wsgi", "asgi")) else ()
    server = serve(*kind, *ONE, *how, *access)
    worker = int(ask(server, kind, "pid"))
    log = {os.readlink(f"/proc/{worker}/fd/{fd}") for fd in (1, 2)} | set(access[1:])
    assert all(link.startswith(("pipe:", "/")) for link in log)
    with asked(server, kind, "daemon") as (pid,):
        server.wait_log("^a child says this$")
        kinds = ("pipe:", str(tmp_path))
        eventually(lambda: not links(pid, kinds=kinds) & log, within_s=AT_ONCE_S, what="the log closed in the daemon")


@EACH_KIND
def test_a_child_that_returns_into_the_server_is_ended_and_counts_nothing(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE, "--access-log", "-")
    worker = int(ask(server, kind, "pid"))
    child = int(ask(server, kind, "back"))
    server.wait_log(rf"pid={child}\] a child that the application forked has returned into the server")
    eventually(lambda: not alive(child), within_s=AT_ONCE_S, what="its end")
    assert ask(server, kind, "pid") == str(worker)
    server.stop()
    assert " accepted=3 closed=3 cut=0 given=0 received=0 completed=3 errors=0 " in server.log
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
def test_a_child_that_leaves_with_words_prints_them(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    worker = ask(server, kind, "pid")
    assert ask(server, kind, "leave bad luck") == "1"
    server.wait_log("^bad luck$")
    assert ask(server, kind, "pid") == worker
    assert "returned into the server" not in server.log


@EACH_KIND
def test_a_child_that_fails_is_shown_in_the_log(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE, "--access-log", "-", expect_traceback=True)
    worker = ask(server, kind, "pid")
    assert ask(server, kind, "fail bad luck") == "1"
    server.wait_log(r"ERROR \[child_of=worker 0 pid=\d+\] a child that the application forked has failed")
    server.wait_log(r"^    Traceback \(most recent call last\):\n(?:     .*\n)+    ValueError: bad luck$")
    assert ask(server, kind, "pid") == worker
    server.stop()
    assert " accepted=3 closed=3 cut=0 given=0 received=0 completed=3 errors=0 " in server.log


@EACH_KIND
def test_a_crash_of_a_child_is_reported_if_the_application_wants_that(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE, expect_traceback=True)
    worker = ask(server, kind, "pid")
    assert ask(server, kind, "crash") == str(-signal.SIGABRT)
    server.wait_log("Fatal Python error: Aborted")
    assert ask(server, kind, "pid") == worker


# Not with uvloop: in a process that is forked it closes the numbers of its pipe, whatever the child has there.
@pytest.mark.parametrize("kind", [KINDS[name] for name in ("stream", "wsgi", "wsgi-threads", "asgi-asyncio")])
@HOW
def test_a_grandchild_keeps_what_it_has_at_the_numbers_of_ours(serve: Serve, kind: Kind, how: tuple[str, ...]) -> None:
    server = serve(*kind, *ONE, *how)
    assert ask(server, kind, "grandchild") == "0"


@EACH_KIND
def test_a_fork_leaves_sockets_without_a_timeout_as_they_are(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    assert ask(server, kind, "timeout 0.2") == "ok"
    assert ask(server, kind, "blocks") == "True"


REQUEST: Kind = (f"{OWNER}:Request", "--threads", "4")


@pytest.mark.parametrize("kind", [KINDS["stream"], REQUEST], ids=["stream", "socketserver"])
def test_a_timeout_of_sockets_by_default_is_none_of_the_clients(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE)
    assert ask(server, kind, "timeout 0.2") == "ok"
    with dial(server.address, timeout_s=0.5) as client:
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(AT_ONCE_S)
        assert ask(server, kind, "blocks") == "True"
        client.sendall(question(kind, "slow 0.1"))
        assert read_to_end(client) == b"ok"


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


def what_ends(client: socket.socket) -> bytes:
    """What a connection still brings until it ends in whatever way."""
    try:
        return read_to_end(client)
    except ConnectionResetError:
        return b""


THREADED = (KINDS["stream"], KINDS["wsgi-threads"])


@EACH_KIND
def test_a_cut_connection_ends_although_c_code_has_a_copy(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE, "--graceful-timeout", "1s")
    beginning = b"" if "Talk" in kind[0] else question(kind, "slow 60")[:-3]  # a protocol acts on any bytes
    with dial(server.address, timeout_s=AT_ONCE_S) as sends, dial(server.address, timeout_s=AT_ONCE_S) as waits:
        sends.sendall(beginning)
        if kind in THREADED:
            waits.sendall(question(kind, "slow 60"))
        with asked(server, kind, "cfork"):
            server.signal(signal.SIGTERM)
            assert what_ends(sends) == what_ends(waits) == b""
            server.wait_exit()
    server.wait_log("connections cut count=")


ABRUPT = """
import ctypes

def fork():
    libc = ctypes.PyDLL(None)
    if not (pid := libc.fork()):
        libc.sleep(60)
        libc._exit(0)
    return b"%d\\n" % pid

def wsgi(environ, start_response):
    start_response("200 OK", [])
    yield fork()
    raise ValueError("in the middle")

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": fork(), "more_body": True})
    raise ValueError("in the middle")
"""


@pytest.mark.parametrize("options", [("wsgi",), ("wsgi", "--threads", "2"), ("asgi",), ("asgi", "--loop", "asyncio")])
@pytest.mark.parametrize("tls", [(), TLS], ids=["plain", "tls"])
def test_a_response_that_breaks_off_is_reset_although_c_code_has_a_copy(
    serve: Serve, app: AppWriter, options: tuple[str, ...], tls: tuple[str, ...]
) -> None:
    name, *threads = options
    server = serve(app(ABRUPT, attribute=name), *threads, *ONE, *tls, expect_traceback=True)
    with dial(server.address, timeout_s=AT_ONCE_S) as sock:
        client = sock
        if tls:
            client = trusting().wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head or not head.endswith(b"\n"):
            head += client.recv(65536)
        pid = int(head.rpartition(b"\r\n\r\n")[2])
        try:
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                read_to_end(client)
        finally:
            os.kill(pid, signal.SIGKILL)
            client.close()
    eventually(lambda: not alive(pid), within_s=AT_ONCE_S, what="the child gone")


@pytest.mark.parametrize("kind", [KINDS[name] for name in ("wsgi", "coroutine-asyncio", "asgi")])
def test_handlers_that_raise_while_the_application_forks_leave_no_signal_blocked(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *ONE, expect_traceback=True)
    assert ask(server, kind, "alarms", timeout_s=20) == "[]"
    assert ask(server, kind, "terminate fork") == "False -15"
