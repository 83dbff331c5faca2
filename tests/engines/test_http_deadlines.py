"""Every wait for an HTTP client ends: for its head, its body, its next request, its reading."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import HELLO
from tests.support.client import dial, read_to_end
from tests.support.processes import open_fds
from tests.support.wait import eventually
from tests.support.ways import EACH_WAY, ON_UVLOOP, ONE, WSGI, Way
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

LIMIT_S = 0.3
LATE_S = 10.0  # for busy machines
SHORT = ("--header-timeout", str(LIMIT_S), "--idle-timeout", str(LIMIT_S), "--keep-alive", "20")


@pytest.fixture(params=[WSGI, ON_UVLOOP])
def way(request: pytest.FixtureRequest) -> Way:
    """The same application, over WSGI and over ASGI."""
    return request.param  # type: ignore[no-any-return]


def sockets(server: RunningServer) -> int:
    """How many the only worker has open."""
    (worker,) = server.worker_pids()
    return sum(what.startswith("socket:") for what in open_fds(worker).values())


class Trickle:
    """A client that sends a byte now and then, so that no single wait of the server is long."""

    def __init__(self, browser: Browser, byte: bytes = b"a") -> None:
        self._browser = browser
        self._byte = byte
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def _send(self) -> None:
        try:
            while not self._enough.wait(0.05):
                self._browser.send(self._byte)
        except OSError:
            pass  # the server has closed

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(10)


def in_time(began_s: float) -> bool:
    """Whether that was neither before the limit nor long after it."""
    return LIMIT_S - 0.05 <= time.monotonic() - began_s <= LIMIT_S + LATE_S


def test_a_head_that_does_not_come_in_time_is_answered_408(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *SHORT)
    with contextlib.ExitStack() as stack:
        began_s = time.monotonic()
        browsers = []
        for head in (b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", request()[:-1]):
            browsers.append(stack.enter_context(Browser(server)))
            browsers[-1].send(head)
        for browser in browsers:
            late = browser.response()
            assert in_time(began_s)
            assert (late.status, late.closes) == (408, True)
            assert browser.ended()


def test_a_byte_now_and_then_does_not_move_the_deadline_of_a_head(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *SHORT)
    with Browser(server) as browser:
        began_s = time.monotonic()
        browser.send(b"GET /")
        with Trickle(browser):
            assert browser.response().status == 408
        assert in_time(began_s)


def test_the_second_head_of_a_connection_has_the_same_deadline(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *SHORT)
    with Browser(server) as browser:
        browser.send(request() + b"GET")
        began_s = time.monotonic()
        assert browser.response().status == 200
        assert browser.response().status == 408
        assert in_time(began_s)


def test_a_body_that_does_not_come_in_time_is_answered_408(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *SHORT)
    for head in (
        request("/length", method="POST", content_length="1000000"),
        request("/length", method="POST", transfer_encoding="chunked"),
    ):
        with Browser(server) as browser:
            browser.send(head)
            began_s = time.monotonic()
            with Trickle(browser, b"1" if b"Length" in head else b"1\r\na\r\n"):
                assert browser.response().status == 408
            assert in_time(began_s)
            assert browser.ended()


def test_a_new_connection_that_says_nothing_is_closed_without_a_word(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *SHORT)
    with dial(server.address) as sock:
        began_s = time.monotonic()
        assert read_to_end(sock) == b""
        assert in_time(began_s)


def test_a_connection_is_kept_for_the_next_request_and_no_longer(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, "--keep-alive", str(LIMIT_S), "--header-timeout", "20")
    with Browser(server) as browser:
        for _ in range(3):
            assert browser.get().body == HELLO
            began_s = time.monotonic()
            with Browser(server) as other:  # which passes time, in steps that the server sees
                while time.monotonic() < began_s + LIMIT_S / 3:
                    other.get()
        assert browser.ended()
        assert in_time(began_s)


def test_an_empty_line_does_not_keep_a_connection(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, "--keep-alive", str(LIMIT_S), "--header-timeout", "20")
    with Browser(server) as browser:
        browser.get()
        began_s = time.monotonic()
        browser.send(b"\r\n")
        assert browser.ended()
        assert in_time(began_s)


def test_no_keep_alive_is_said(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, "--keep-alive", "0")
    with Browser(server) as browser:
        assert browser.get().closes
        assert browser.ended()


def test_the_application_may_take_longer_than_any_limit_of_its_client(shared: Shared, way: Way) -> None:
    """Also of others: in the loop, the clock of those who wait stands still meanwhile."""
    server = shared(*way, *ONE, *SHORT)
    with Browser(server) as browser, Browser(server) as other:
        other.send(b"GET / HT")
        fetch(server)
        browser.send(request(f"/work?{3 * LIMIT_S}"))
        fetch(server)  # it waits until the loop is back
        other.send(request()[8:])
        assert browser.response().body == HELLO
        assert other.response().body == HELLO


@EACH_WAY
def test_a_client_that_does_not_read_is_cut(serve: Serve, tmp_path: Path, way: Way) -> None:
    server = serve(*way, *ONE, *SHORT)
    before = sockets(server)
    mark = tmp_path / "closed"
    with Browser(server) as stream, Browser(server) as big:
        stream.send(request(f"/endless?{mark}"))
        big.send(request("/big?2000"))
        began_s = time.monotonic()
        eventually(lambda: mark.exists() and mark.read_text() == "closed\n", within_s=LIMIT_S + LATE_S)
        assert in_time(began_s)
        eventually(lambda: sockets(server) == before, within_s=LATE_S)


def test_a_client_that_reads_slowly_but_keeps_on_is_served_to_the_end(serve: Serve, way: Way) -> None:
    limit_s = 1.0  # so long that no machine is too busy for one turn
    server = serve(*way, *ONE, "--idle-timeout", str(limit_s))
    with Browser(server) as browser:
        browser.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        browser.send(request("/big?4000"))
        got, began_s, until_s = 0, time.monotonic(), 2.5 * limit_s
        while (passed_s := time.monotonic() - began_s) < until_s:
            if got < 3500 * 65536 * passed_s / until_s:  # however fast the machine is, it is not all read in this time
                got += len(browser.sock.recv(65536))  # as much as the window holds: the server sees that it is read
            fetch(server)
        while got < 4000 * 65536:
            chunk = browser.sock.recv(1 << 20)
            assert chunk, f"cut after {got} bytes"
            got += len(chunk)


def test_who_does_not_leave_after_the_last_answer_is_left(serve: Serve, way: Way) -> None:
    """It was refused, has its answer, and sends on for ever."""
    server = serve(*way, *ONE, *SHORT)
    before = sockets(server)
    with Browser(server) as browser:
        browser.send(b"nonsense\r\n\r\n")
        assert browser.response().status == 400
        with Trickle(browser):
            eventually(lambda: sockets(server) == before, within_s=5 + LATE_S)
