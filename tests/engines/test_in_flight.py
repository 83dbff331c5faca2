"""--max-in-flight: what is beyond it is told at once, by the server, and all the rest goes on."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import HELLO
from tests.engines.test_access_log import COMBINED
from tests.engines.test_proxies import PROXIED, V1
from tests.support.admin import ADMIN, address_of, figures
from tests.support.client import exchange
from tests.support.sockets import Socket
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.ways import LOOPS, ONE, THREADS, WSGI
from tests.support.web import CONTINUE, WEB, Browser, fetch, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.gate import Gate
    from tests.support.server import RunningServer
    from tests.support.ways import Way
    from tests.support.web import Response

pytestmark = pytest.mark.slow

EACH_LIMITED = pytest.mark.parametrize("way", [THREADS, *LOOPS])
EACH_LOOP = pytest.mark.parametrize("way", LOOPS)
EITHER = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
BODY = b"503 Service Unavailable\n"


def is_told(response: Response, *, closes: bool = False, body: bytes = BODY) -> bool:
    """Whether it is the answer to what is beyond the limit."""
    fields = response.fields
    return (
        (response.status, response.body, response.closes) == (503, body, closes)
        and (fields["retry-after"], fields["content-length"]) == ("1", str(len(BODY)))
        and fields["content-type"] == "text/plain; charset=utf-8"
    )


@contextlib.contextmanager
def in_flight(server: RunningServer, gate: Gate, count: int, *, tls: bool = False) -> Iterator[list[Browser]]:
    """Have so many requests stand at the gate, and see to it that they are answered in the end."""
    with contextlib.ExitStack() as stack:
        browsers = []
        for _ in range(count):
            browsers.append(stack.enter_context(Browser(server, tls=trusting() if tls else None)))
            browsers[-1].send(request("/gate"))
            gate.wait_entered(1)
        yield browsers
        gate.open()
        assert [browser.response().body for browser in browsers] == [HELLO] * count


# --- what the client sees


@pytest.mark.smoke
@EACH_LIMITED
@EITHER
def test_what_is_beyond_is_told_at_once_and_its_connection_goes_on(
    serve: Serve, gate: Gate, way: Way, tls: bool
) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "2", *(TLS if tls else ()), env=gate.env)
    with Browser(server, tls=trusting() if tls else None) as browser:
        with in_flight(server, gate, 2, tls=tls):
            assert is_told(browser.get())
            assert is_told(browser.post("/length", b"a small body"))
            browser.send(request("/length", method="POST", content_length="4") + b"in ")
            browser.send(b"2")
            assert is_told(browser.response())
            browser.send(request(method="HEAD"))
            assert is_told(browser.response(head=True), body=b"")
            browser.send(request() + request(method="POST", body=b"x" * 65536) + request())
            assert [is_told(browser.response()) for _ in range(3)] == [True] * 3
        assert browser.get().body == HELLO


@EACH_LIMITED
def test_when_one_has_ended_there_is_room_at_once(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1", env=gate.env)
    with Browser(server) as first, Browser(server) as second:
        for _ in range(3):
            first.send(request("/gate"))
            gate.wait_entered(1)
            assert is_told(second.get())
            gate.let_one_pass()
            assert first.response().body == HELLO
            assert second.get().body == HELLO


@EACH_LIMITED
def test_what_is_pipelined_meets_no_call_that_is_about_to_end(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1")
    with Browser(server) as browser:
        browser.send(50 * request() + request("/length", method="POST", body=b"four"))
        assert [browser.response().body for _ in range(51)] == 50 * [HELLO] + [b"4"]


@EACH_LIMITED
def test_many_that_are_pipelined_are_told_one_by_one(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1", env=gate.env)
    with in_flight(server, gate, 1), Browser(server) as browser:
        browser.send(5000 * request())
        assert all(is_told(browser.response()) for _ in range(5000))


@EACH_LIMITED
def test_http_1_0(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1", env=gate.env)
    with in_flight(server, gate, 1), Browser(server) as browser:
        browser.send(request(minor=0, connection="keep-alive"))
        kept = browser.response()
        assert (kept.status, kept.fields["connection"]) == (503, "keep-alive")
        browser.send(request(minor=0))
        assert is_told(browser.response(), closes=True)
        assert browser.ended()


@EACH_LIMITED
def test_a_client_that_wants_to_close(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1", env=gate.env)
    with in_flight(server, gate, 1), Browser(server) as browser:
        assert is_told(browser.get(connection="close"), closes=True)
        assert browser.ended()


@EACH_LOOP
def test_behind_a_body_that_may_be_long_the_connection_ends(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1", env=gate.env)
    with in_flight(server, gate, 1):
        for fields in ({"content_length": "65537"}, {"transfer_encoding": "chunked"}):
            with Browser(server) as browser:
                browser.send(request("/length", method="POST", **fields))
                assert is_told(browser.response(), closes=True)
                browser.send(b"1\r\na\r\n")  # it may send on, and is not reset
                assert browser.ended()
        with Browser(server) as browser:
            browser.send(request("/length", method="POST", content_length="3", expect="100-continue"))
            assert is_told(browser.response(), closes=True), "no 100, as nobody wants the body"
            assert browser.ended()
        with Browser(server) as browser:
            browser.send(request("/length", method="POST", body=bytes(1 << 20)))
            assert is_told(browser.response(), closes=True)


def test_wsgi_decides_when_the_body_is_whole(serve: Serve, gate: Gate) -> None:
    server = serve(WEB, "--threads", "3", *ONE, "--max-in-flight", "1", env=gate.env)
    with Browser(server) as slow, Browser(server) as browser:
        slow.send(request("/length", method="POST", content_length="5") + b"1234")
        assert browser.get().body == HELLO, "a body that arrives is not in flight"
        with in_flight(server, gate, 1):
            slow.send(b"5")
            assert is_told(slow.response())
            assert is_told(slow.post("/length", bytes(1 << 20)))
            slow.send(request("/length", method="POST", content_length="3", expect="100-continue"))
            assert slow.exactly(len(CONTINUE)) == CONTINUE
            slow.send(b"abc")
            assert is_told(slow.response())
        assert slow.post("/length", b"abc").body == b"3"


# --- what is in flight


def test_requests_that_wait_for_a_thread_count_and_new_clients_are_told(serve: Serve, gate: Gate, place: Place) -> None:
    """All threads are busy, and stay so: without a limit, nobody would be taken from the kernel any more."""
    server = serve(WEB, *ONE, "--threads", "2", "--max-in-flight", "4", env=place.env | gate.env)
    with in_flight(server, gate, 2), Browser(server) as third, Browser(server) as fourth:
        for number, browser in ((3, third), (4, fourth)):
            browser.send(request("/gate"))
            wanted = number * len(request("/gate"))
            eventually(lambda wanted=wanted: place.status()["totals"]["bytes_in"] == wanted, within_s=10)  # type: ignore[misc]
        for _ in range(3):
            assert is_told(fetch(server))
        gate.open()
        assert [third.response().body, fourth.response().body] == [HELLO] * 2


def test_while_another_worker_has_a_thread_new_clients_go_there(serve: Serve, gate: Gate) -> None:
    server = serve(WEB, "--workers", "2", "--threads", "2", "--max-in-flight", "2", env=gate.env)
    with in_flight(server, gate, 3), Browser(server) as fourth:
        assert [fetch(server).status for _ in range(10)] == [200] * 10
        fourth.send(request("/gate"))
        gate.wait_entered(1)
        assert [fetch(server).status for _ in range(10)] == [503] * 10
        gate.open()
        assert fourth.response().body == HELLO


def test_a_full_worker_ends_an_idle_connection_to_tell_a_new_client(serve: Serve, gate: Gate) -> None:
    options = ("--threads", "2", "--max-in-flight", "2", "--max-connections", "3")
    server = serve(WEB, *ONE, *options, env=gate.env)
    with Browser(server) as idle:
        assert idle.get().status == 200
        with in_flight(server, gate, 2):
            assert is_told(fetch(server))
            assert idle.ended()


def test_a_queue_for_each_worker(serve: Serve, gate: Gate) -> None:
    how = ("--accept", "per-worker", "--threads", "2", "--max-in-flight", "2")
    server = serve(WEB, *ONE, *how, env=gate.env)
    with in_flight(server, gate, 2):
        assert [fetch(server).status for _ in range(10)] == [503] * 10
    assert fetch(server).status == 200


@EACH_LOOP
def test_a_call_counts_until_it_returns(serve: Serve, tmp_path: Path, way: Way) -> None:
    """Whoever has left, and whatever it does after its response."""
    server = serve(*way, *ONE, "--max-in-flight", "1")
    mark = tmp_path / "mark"
    for path in ("/outlive-client", "/outlive"):
        mark.write_text("")
        with Browser(server) as browser:
            browser.send(request(f"{path}?{mark}"))
            if path == "/outlive":
                assert browser.response().body == HELLO
            else:
                eventually(mark.read_text, within_s=10)
        assert is_told(fetch(server))
        eventually(lambda: "done" in mark.read_text(), within_s=10)
        eventually(lambda: fetch(server).status == 200, within_s=10)


@EACH_LOOP
def test_a_websocket_counts_from_its_handshake_to_its_end(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1", env=gate.env)
    with Socket(server) as ws, Browser(server) as browser:
        assert is_told(browser.get())
        ws.send("still here")
        assert ws.receive() == "still here"
        ws.close_with(1000)
        assert ws.closed() == 1000
        eventually(lambda: browser.get().status == 200, within_s=10)
    with in_flight(server, gate, 1), Socket(server) as ws:
        assert ws.status == 503
        assert b"\r\nRetry-After: 1\r\n" in ws.head
        assert b"\r\nConnection: close\r\n" in ws.head
        assert ws.rest + ws.sock.recv(65536) in (BODY, BODY + BODY)
        assert ws.sock.recv(1) == b""
    with Socket(server) as ws:
        ws.send("again")
        assert ws.receive() == "again"


def test_wsgi_with_one_thread_says_that_it_has_no_effect(serve: Serve) -> None:
    server = serve(WEB, *ONE, "--max-in-flight", "1")
    server.wait_log(r"WARNING .*max-in-flight has no effect hint=.*--threads 2 or more")
    with contextlib.ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(8)]
        for browser in browsers:
            browser.send(request("/work?0.01"))
        assert [browser.response().status for browser in browsers] == [200] * 8


@pytest.mark.parametrize("way", [WSGI, THREADS, *LOOPS])
def test_without_a_limit_nobody_is_told(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, env=gate.env)
    assert "max-in-flight" not in server.log
    count = 1 if way == (WEB,) else 2
    with in_flight(server, gate, count) if count > 1 else contextlib.nullcontext(), Browser(server) as browser:
        assert browser.get().status == 200


def test_handlers_have_no_requests(serve: Serve) -> None:
    server = serve("talkback", *ONE, "--threads", "2", "--max-in-flight", "1")
    assert exchange(server.address).endswith(b"you said: hello\n")


# --- what is counted and logged


@EACH_LIMITED
def test_each_is_counted_and_has_its_line(serve: Serve, gate: Gate, place: Place, tmp_path: Path, way: Way) -> None:
    log = tmp_path / "access"
    options = ("--max-in-flight", "1", "--access-log", str(log), *ADMIN)
    server = serve(*way, *ONE, *options, env=place.env | gate.env)
    with in_flight(server, gate, 1), Browser(server) as browser:
        for _ in range(3):
            assert is_told(browser.get("/some?q=1", user_agent="test/1"))
        told = server.wait_log(r"WARNING .*max-in-flight reached (.*)")[1]
        assert "limit=1 " in told
        assert ' request="GET /some?q=1" status=503 ' in told
        assert "--max-in-flight" in told
        browser.send(request(method="HEAD"))
        browser.response(head=True)
        eventually(lambda: log.read_text().count("\n") == 4, within_s=10)
        lines = [COMBINED.fullmatch(line) for line in log.read_text().splitlines()]
        said = [line.group(1, 2, 3, 4, 6, 7) for line in lines if line]
        one = ("127.0.0.1", "GET /some?q=1 HTTP/1.1", "503", str(len(BODY)), "test/1", "0")
        assert said == [one, one, one, ("127.0.0.1", "HEAD / HTTP/1.1", "503", "0", "-", "0")]
        totals = place.status()["totals"]
        kinds = {"app": 0, "aborted": 0, "refused": 4, "timeout": 0, "client_gone": 0}
        assert (totals["refused"], totals["requests"], totals["errors"]) == (4, 0, 0)
        assert totals["errors_by_kind"] == kinds
        assert figures(address_of(server))["prefork_refused_total", frozenset()] == 4
    assert server.log.count("max-in-flight reached") == 1, "one line a second"


@EACH_LIMITED
def test_the_line_names_the_client_behind_the_proxy(serve: Serve, gate: Gate, tmp_path: Path, way: Way) -> None:
    log = tmp_path / "access"
    server = serve(*way, *ONE, "--max-in-flight", "1", *PROXIED, "--access-log", str(log), env=gate.env)
    with Browser(server) as first, Browser(server) as second:
        first.send(V1 + request("/gate"))
        gate.wait_entered(1)
        second.send(V1 + request())
        assert is_told(second.response())
        eventually(lambda: "192.0.2.7 - - " in log.read_text(), within_s=10)
        gate.open()
        assert first.response().body == HELLO


@EACH_LIMITED
@pytest.mark.parametrize("keeps", [True, False], ids=["keep-alive", "close"])
def test_under_load_everyone_is_answered_and_the_counts_agree(
    serve: Serve, place: Place, tmp_path: Path, way: Way, keeps: bool
) -> None:
    log = tmp_path / "access"
    options = ("--workers", "2", "--max-in-flight", "3", "--access-log", str(log))
    server = serve(*way, *options, env=place.env)
    seen: Counter[int] = Counter()
    trouble: list[BaseException] = []

    def ask() -> None:
        try:
            with Browser(server) as browser:
                for _ in range(60):
                    if keeps:
                        seen[browser.get("/work?0.005").status] += 1
                    else:
                        seen[fetch(server, "/work?0.005", connection="close").status] += 1
        except BaseException as error:  # noqa: BLE001 - told by the test
            trouble.append(error)

    clients = [threading.Thread(target=ask) for _ in range(16)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert not trouble
    assert seen.keys() == {200, 503}
    assert seen.total() == 16 * 60
    totals = place.status()["totals"]
    assert (totals["requests"], totals["refused"], totals["errors"]) == (seen[200], seen[503], 0)
    eventually(lambda: log.read_text().count("\n") == 16 * 60, within_s=10)
    assert Counter(line.split('" ')[1][:3] for line in log.read_text().splitlines()) == {
        str(status): count for status, count in seen.items()
    }


@EACH_LIMITED
def test_a_stop_waits_for_what_is_in_flight_and_tells_the_others(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, "--max-in-flight", "1", env=gate.env)
    with Browser(server) as second, in_flight(server, gate, 1):
        assert is_told(second.get())
        server.ask_to_stop()
        server.wait_log("stopping")
        eventually(lambda: _ended_or_last(second), within_s=20)
    assert server.wait_exit() == 0


def _ended_or_last(browser: Browser) -> bool:
    response = browser.get()
    assert response.status == 503
    return response.closes
