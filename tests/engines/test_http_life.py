"""Stop, reload, upgrade and death of HTTP workers, as clients see them: who keeps the rules loses nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.support.client import dial, read_to_end
from tests.support.load import ClientGroup, Load
from tests.support.processes import alive, children, open_fds
from tests.support.server import RunningServer
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.ways import BOTH, EACH_ENGINE, EACH_WAY, ONE, Way, units
from tests.support.web import ASGI, WEB, Browser, fetch, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate

    Connect = Callable[[RunningServer, int], list[Browser]]

pytestmark = pytest.mark.slow

TWO = ("--workers", "2", "--keep-alive", "2")
FAITHFUL, FRESH = ClientGroup(clients=4, posts=1000, pause_s=0.005), ClientGroup(clients=2, posts=1)
SOON_S = 20.0


def reload(server: RunningServer) -> None:
    """Have all workers replaced."""
    before, mark = server.worker_pids(), len(server.log)
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded", after=mark, within_s=20)
    assert len(server.worker_pids() - before) >= 2  # and with --preload a template


def tell_all(browsers: list[Browser], data: bytes) -> None:
    """Send the same from all."""
    for browser in browsers:
        browser.send(data)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connect so many browsers, which leave with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda server, count: [stack.enter_context(Browser(server)) for _ in range(count)]


# --- reload


@pytest.mark.parametrize(
    "how",
    [(WEB, "--threads", "3"), (WEB,), (WEB, "--preload"), (ASGI,)],
    ids=["wsgi-threads", "wsgi", "wsgi-preload", "asgi"],
)
def test_reloads_under_posting_keep_alive_clients_lose_nothing(serve: Serve, how: Way) -> None:
    server = serve(*how, *TWO)
    with Load(server.address, FAITHFUL, FRESH) as load:
        for _ in range(2):
            load.wait_more(30)
            reload(server)
        load.wait_more(100)
    assert not load.failed, load.failures


def test_fifty_reloads_under_posting_keep_alive_clients_lose_nothing(serve: Serve) -> None:
    server = serve(WEB, *TWO, "--threads", "2")
    with Load(server.address, FAITHFUL, FRESH, ClientGroup(clients=2, posts=1000, pause_s=0.7)) as load:
        for _ in range(50):
            load.wait_more(50)
            reload(server)
        load.wait_more(100)
    print(f"50 reloads: {dict(load.counts)}")
    assert not load.failed, load.failures


@BOTH
def test_a_reload_under_tls_loses_nothing(serve: Serve, way: Way) -> None:
    server = serve(*way, *TWO, *TLS)
    for turn in range(1, 4):
        with Browser(server, tls=trusting()) as browser:
            assert browser.get().body == HELLO
            server.signal(signal.SIGHUP)
            server.wait_log("reloading", count=turn)
            while not (answer := browser.get()).closes:
                assert answer.body == HELLO
            assert answer.body == HELLO
            assert browser.ended()
        server.wait_log("reloaded", count=turn, within_s=20)


BY_WSGI = "def handle(environ, start_response):\n    start_response('200 OK', [])\n    return [b'%s']\n"
BY_ASGI = (
    "async def handle(scope, receive, send):\n"
    "    assert scope['type'] == 'http'\n"
    "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
    "    await send({'type': 'http.response.body', 'body': b'%s'})\n"
)


@pytest.mark.parametrize("source", [BY_WSGI, BY_ASGI], ids=["wsgi", "asgi"])
def test_a_broken_application_changes_nothing(serve: Serve, app: AppWriter, source: str) -> None:
    server = serve(app(source % "good"), *TWO, expect_traceback=True)
    workers = server.worker_pids()
    app("import nothing_of_that_name")
    with Browser(server) as browser:
        assert browser.get().body == b"good"
        server.signal(signal.SIGHUP)
        server.wait_log("reload abandoned")
        answer = browser.get()
        assert (answer.body, answer.closes) == (b"good", False)
    assert server.worker_pids() == workers
    app(source % "new")
    reload(server)
    assert fetch(server).body == b"new"


# --- scale


@BOTH
def test_a_worker_less_loses_nothing(serve: Serve, way: Way) -> None:
    server = serve(*way, "--workers", "3", "--keep-alive", "2")
    with Load(server.address, FAITHFUL, FRESH) as load:
        for count, signum in ((2, signal.SIGTTOU), (1, signal.SIGTTOU), (2, signal.SIGTTIN), (1, signal.SIGTTOU)):
            load.wait_more(50)
            server.signal(signum)
            server.wait_workers(count)
        load.wait_more(50)
    assert not load.failed, load.failures


# --- stop


@EACH_WAY
def test_a_stop_answers_whom_it_has_let_in(serve: Serve, gate: Gate, connect: Connect, way: Way) -> None:
    """In the midst of a body, in the application, and behind it in the worker and in the kernel's queue."""
    server = serve(*way, *ONE, "--keep-alive", "300ms", env=gate.env)
    (sends,) = connect(server, 1)
    sends.send(request("/echo", method="POST", content_length="6") + b"abc")
    fetch(server)
    inside = connect(server, units(way))
    tell_all(inside, request("/hold"))
    gate.wait_entered(len(inside))
    queued = connect(server, 100)
    tell_all(queued, request())
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    sends.send(b"def")
    gate.open()
    assert sends.response().body == b"abcdef"
    for browser in queued + inside:
        answer = browser.response()
        assert answer.body == HELLO
        assert answer.closes or browser in inside or ASGI in way, "a loop of asyncio may hear of the stop a turn later"
        assert browser.ended()
    assert server.wait_exit() == 0


@EACH_ENGINE
def test_a_stop_with_five_hundred_queued_requests_answers_them_all(
    serve: Serve, gate: Gate, connect: Connect, way: Way
) -> None:
    server = serve(*way, "--workers", "2", env=gate.env)
    inside = []
    for _ in range(2 * units(way)):  # one after the other, so that none waits behind another
        inside += connect(server, 1)
        inside[-1].send(request("/hold"))
        gate.wait_entered(1)
    queued = connect(server, 500)
    tell_all(queued, request("/echo", method="POST", body=b"queued"))
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert all(browser.response().body == b"queued" and browser.ended() for browser in queued)
    assert all(browser.response().body == HELLO for browser in inside)
    assert server.wait_exit() == 0


@EACH_ENGINE
def test_a_stop_answers_those_who_are_still_in_their_handshake(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *TLS)
    context, found = trusting(), list[bytes]()

    def shake(plain: socket.socket) -> None:
        with plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(request(connection="close"))
            found.append(read_to_end(sock)[-len(HELLO) :])

    with Browser(server, tls=context) as blocks:
        blocks.send(request("/block?0.5"))
        threads = [threading.Thread(target=shake, args=(dial(server.address),)) for _ in range(10)]
        server.signal(signal.SIGTERM)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(15)
        assert blocks.response().body == HELLO
    assert found == [HELLO] * 10
    assert server.wait_exit() == 0


@EACH_WAY
def test_a_stop_waits_for_bodies_and_readers_that_are_on_their_way(serve: Serve, connect: Connect, way: Way) -> None:
    server = serve(*way, *ONE, "--keep-alive", "500ms")
    sends, reads, pipelines, other = connect(server, 4)
    sends.send(request("/echo", method="POST", content_length="6") + b"abc")
    reads.send(request("/big?300"))
    pipelines.send(request("/stream?200") + request())
    for browser in (reads, pipelines):
        eventually(lambda browser=browser: browser.sock.recv(1, socket.MSG_PEEK), within_s=15)
    server.signal(signal.SIGTERM)
    while not other.get().closes:
        pass  # the worker does not know yet
    sends.send(b"def")
    answer = sends.response()
    assert (answer.body, answer.closes) == (b"abcdef", True)
    assert reads.response().body == BLOCK * 300
    assert pipelines.response().body == BLOCK * 200
    assert server.wait_exit() == 0


@EACH_ENGINE
def test_a_stop_under_load_loses_nobody(serve: Serve, way: Way) -> None:
    server = serve(*way, *TWO)
    with Load(
        server.address,
        ClientGroup(clients=6, posts=1, leaves=True),
        ClientGroup(clients=6, posts=50, leaves=True),
    ) as load:
        load.wait_more(200)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        load.wait_left()
    assert set(load.failed) <= {"refused"}, load.failed


@EACH_WAY
def test_what_takes_longer_than_the_graceful_timeout_is_cut_and_logged(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--graceful-timeout", "700ms", env=gate.env)
    with Browser(server) as browser:
        browser.send(request("/gate"))
        gate.wait_entered(1)
        began_s = time.monotonic()
        server.signal(signal.SIGTERM)
        with pytest.raises((EOFError, ConnectionResetError)):
            browser.response()
        assert 0.6 < time.monotonic() - began_s < 15
    assert server.wait_exit() == 0
    # With WSGI and one thread the loop itself is in the application, and only the master can end it.
    assert ("killing worker" if way == (WEB,) else "connections cut count=1") in server.log


@EACH_WAY
def test_a_stop_at_once(serve: Serve, way: Way) -> None:
    server = serve(*way, *TWO)
    with Browser(server) as browser:
        browser.get()
        began_s = time.monotonic()
        assert server.stop(signal.SIGQUIT) == 0
        assert time.monotonic() - began_s < 15


# --- death


@EACH_ENGINE
def test_the_death_of_a_worker_costs_what_it_had_and_nothing_else(serve: Serve, way: Way) -> None:
    server = serve(*way, "--workers", "2")
    with Load(server.address, FAITHFUL, FRESH) as load:
        for _ in range(3):
            load.wait_more(50)
            before = server.worker_pids()
            os.kill(min(before), signal.SIGKILL)
            eventually(lambda before=before: len(server.worker_pids() - before) == 1, within_s=SOON_S)
        load.wait_more(50)
    assert sum(load.failed.values()) <= 3 * 6, load.failed
    assert set(load.failed) <= {"reset", "eof"}


@EACH_ENGINE
@pytest.mark.parametrize(("deed", "function"), [("/spin", "spin_forever"), ("/block?60", "block")])
def test_a_stuck_request_is_killed_and_the_log_says_where_it_was(
    serve: Serve, way: Way, deed: str, function: str
) -> None:
    server = serve(*way, *ONE, "--timeout", "1")
    before = server.worker_pids()
    with Browser(server) as idle, Browser(server) as stuck:
        idle.get()
        host, port = stuck.sock.getsockname()
        began_s = time.monotonic()
        stuck.send(request(deed))
        with pytest.raises((EOFError, ConnectionResetError)):
            stuck.response()
        assert 0.9 < time.monotonic() - began_s < 15
    server.wait_log(rf"{host}:{port}\b")
    server.wait_log(r"worker=0 gen=1 pid=\d+.*SIGKILL")
    server.wait_log(rf"routes\.py.*\b{function}\b")
    server.wait_workers(1, without=before)
    assert fetch(server).body == HELLO


@EACH_ENGINE
def test_a_blocked_loop_is_seen_and_its_other_runs_go_on(serve: Serve, way: Way) -> None:
    """With WSGI and threads it is one of these that is blocked."""
    server = serve(*way, "--workers", "2", "--timeout", "1")
    before = server.worker_pids()
    with Load(server.address, ClientGroup(clients=2, posts=1)) as load, Browser(server) as stuck:
        load.wait_more(20)
        stuck.send(request("/block?60"))
        with pytest.raises((EOFError, ConnectionResetError)):
            stuck.response()
        server.wait_log("worker hung ")
        eventually(lambda: len(server.worker_pids() - before) == 1, within_s=30)
        load.wait_more(20)
    assert sum(load.failed.values()) <= 2, "at most those that the stuck worker had taken"


@EACH_ENGINE
def test_waiting_clients_are_no_stuck_requests(serve: Serve, way: Way) -> None:
    """Heads, bodies and readers have limits of their own; --timeout is for the application."""
    server = serve(*way, *ONE, "--timeout", "500ms")
    before = server.worker_pids()
    with Browser(server) as head, Browser(server) as body, Browser(server) as reader, Browser(server) as idle:
        head.send(b"GET / HT")
        body.send(request("/echo", method="POST", content_length="4") + b"12")
        reader.send(request("/stream?300"))
        idle.get()
        began_s = time.monotonic()
        while time.monotonic() < began_s + 1.5:
            fetch(server)
        head.send(request()[8:])
        body.send(b"34")
        assert head.response().body == HELLO
        assert body.response().body == b"1234"
        assert reader.response().body == BLOCK * 300
    assert server.worker_pids() == before


# --- upgrade


@pytest.fixture
def line(serve: Serve) -> Iterator[Callable[..., tuple[RunningServer, list[int]]]]:
    """A server whose last master is ended with the test."""
    masters: list[int] = []

    def start(*args: str) -> tuple[RunningServer, list[int]]:
        server = serve(*args)
        masters.append(server.pid)
        return server, masters

    yield start
    for pid in masters:
        if alive(pid):
            os.kill(pid, signal.SIGTERM)
            eventually(lambda pid=pid: not alive(pid), within_s=20)


@BOTH
def test_upgrades_under_load_lose_nothing(line: Callable[..., tuple[RunningServer, list[int]]], way: Way) -> None:
    server, masters = line(*way, *TWO)
    with Load(server.address, FAITHFUL, FRESH) as load:
        for _ in range(2):
            load.wait_more(100)
            old, mark = masters[-1], len(server.log)
            os.kill(old, signal.SIGUSR2)
            server.wait_log(rf"took over predecessor={old}\b", after=mark, within_s=20)
            masters.append(int(server.wait_log(r"upgrading successor=(\d+)", after=mark)[1]))
            eventually(lambda old=old: not server.running if old == server.pid else not alive(old), within_s=20)
        load.wait_more(100)
    assert not load.failed, load.failures
    assert len(children(masters[-1])) == 2


# --- without descriptors


@EACH_WAY
def test_a_worker_without_descriptors_serves_those_it_has_and_later_the_others(serve: Serve, way: Way) -> None:
    """It says so, keeps no processor busy, and goes on when there are descriptors again."""
    server = serve(*way, *ONE)
    (worker,) = server.worker_pids()
    with Browser(server) as browser:
        browser.get()
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (max(open_fds(worker)) + 1, hard))
        try:
            browser.get("/exhaust?0")  # there may be free ones among the lower
            with dial(server.address) as waits:
                waits.sendall(request(connection="close"))
                server.wait_log("accept paused .*Too many open files")
                for _ in range(50):
                    assert browser.get().body == HELLO
                resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
                assert read_to_end(waits).endswith(HELLO)
        finally:
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        assert browser.get().body == HELLO
    assert server.worker_pids() == {worker}


# --- generation


@BOTH
def test_the_workers_generation_is_told_by_its_environment(serve: Serve, way: Way) -> None:
    server = serve(*way, "--workers", "2")
    assert {fetch(server, "/generation").body for _ in range(4)} == {b"1"}
    reload(server)
    assert {fetch(server, "/generation").body for _ in range(4)} == {b"2"}
