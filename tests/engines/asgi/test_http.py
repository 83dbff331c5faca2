"""What HTTP has of its own under ASGI: bodies both ways as they come, who leaves and who goes on, messages in disorder.

What a client sees of WSGI and ASGI alike is in test_http_serving.py and test_http_deadlines.py.
"""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.engines.wsgi.test_serving import CONTINUE, ON_ASYNCIO, ON_UVLOOP, ONE, silent
from tests.support.client import abort, dial, exchange, read_exactly, read_to_end
from tests.support.control import Place
from tests.support.load import Crew, Load
from tests.support.processes import rss_kib, wait_idle
from tests.support.wait import eventually
from tests.support.web import ASGI, Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

LOOPS = [ON_UVLOOP, ON_ASYNCIO]
LEAVING = pytest.mark.parametrize("leave", [abort, socket.socket.close], ids=["reset", "close"])


@pytest.fixture(params=LOOPS)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker."""
    return shared(*request.param)


@pytest.fixture(params=LOOPS)
def wronged(serve: Serve, request: pytest.FixtureRequest) -> RunningServer:
    """The same, whose log may have tracebacks."""
    return serve(*request.param, expect_traceback=True)


@pytest.fixture(params=LOOPS)
def gated(serve: Serve, gate: Gate, request: pytest.FixtureRequest) -> RunningServer:
    """The same, with the test's gate."""
    return serve(*request.param, env=gate.env)


def marked(path: Path, lines: list[str]) -> None:
    """Wait until the application has noted this."""
    eventually(lambda: path.exists() and path.read_text().splitlines() == lines, within_s=30, what=f"{lines} in {path}")


# --- what the application is told


@pytest.mark.smoke
def test_the_scope(server: RunningServer) -> None:
    with Browser(server) as browser:
        said = json.loads(browser.post("/scope?a=%20b", b"12345", x_many="1").body)
        host, port = browser.sock.getsockname()
    address, _, listening = server.address.rpartition(":")
    assert said == {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.5"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/scope", "raw_path": "/scope", "query_string": "a=%20b", "root_path": "",
        "headers": [["host", "test"], ["x-many", "1"], ["content-length", "5"]], "client": [host, port],
        "server": [address, int(listening)], "state": {"shared": said["state"]["shared"]},
        "extensions": {"http.response.pathsend": {}, "http.response.early_hint": {}},
    }  # fmt: skip


def test_the_state_is_the_requests_own_but_not_what_is_in_it(server: RunningServer) -> None:
    own, before = fetch(server, "/state").body.split()
    assert (own, fetch(server, "/state").body.split()) == (b"1", [b"1", b"%d" % (int(before) + 1)])


def test_root_path(serve: Serve) -> None:
    assert json.loads(fetch(serve(*ONE, ASGI, "--root-path", "/api"), "/scope").body)["root_path"] == "/api"


def test_a_unix_socket_has_no_client(serve: Serve, tmp_path: Path) -> None:
    server = serve(ASGI, *ONE, bind=f"unix:{tmp_path}/s")
    said = json.loads(fetch(server, "/scope").body)
    assert (said["client"], said["server"]) == (None, [f"{tmp_path}/s", None])


# --- bodies


@pytest.mark.smoke
def test_pieces_go_both_ways_as_they_come(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request("/echo-at-once", method="POST", transfer_encoding="chunked"))
        for number, piece in enumerate((b"one", b"the second", b"3rd")):
            framed = b"%x\r\n%b\r\n" % (len(piece), piece)
            browser.send(framed)
            if not number:
                _, fields = browser.head()
                assert fields["connection"] == "close", "it begins before the body is complete"
            assert browser.exactly(len(framed)) == framed
        browser.send(b"0\r\n\r\n")
        assert browser.rest() == b"0\r\n\r\n"


def test_100_continue_is_not_said_behind_a_response(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request("/listen-late", method="POST", expect="100-continue", content_length="5"))
        answer = browser.response()
        assert (answer.body, answer.closes) == (b"not read, not asked for\n", True)
        browser.sock.shutdown(socket.SHUT_WR)
        assert browser.ended()


def test_100_continue_is_said_when_the_application_asks_and_not_before(gated: RunningServer, gate: Gate) -> None:
    with Browser(gated) as browser, Browser(gated) as other:
        browser.send(request("/gate", method="POST", expect="100-continue", content_length="5"))
        gate.wait_entered(1)
        assert other.get().body == HELLO
        assert silent(browser)
        gate.open()
        answer = browser.response()
        assert (answer.status, answer.closes) == (200, True), "without 100, as it did not want the body"
        other.send(request("/echo", method="POST", expect="100-continue", content_length="5"))
        assert read_exactly(other.sock, len(CONTINUE)) == CONTINUE
        other.send(b"12345")
        assert other.response().body == b"12345"


def test_a_body_that_nobody_reads_ends_the_connection_but_not_the_response(server: RunningServer) -> None:
    body = bytes(3_000_000)
    for path, said in (("/", HELLO), ("/listen-late", b"not read, not asked for\n")):
        with Browser(server) as browser:
            browser.send(request(path, method="POST", body=body))
            answer = browser.response()
            assert (answer.body, answer.closes) == (said, True)


def test_an_application_that_does_not_read_makes_its_client_wait(gated: RunningServer, gate: Gate) -> None:
    size = 64 << 20
    (worker,) = gated.worker_pids()
    with Browser(gated) as browser:
        assert browser.get().body == HELLO
        before = rss_kib(worker)
        browser.send(request("/slow-to-read", method="POST", content_length=str(size)))
        browser.sock.setblocking(False)
        sent = 0
        gate_passed = False
        until_s = time.monotonic() + 20
        while sent < size and time.monotonic() < until_s:
            try:
                sent += browser.sock.send(bytes(min(65536, size - sent)))
            except BlockingIOError:
                if not gate_passed:
                    gate.wait_entered(1)
                    wait_idle(worker)
                    assert sent < size / 2, "the kernel's buffers took it all"
                    assert rss_kib(worker) - before < 8 << 10, "KiB that the server holds of it"
                    gate.open()
                    gate_passed = True
                time.sleep(0.001)
        browser.sock.settimeout(20)
        assert browser.response().body == b"%d" % size
        assert browser.get().body == HELLO


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


# --- who leaves, and who goes on


@LEAVING
def test_an_application_hears_that_its_client_has_left(server: RunningServer, tmp_path: Path, leave: object) -> None:
    with Browser(server) as browser:
        browser.send(request(f"/watch?{tmp_path}/mark"))
        assert browser.head()[0] == 200
        browser.exactly(len(b"9\r\nwatching\n\r\n"))
        leave(browser.sock)  # type: ignore[operator] # one of two functions
        marked(tmp_path / "mark", ["http.disconnect", "ClientDisconnected"])
    assert "WARN" not in server.log


@LEAVING
def test_an_application_is_not_cancelled_when_its_client_leaves(
    server: RunningServer, tmp_path: Path, leave: object
) -> None:
    browser = Browser(server)
    browser.send(request(f"/outlive-client?{tmp_path}/mark"))
    marked(tmp_path / "mark", ["begun"])
    leave(browser.sock)  # type: ignore[operator] # one of two functions
    marked(tmp_path / "mark", ["begun", "done"])


def test_work_behind_the_response_goes_on_and_the_connection_as_well(server: RunningServer, tmp_path: Path) -> None:
    with Browser(server) as browser:
        assert browser.get(f"/outlive?{tmp_path}/mark").body == HELLO
        assert browser.get().body == HELLO
        marked(tmp_path / "mark", ["http.disconnect", "done"])


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


# --- messages


def test_early_hints(server: RunningServer) -> None:
    answer = exchange(server.address, request("/hint", connection="close"))
    hints, _, rest = answer.partition(b"\r\n\r\n")
    assert hints.split(b"\r\n") == [
        b"HTTP/1.1 103 Early Hints",
        b"Link: </a.css>; rel=preload",
        b"Link: </b.js>; rel=preload",
    ]
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert exchange(server.address, request("/hint", minor=0)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(("fields", "trailer"), [({"te": "trailers"}, b"x-sum: 4\r\n"), ({}, b"")], ids=["te", "no-te"])
def test_trailers(server: RunningServer, fields: dict[str, str], trailer: bytes) -> None:
    answer = exchange(server.address, request("/trail", connection="close", **fields))
    assert answer.endswith(b"\r\n\r\n4\r\nbody\r\n0\r\n%b\r\n" % trailer)


def test_an_application_that_does_not_answer(wronged: RunningServer) -> None:
    with Browser(wronged) as browser:
        failed = browser.get("/return")
        assert (failed.status, failed.closes) == (500, True)
        assert browser.ended()
    wronged.wait_log("without a response")
    with Browser(wronged) as browser:
        browser.send(request("/return-midway"))
        with pytest.raises(EOFError):
            browser.response()
    with pytest.raises(ConnectionResetError):  # HTTP/1.0 has no other way to know that this is not all
        exchange(wronged.address, request("/return-midway", minor=0))
    assert fetch(wronged).body == HELLO


def test_a_message_too_many_is_the_applications_affair(wronged: RunningServer) -> None:
    with Browser(wronged) as browser:
        assert browser.get("/too-much").body == HELLO
        assert browser.get().body == HELLO
    wronged.wait_log("http.response.body was sent after the last one")


# --- what is told of it


def test_the_access_log(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve(ASGI, *ONE, "--access-log", str(log), expect_traceback=True)
    with Browser(server) as browser:
        browser.get("/?q=1")
        browser.get("/stream?2")
        browser.get("/raise")
    with Browser(server) as browser:
        browser.send(b"nonsense\r\n\r\n")
        browser.rest()
    with Browser(server) as browser:
        browser.send(request(f"/endless?{tmp_path}/mark"))
        read_exactly(browser.sock, 1 << 20)
    eventually(lambda: log.read_text().count("\n") == 5, within_s=15)
    told = [line.split('"')[1:3] for line in log.read_text().splitlines()]
    assert told[:4] == [
        ["GET /?q=1 HTTP/1.1", f" 200 {len(HELLO)} "],
        ["GET /stream?2 HTTP/1.1", f" 200 {2 * len(BLOCK)} "],
        ["GET /raise HTTP/1.1", " 500 26 "],
        ["-", " 400 16 "],
    ]
    assert told[4][1].startswith(" 200 ")
    assert int(told[4][1].split()[1]) >= 1 << 20


def test_the_servers_count_is_the_clients(serve: Serve) -> None:
    with Place() as place:
        server = serve(ASGI, "--workers", "2", env=place.env, expect_traceback=True)
        with Load(server.address, Crew(clients=3, posts=30), Crew(clients=2, posts=1)) as load:
            load.wait_more(300)
        assert not load.failed
        for _ in range(3):
            assert fetch(server, "/raise").status == 500
        totals = eventually(
            lambda: (found := place.status()["totals"]) and not found["connections"] and found,
            within_s=30,
        )
        assert (totals["requests"], totals["errors"]) == (load.counts.total(), 3)


def test_a_worker_is_replaced_after_its_requests(serve: Serve) -> None:
    server = serve(ASGI, "--workers", "2", "--max-requests", "20")
    before = server.worker_pids()
    with Load(server.address, Crew(clients=3, posts=1000), Crew(clients=2, posts=1)) as load:
        eventually(lambda: not server.worker_pids() & before, within_s=20)
        load.wait_more(20)
    assert not load.failed, load.failures


def test_a_blocked_loop_is_seen_and_its_neighbours_go_on(serve: Serve) -> None:
    server = serve(ASGI, "--workers", "2", "--timeout", "1")
    before = server.worker_pids()
    with Load(server.address, Crew(clients=2, posts=1)) as load, Browser(server) as stuck:
        load.wait_more(20)
        stuck.send(request("/block?60"))
        with pytest.raises((EOFError, ConnectionResetError)):
            stuck.response()
        server.wait_log("worker hung ")
        server.wait_log(r"routes\.py.*\bblock\b")
        eventually(lambda: len(server.worker_pids() - before) == 1, within_s=30)
        load.wait_more(20)
    assert sum(load.failed.values()) <= 2, "at most those that the stuck worker had taken"


def test_a_long_wait_is_no_blocked_loop(serve: Serve) -> None:
    server = serve(ASGI, *ONE, "--timeout", "300ms")
    before = server.worker_pids()
    assert fetch(server, "/work?1").body == HELLO
    assert server.worker_pids() == before


def test_read_to_the_end_of_http_1_0(server: RunningServer) -> None:
    with dial(server.address) as sock:
        sock.sendall(request("/stream?3", minor=0))
        assert read_to_end(sock).endswith(b"\r\n\r\n" + BLOCK * 3)
