"""HTTP clients that leave, that do not read, and that want everything: who waits for them, and who does not."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.support.client import abort, dial, read_exactly, read_to_end
from tests.support.processes import rss_kib, wait_idle
from tests.support.wait import eventually
from tests.support.ways import LEAVING, ONE, WAYS, Leave
from tests.support.web import Browser, fetch, request, silent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


@pytest.fixture(params=WAYS)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker, in each way to serve."""
    return shared(*request.param, *ONE)


# --- who leaves


def test_a_client_that_ends_its_side_first_gets_the_whole_answer(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request("/stream?100") + request())
        browser.sock.shutdown(socket.SHUT_WR)
        assert browser.response().body == BLOCK * 100
        assert browser.response().body == HELLO
        assert browser.ended()


def test_a_client_that_ends_in_the_midst_of_a_request_is_refused(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request("/length", method="POST", content_length="10") + b"12345")
        browser.sock.shutdown(socket.SHUT_WR)
        assert browser.response().status == 400
        assert browser.ended()


def test_clients_that_leave_after_they_asked_to_continue_harm_nobody(server: RunningServer) -> None:
    for _ in range(50):
        browser = Browser(server)
        browser.send(request("/echo", method="POST", expect="100-continue", content_length="2"))
        abort(browser.sock)
    assert fetch(server).body == HELLO


@LEAVING
def test_a_client_that_leaves_a_stream_has_it_closed_once(server: RunningServer, tmp_path: Path, leave: Leave) -> None:
    mark = tmp_path / "closed"
    browser = Browser(server)
    browser.send(request(f"/endless?{mark}"))
    read_exactly(browser.sock, 1 << 20)
    leave(browser.sock)
    eventually(mark.exists, within_s=30)
    with Browser(server) as other:
        for _ in range(20):
            other.get()
    assert mark.read_text() == "closed\n"


def test_a_client_that_leaves_its_body_unfinished(server: RunningServer) -> None:
    for leave in (abort, socket.socket.close):
        for path in ("/echo", "/echo-at-once", "/listen-late"):
            for _ in range(5):
                browser = Browser(server)
                browser.send(request(path, method="POST", content_length="100000") + b"12345")
                leave(browser.sock)
    assert fetch(server).body == HELLO


def test_clients_that_leave_at_any_moment_harm_nobody(server: RunningServer) -> None:
    raws = (b"", b"GET", request(), request("/stream?50"), request("/big?100") * 3, request("/work?0.01") * 2)
    for raw in raws:
        for leave in (abort, socket.socket.close):
            for _ in range(30):
                sock = dial(server.address)
                sock.sendall(raw)
                leave(sock)
    with Browser(server) as browser:
        assert all(browser.get().body == HELLO for _ in range(50))


# --- who does not read


def test_a_large_response_waits_for_a_slow_reader_and_nobody_waits_for_him(server: RunningServer) -> None:
    for path in ("/big?200", "/stream?200"):
        with Browser(server) as slow:
            slow.send(request(path))
            eventually(lambda slow=slow: not silent(slow), within_s=15)
            assert fetch(server).body == HELLO
            assert slow.response().body == BLOCK * 200


def test_a_reader_that_does_not_read_makes_the_application_wait(server: RunningServer, tmp_path: Path) -> None:
    (worker,) = server.worker_pids()
    mark = tmp_path / "count"
    with Browser(server) as slow:
        before = rss_kib(worker)
        slow.send(request(f"/count?1000%20{mark}"))
        eventually(lambda: mark.exists() and mark.read_text(), within_s=15)
        wait_idle(worker)
        taken = int(mark.read_text())
        assert taken < 500, f"of 1000 blocks, and the kernel holds some of these: {taken}"
        assert rss_kib(worker) - before < 8 << 10
        assert fetch(server).body == HELLO
        assert len(slow.response().body) == 1000 * len(BLOCK)


def test_who_pipelines_and_does_not_read_gets_no_more_responses_made(server: RunningServer) -> None:
    (worker,) = server.worker_pids()
    with Browser(server) as greedy, Browser(server) as other:
        assert other.get("/big?16").body == BLOCK * 16
        before = rss_kib(worker)
        greedy.send(request("/big?16") * 150)  # 150 MiB of responses, from one packet or two
        wait_idle(worker)
        assert rss_kib(worker) - before < 32 << 10
        assert other.get().body == HELLO
        for _ in range(150):
            assert len(greedy.response().body) == 16 * len(BLOCK)


def test_everything_is_told_to_a_stuck_reader_of_a_closing_response(server: RunningServer) -> None:
    """The client sends on after it asked to close: what it was answered must survive that."""
    with Browser(server) as browser:
        browser.send(request("/big?40", connection="close") + bytes(3_000_000))
        answer = read_to_end(browser.sock)
    assert answer.endswith(BLOCK * 40)


# --- who wants everything


def test_a_client_with_thousands_of_requests_does_not_starve_another(server: RunningServer) -> None:
    """The other one is answered while the first still has the most before it."""
    with Browser(server) as greedy, Browser(server) as other:
        greedy.sock.setblocking(False)
        sent = 0
        flood = request("/big?1") * 2000
        try:
            while sent < len(flood):
                sent += greedy.sock.send(flood[sent:])
        except BlockingIOError:
            pass  # it reads none of the answers either
        assert other.get().body == HELLO


def test_a_stream_that_always_finds_room_leaves_others_their_turn(server: RunningServer, tmp_path: Path) -> None:
    """Its client reads as fast as it can, so that no send has to wait."""
    with Browser(server) as reader, Browser(server) as other:
        reader.send(request(f"/endless?{tmp_path}/mark"))
        for _ in range(5):
            read_exactly(reader.sock, 4 << 20)
            other.send(request())
            got = b""
            other.sock.setblocking(False)
            until_s = time.monotonic() + 10
            while not got and time.monotonic() < until_s:
                read_exactly(reader.sock, 65536)
                try:
                    got = other.sock.recv(65536)
                except BlockingIOError:
                    continue
            other.sock.setblocking(True)
            assert got.endswith(HELLO)
