"""HTTP/1.1 over the wire: requests in order, bodies, every kind of response, clients that leave or are slow to read."""

from __future__ import annotations

import json
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.support.client import abort, exchange, read_exactly, read_to_end
from tests.support.wait import eventually
from tests.support.web import ASGI, WEB, Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import Serve, Shared
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

ONE = ("--workers", "1")
INLINE = pytest.param((WEB, *ONE), id="inline")
POOL = pytest.param((WEB, *ONE, "--threads", "4"), id="pool")
ON_UVLOOP = pytest.param((ASGI, *ONE), id="asgi")
ON_ASYNCIO = pytest.param((ASGI, *ONE, "--loop", "asyncio"), id="asgi-asyncio")
HOW = [INLINE, POOL, ON_UVLOOP, ON_ASYNCIO]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture(params=HOW)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker, with a WSGI application in the loop or on threads, or with its ASGI twin."""
    return shared(*request.param, "--max-body", "8m")


@pytest.fixture(params=[INLINE, POOL])
def wsgi(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """The same without ASGI."""
    return shared(*request.param, "--max-body", "8m")


def silent(browser: Browser) -> bool:
    """Whether nothing has come from the server. What it had to say before this is known to be here."""
    return not select.select([browser.sock], [], [], 0)[0]


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
def test_what_the_application_is_told(wsgi: RunningServer) -> None:
    with Browser(wsgi) as browser:
        said = json.loads(browser.post("/environ?a=%20b", b"12345", content_type="text/x", x_many="1").body)
        host, port = browser.sock.getsockname()
    expected = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/environ", "QUERY_STRING": "a=%20b", "RAW_URI": "/environ?a=%20b",
        "CONTENT_LENGTH": "5", "CONTENT_TYPE": "text/x", "HTTP_HOST": "test", "HTTP_X_MANY": "1", "SCRIPT_NAME": "",
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "127.0.0.1", "REMOTE_ADDR": host, "REMOTE_PORT": str(port),
        "SERVER_PORT": wsgi.address.rpartition(":")[2], "wsgi.url_scheme": "http", "wsgi.version": [1, 0],
        "wsgi.multiprocess": False, "wsgi.run_once": False,
    }  # fmt: skip
    assert {key: said.get(key) for key in expected} == expected


def test_multithread_and_multiprocess_are_true_to_the_configuration(shared: Shared) -> None:
    said = json.loads(fetch(shared(WEB, "--workers", "2", "--threads", "2"), "/environ").body)
    assert (said["wsgi.multithread"], said["wsgi.multiprocess"]) == (True, True)


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


def test_clients_that_leave_after_they_asked_to_continue_harm_nobody(server: RunningServer) -> None:
    for _ in range(50):
        browser = Browser(server)
        browser.send(request("/echo", method="POST", expect="100-continue", content_length="2"))
        abort(browser.sock)
    assert fetch(server).body == HELLO


def early_413(server: RunningServer, times: int) -> None:
    body = bytes(10_000_000)
    for _ in range(times):
        answer = exchange(server.address, request("/length", method="POST", body=body))
        assert answer.startswith(b"HTTP/1.1 413 "), answer[:100]
        assert answer.endswith(b"413 Content Too Large\n"), answer[-100:]


def test_a_client_that_sends_too_much_reads_the_whole_413(server: RunningServer) -> None:
    """It is blocked in its send when the answer comes, and reads only when all is sent."""
    early_413(server, 10)


def test_a_thousand_clients_that_send_too_much_read_the_whole_413(shared: Shared) -> None:
    early_413(shared(WEB, *ONE, "--max-body", "1m"), 1000)


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


# --- responses


def test_a_large_response_waits_for_a_slow_reader_and_nobody_waits_for_him(server: RunningServer) -> None:
    for path in ("/big?200", "/stream?200"):
        with Browser(server) as slow:
            slow.send(request(path))
            eventually(lambda slow=slow: not silent(slow), within_s=15)
            assert fetch(server).body == HELLO
            assert slow.response().body == BLOCK * 200


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


def test_written_blocks_come_before_returned_ones(wsgi: RunningServer) -> None:
    with Browser(wsgi) as browser:
        assert browser.get("/write").body == b"written, twice, and returned\n"
        assert browser.get("/204").status == 204
        assert browser.get().body == HELLO


@pytest.mark.parametrize("leave", [abort, socket.socket.close], ids=["reset", "close"])
def test_a_client_that_leaves_a_stream_has_it_closed_once(server: RunningServer, tmp_path: Path, leave: object) -> None:
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


# --- an application that does wrong


@pytest.fixture(params=HOW)
def wronged(serve: Serve, request: pytest.FixtureRequest) -> RunningServer:
    """A server whose log may have tracebacks."""
    return serve(*request.param, expect_traceback=True)


@pytest.mark.smoke
def test_exceptions_of_the_application_are_told_to_the_log_alone(wronged: RunningServer) -> None:
    with Browser(wronged) as browser:
        failed = browser.get("/raise")
        assert (failed.status, failed.closes) == (500, True)
        assert b"secret" not in failed.body
        assert browser.ended()
    wronged.wait_log("handler failed .*error=RuntimeError")
    wronged.wait_log("a secret of the application")
    with Browser(wronged) as browser:
        browser.send(request("/raise-late"))
        with pytest.raises(EOFError):
            browser.response()
    with pytest.raises(ConnectionResetError):  # HTTP/1.0 has no other way to know that this is not all
        exchange(wronged.address, request("/raise-late", minor=0))
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


def test_what_is_written_to_wsgi_errors_is_in_the_log(wsgi: RunningServer) -> None:
    fetch(wsgi, "/errors?something%20is%20wrong")
    wsgi.wait_log("^something is wrong$")


# --- listeners, threads, limits


def test_unix_sockets_and_several_listeners(serve: Serve, tmp_path: Path) -> None:
    server = serve(WEB, *ONE, bind=["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/s"])
    told = [json.loads(fetch(address, "/environ").body) for address in server.addresses]
    assert [one["REMOTE_ADDR"] for one in told] == ["127.0.0.1", "::1", ""]
    assert [one["SERVER_NAME"] for one in told] == ["127.0.0.1", "::1", "localhost"]
    assert all(one["SERVER_PORT"].isdigit() for one in told)


def test_threads_run_the_application_side_by_side_and_the_loop_inline(serve: Serve, gate: Gate) -> None:
    server = serve(WEB, *ONE, "--threads", "3", env=gate.env)
    held = [Browser(server) for _ in range(3)]
    for browser in held:
        browser.send(request("/gate"))
    gate.wait_entered(3)
    gate.open()
    assert [browser.response().body for browser in held] == [HELLO] * 3
    for browser in held:
        browser.close()
    inline = serve(WEB, *ONE, "--threads", "1")
    assert len({fetch(inline, "/thread").body for _ in range(5)}) == 1


def test_one_connection_more_than_a_worker_may_hold_waits_for_a_place(serve: Serve) -> None:
    server = serve(WEB, *ONE, "--max-connections", "2")
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


def test_a_worker_is_replaced_after_max_requests_and_nobody_notices(serve: Serve) -> None:
    """Its successor comes first, so it may serve more than that."""
    server = serve(WEB, "--workers", "2", "--max-requests", "10")
    first, until_s = server.worker_pids(), time.monotonic() + 20
    for _ in range(3):
        with Browser(server) as browser:
            while not browser.get("/pid").closes:
                assert time.monotonic() < until_s
            assert browser.ended()
    server.wait_workers(2)
    assert len(server.worker_pids() & first) < 2
    server.wait_log("cause=recycle", count=3)


def test_everything_is_told_to_a_stuck_reader_of_a_closing_response(server: RunningServer) -> None:
    """The client sends on after it asked to close: what it was answered must survive that."""
    with Browser(server) as browser:
        browser.send(request("/big?40", connection="close") + bytes(3_000_000))
        answer = read_to_end(browser.sock)
    assert answer.endswith(BLOCK * 40)
