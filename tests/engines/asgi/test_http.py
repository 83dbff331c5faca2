"""What HTTP has of its own under ASGI: bodies both ways as they come, who leaves and who goes on, messages in disorder.

What a client sees of WSGI and ASGI alike is in the modules of the folder above.
"""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import HELLO
from tests.support.client import exchange, read_exactly
from tests.support.processes import rss_kib, wait_idle
from tests.support.tls import TLS, trusting
from tests.support.wait import marked
from tests.support.ways import LEAVING, LOOPS, ONE, Leave, Way
from tests.support.web import ASGI, CONTINUE, Browser, fetch, request, silent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


@pytest.fixture(params=LOOPS)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker."""
    return shared(*request.param, *ONE)


@pytest.fixture(params=LOOPS)
def wronged(serve: Serve, request: pytest.FixtureRequest) -> RunningServer:
    """The same, whose log may have tracebacks."""
    return serve(*request.param, *ONE, expect_traceback=True)


@pytest.fixture(params=LOOPS)
def gated(serve: Serve, gate: Gate, request: pytest.FixtureRequest) -> RunningServer:
    """The same, with the test's gate."""
    return serve(*request.param, *ONE, env=gate.env)


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
        "headers": [["host", "localhost"], ["x-many", "1"], ["content-length", "5"]], "client": [host, port],
        "server": [address, int(listening)], "state": {"shared": said["state"]["shared"]},
        "extensions": {"http.response.pathsend": {}, "http.response.early_hint": {}},
    }  # fmt: skip


def test_the_state_is_the_requests_own_but_not_what_is_in_it(server: RunningServer) -> None:
    own, before = fetch(server, "/state").body.split()
    assert (own, fetch(server, "/state").body.split()) == (b"1", [b"1", b"%d" % (int(before) + 1)])


@pytest.mark.parametrize("way", LOOPS)
def test_the_scope_under_tls(shared: Shared, way: Way) -> None:
    said = json.loads(fetch(shared(*way, *ONE, *TLS), "/scope", tls=trusting()).body)
    assert (said["scheme"], said["extensions"]["tls"]["tls_version"]) == ("https", 0x0304)


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


# --- who leaves, and who goes on


@LEAVING
def test_an_application_hears_that_its_client_has_left(server: RunningServer, tmp_path: Path, leave: Leave) -> None:
    with Browser(server) as browser:
        browser.send(request(f"/watch?{tmp_path}/mark"))
        assert browser.head()[0] == 200
        browser.exactly(len(b"9\r\nwatching\n\r\n"))
        leave(browser.sock)
        marked(tmp_path / "mark", ["http.disconnect", "ClientDisconnected"])
    assert "WARN" not in server.log


@LEAVING
def test_an_application_is_not_cancelled_when_its_client_leaves(
    server: RunningServer, tmp_path: Path, leave: Leave
) -> None:
    browser = Browser(server)
    browser.send(request(f"/outlive-client?{tmp_path}/mark"))
    marked(tmp_path / "mark", ["begun"])
    leave(browser.sock)
    marked(tmp_path / "mark", ["begun", "done"])


def test_work_behind_the_response_goes_on_and_the_connection_as_well(server: RunningServer, tmp_path: Path) -> None:
    with Browser(server) as browser:
        assert browser.get(f"/outlive?{tmp_path}/mark").body == HELLO
        assert browser.get().body == HELLO
        marked(tmp_path / "mark", ["http.disconnect", "done"])


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


def test_an_application_that_returns_in_the_midst_of_its_response(wronged: RunningServer) -> None:
    with Browser(wronged) as browser:
        browser.send(request("/return-midway"))
        with pytest.raises(EOFError):
            browser.response()
    with pytest.raises(ConnectionResetError):  # HTTP/1.0 has no other way to know that this is not all
        exchange(wronged.address, request("/return-midway", minor=0))
    assert fetch(wronged).body == HELLO


@pytest.mark.parametrize("way", LOOPS)
def test_messages_after_the_last_one_are_ignored(serve: Serve, way: Way) -> None:
    """As ASGI says; also when the client has left since."""
    server = serve(*way, *ONE)
    with Browser(server) as browser:
        for _ in range(3):
            assert browser.get("/too-much").body == HELLO
        assert browser.get().body == HELLO
    assert fetch(server, "/too-much", connection="close").body == HELLO
    assert server.stop() == 0
    assert "handler failed" not in server.log
    assert " completed=5 " in server.log


# --- a call that waits


def test_a_long_wait_is_no_blocked_loop(serve: Serve) -> None:
    server = serve(ASGI, *ONE, "--timeout", "300ms")
    before = server.worker_pids()
    assert fetch(server, "/work?1").body == HELLO
    assert server.worker_pids() == before
