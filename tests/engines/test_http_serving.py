"""HTTP/1.1 over the wire: requests in order, bodies, every kind of response, limits, an application that does wrong."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.support.client import exchange, read_exactly
from tests.support.control import Place
from tests.support.load import ClientGroup, Load
from tests.support.wait import eventually
from tests.support.ways import BOTH, EACH_WAY, ONE, WAYS, Way
from tests.support.web import CONTINUE, Browser, fetch, request, silent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


@pytest.fixture(params=WAYS)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker, in each way to serve."""
    return shared(*request.param, *ONE, "--max-body", "8m")


# --- requests


@pytest.mark.smoke
def test_get_head_and_post(server: RunningServer) -> None:
    with Browser(server) as browser:
        assert browser.get().body == HELLO
        browser.send(request(method="HEAD"))
        head = browser.response(head=True)
        assert (head.status, head.fields["content-length"]) == (200, str(len(HELLO)))
        assert browser.post("/echo", b"a body").body == b"a body"
        assert browser.post("/echo", b"").body == b""
        assert browser.get("/nowhere").status == 404


@pytest.mark.smoke
def test_what_the_application_is_told(server: RunningServer) -> None:
    with Browser(server) as browser:
        said = json.loads(browser.post("/told?a=%20b", b"12345").body)
        host, port = browser.sock.getsockname()
    assert said == {
        "method": "POST", "path": "/told", "query": "a=%20b", "scheme": "http", "host": "localhost",
        "client": [host, str(port)], "body": "12345",
    }  # fmt: skip


@pytest.mark.smoke
def test_a_body_in_chunks_and_one_larger_than_memory_is_kept_for(server: RunningServer) -> None:
    body = BLOCK * 48
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (b"x", b"y" * 70_000, b"\r\n"))
    with Browser(server) as browser:
        browser.send(request("/echo", method="POST", transfer_encoding="chunked") + chunks + b"0\r\nTrailer: t\r\n\r\n")
        assert browser.response().body == b"x" + b"y" * 70_000 + b"\r\n"
        assert browser.post("/echo", body).body == body
        assert browser.post("/length", body).body == b"%d" % len(body)


def test_a_thousand_requests_in_one_go_are_answered_in_their_order(server: RunningServer) -> None:
    numbers = range(1000)
    with Browser(server) as browser:
        browser.send(b"".join(request("/echo", method="POST", body=b"%d" % number) for number in numbers))
        assert [int(browser.response().body) for _ in numbers] == [*numbers]


def test_http_1_0_closes_unless_asked_not_to(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request(minor=0))
        assert browser.response().body == HELLO
        assert browser.ended()
    with Browser(server) as browser:
        for _ in range(2):
            browser.send(request(minor=0, connection="keep-alive"))
            assert browser.response().fields["connection"] == "keep-alive"
        browser.send(request("/stream?3", minor=0, connection="keep-alive"))
        streamed = browser.response()  # which can only end with the connection
        assert streamed.closes
        assert streamed.body == BLOCK * 3
    assert exchange(server.address, request("/stream?3", minor=0)).endswith(b"\r\n\r\n" + BLOCK * 3)


@pytest.mark.smoke
def test_a_client_that_asks_to_close_is_obeyed(server: RunningServer) -> None:
    with Browser(server) as browser:
        assert browser.get(connection="close").closes
        assert browser.ended()


def test_100_continue_is_said_once_and_before_the_body_is_sent(server: RunningServer) -> None:
    head = request("/echo", method="POST", expect="100-continue", content_length="6")
    with Browser(server) as browser:
        for _ in range(2):
            browser.send(head)
            assert read_exactly(browser.sock, len(CONTINUE)) == CONTINUE
            browser.send(b"abc")
            fetch(server)
            assert silent(browser)
            browser.send(b"def")
            assert browser.response().body == b"abcdef"
        browser.send(head + b"no wait")  # it is not said to a client that does not wait for it
        assert browser.response().body == b"no wai"


def test_100_continue_is_not_said_to_http_1_0_nor_when_the_request_is_refused(server: RunningServer) -> None:
    with Browser(server) as old, Browser(server) as big:
        old.send(request("/echo", method="POST", minor=0, expect="100-continue", content_length="2"))
        fetch(server)
        assert silent(old)
        old.send(b"ok")
        assert old.response().body == b"ok"
        big.send(request("/echo", method="POST", expect="100-continue", content_length="9000000"))
        assert big.response().status == 413
        big.sock.shutdown(socket.SHUT_WR)
        assert big.ended()


def early_413(server: RunningServer, times: int) -> None:
    body = bytes(10_000_000)
    for _ in range(times):
        answer = exchange(server.address, request("/length", method="POST", body=body))
        assert answer.startswith(b"HTTP/1.1 413 "), answer[:100]
        assert answer.endswith(b"413 Content Too Large\n"), answer[-100:]


def test_a_client_that_sends_too_much_reads_the_whole_413(server: RunningServer) -> None:
    """It is blocked in its send when the answer comes, and reads only when all is sent."""
    early_413(server, 10)


@BOTH
def test_a_thousand_clients_that_send_too_much_read_the_whole_413(shared: Shared, way: Way) -> None:
    early_413(shared(*way, *ONE, "--max-body", "1m"), 1000)


def test_a_body_in_chunks_may_not_grow_over_the_limit(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request("/length", method="POST", transfer_encoding="chunked"))
        browser.send(b"100000\r\n%b\r\n" % bytes(1 << 20) * 9)
        refused = browser.response()
        assert (refused.status, refused.closes) == (413, True)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ],
    ids=["no-host", "bare-lf", "version", "long-line", "many-fields", "smuggling"],
)
def test_a_bad_request_is_refused_once_and_nothing_behind_it_is_read(
    server: RunningServer, raw: bytes, status: int
) -> None:
    with Browser(server) as browser:
        browser.send(request() + raw + request())
        assert browser.response().status == 200
        refused = browser.response()
        assert (refused.status, refused.closes) == (status, True)
        browser.sock.shutdown(socket.SHUT_WR)
        assert browser.ended()


# --- responses


def test_a_file_is_sent_from_where_it_stands(server: RunningServer, tmp_path: Path) -> None:
    content = BLOCK * 70 + b"end"
    (tmp_path / "a file").write_bytes(content)
    (tmp_path / "empty").touch()
    with Browser(server) as browser:
        answer = browser.get(f"/file?{tmp_path}/a%20file")
        assert answer.body == content
        assert answer.fields["content-length"] == str(len(content))
        assert browser.get(f"/file?{tmp_path}/empty").body == b""
        assert browser.get("/file?/proc/self/status").body.startswith(b"Name:"), "a file whose size says nothing"
        browser.send(request(f"/file?{tmp_path}/a%20file", method="HEAD"))
        assert browser.response(head=True).fields["content-length"] == str(len(content))
        assert browser.get().body == HELLO


def test_an_answer_without_a_body(server: RunningServer) -> None:
    with Browser(server) as browser:
        assert browser.get("/204").status == 204
        assert browser.get().body == HELLO


# --- an application that does wrong


@pytest.fixture(params=WAYS)
def wronged(serve: Serve, request: pytest.FixtureRequest) -> RunningServer:
    """A server whose log may have tracebacks."""
    return serve(*request.param, *ONE, expect_traceback=True)


@pytest.mark.smoke
def test_exceptions_of_the_application_are_told_to_the_log_alone(wronged: RunningServer) -> None:
    with Browser(wronged) as browser:
        failed = browser.get("/raise")
        assert (failed.status, failed.closes) == (500, True)
        assert b"secret" not in failed.body
        assert browser.ended()
    wronged.wait_log(r'handler failed peer=127\.0\.0\.1:\d+ request="GET /raise" error=RuntimeError$')
    wronged.wait_log("a secret of the application")
    with Browser(wronged) as browser:
        browser.send(request("/raise-late"))
        with pytest.raises(EOFError):
            browser.response()
    with pytest.raises(ConnectionResetError):  # HTTP/1.0 has no other way to know that this is not all
        exchange(wronged.address, request("/raise-late", minor=0))
    assert fetch(wronged).body == HELLO


def test_an_application_that_does_not_answer(wronged: RunningServer) -> None:
    with Browser(wronged) as browser:
        failed = browser.get("/return")
        assert (failed.status, failed.closes) == (500, True)
        assert browser.ended()
    wronged.wait_log("without a response|did not call start_response")
    assert fetch(wronged).body == HELLO


def test_a_wrong_content_length_never_desynchronises(wronged: RunningServer) -> None:
    with Browser(wronged) as browser:
        browser.send(request("/promise?4") + request())
        cut = browser.response()
        assert (cut.body, cut.closes) == (b"0123", True)
        assert browser.rest() == b""
    with Browser(wronged) as browser:
        browser.send(request("/promise?11") + request())
        with pytest.raises(EOFError):
            browser.response()
    with Browser(wronged) as browser:
        assert browser.get("/promise?10").body == b"0123456789"
        assert browser.get().body == HELLO
    wronged.wait_log("Content-Length is 4")


@pytest.mark.parametrize("said", ["a%0d%0aSet-Cookie:%20x=1", "a%0ab", "a%00b"])
def test_no_byte_leaves_of_a_header_that_would_split_the_response(wronged: RunningServer, said: str) -> None:
    assert exchange(wronged.address, request(f"/split?{said}")).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"x=1" not in exchange(wronged.address, request(f"/split?{said}"))
    assert fetch(wronged, "/split?fine").fields["x-said"] == "fine"


# --- listeners, limits, counts


@BOTH
def test_unix_sockets_and_several_listeners(serve: Serve, tmp_path: Path, way: Way) -> None:
    server = serve(*way, *ONE, bind=["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/s"])
    told = [json.loads(fetch(address, "/told").body)["client"][0] for address in server.addresses]
    assert told == ["127.0.0.1", "::1", ""]


@BOTH
def test_a_client_that_comes_by_ipv4_to_a_socket_of_both_families_has_its_ipv4_address(
    serve: Serve, tmp_path: Path, way: Way
) -> None:
    """For the application, the access log, and those who are trusted to name another client."""
    log = tmp_path / "access.log"
    args = ("--trusted-proxies", "127.0.0.1", "--access-log", str(log))
    server = serve(*way, *ONE, *args, bind=":0")
    _, _, port = server.address.rpartition(":")
    assert server.address == f"[::]:{port}"
    near, six = f"127.0.0.1:{port}", f"[::1]:{port}"
    assert [json.loads(fetch(a, "/told").body)["client"][0] for a in (near, six)] == ["127.0.0.1", "::1"]
    told = [json.loads(fetch(a, "/told", x_forwarded_for="192.0.2.9").body)["client"][0] for a in (near, six)]
    assert told == ["192.0.2.9", "::1"]
    eventually(lambda: log.read_text().count("\n") == 4, within_s=10)
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["127.0.0.1", "::1", "192.0.2.9", "::1"]


@EACH_WAY
def test_one_connection_more_than_a_worker_may_hold_waits_for_a_place(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, "--max-connections", "2")
    first, second = Browser(server), Browser(server)
    assert first.get().status == second.get().status == 200
    with Browser(server) as third:
        third.send(request("/pid"))
        for browser in (first, second) * 10:
            browser.get()
        assert silent(third)
        first.close()
        assert int(third.response().body) in server.worker_pids()
    second.close()


@EACH_WAY
def test_a_worker_is_replaced_after_max_requests_and_nobody_notices(serve: Serve, way: Way) -> None:
    """Its successor comes first, so it may serve more than that."""
    server = serve(*way, "--workers", "2", "--max-requests", "20")
    first, until_s = server.worker_pids(), time.monotonic() + 20
    with Load(server.address, ClientGroup(clients=1, posts=1000), ClientGroup(clients=1, posts=1)) as load:
        with Browser(server) as browser:
            while server.worker_pids() & first:
                assert time.monotonic() < until_s
                assert not browser.get("/pid").closes, "another worker goes on with the connection"
        load.wait_more(20)
    assert not load.failed, load.failures
    server.wait_log("cause=recycle", count=3)


@BOTH
def test_the_servers_count_is_the_clients(serve: Serve, way: Way) -> None:
    with Place() as place:
        server = serve(*way, "--workers", "2", env=place.env, expect_traceback=True)
        with Load(server.address, ClientGroup(clients=3, posts=30), ClientGroup(clients=2, posts=1)) as load:
            load.wait_more(300)
        assert not load.failed
        for _ in range(3):
            assert fetch(server, "/raise").status == 500
        totals = eventually(
            lambda: (found := place.status()["totals"]) and not found["connections"] and found,
            within_s=30,
        )
        assert (totals["requests"], totals["errors"]) == (load.counts.total(), 3)
