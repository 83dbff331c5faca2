"""The built-ins' bytes: talkback, nap and echo, with every kind of client."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import GREETING, abort, dial, exchange, read_exactly, read_to_end, talkback_reply

if TYPE_CHECKING:
    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

LIMIT = 65536
BINARY = bytes(b for b in range(256) if b != ord("\n"))


@pytest.fixture(params=["talkback", "nap"])
def server(request: pytest.FixtureRequest, shared: Shared) -> RunningServer:
    """talkback and nap say the same; nap takes 5 ms longer."""
    return shared(request.param, "--workers", "2")


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (b"hello\n", b"hello"),
        (b"hello\r\n", b"hello"),
        (b"\n", b""),
        (b"\r\n", b""),
        (b" spaces stay \n", b" spaces stay "),
        (b"a\rb\n", b"a\rb"),
        (b"two\r\r\n", b"two\r"),
        ("gr\u00fc\u00df dich\n".encode(), "gr\u00fc\u00df dich".encode()),
        (b"x" * 60_000 + b"\n", b"x" * 60_000),
    ],
    ids=["lf", "crlf", "empty", "empty-crlf", "spaces", "lone-cr", "cr-crlf", "utf-8", "long"],
)
def test_the_line_comes_back_without_its_end(server: RunningServer, sent: bytes, line: bytes) -> None:
    assert exchange(server.address, sent) == talkback_reply(line)


def test_binary_comes_back_as_it_is(server: RunningServer) -> None:
    assert exchange(server.address, BINARY + b"\n") == talkback_reply(BINARY)


def test_the_greeting_comes_before_anything_was_sent(server: RunningServer) -> None:
    with dial(server.address) as client:
        assert read_exactly(client, len(GREETING)) == GREETING
        client.sendall(b"now\n")
        assert read_to_end(client) == b"you said: now\n"


def test_the_end_of_input_ends_a_line_too(server: RunningServer) -> None:
    assert exchange(server.address, b"no line end", half_close=True) == talkback_reply(b"no line end")


def test_a_half_close_behind_a_whole_line_changes_nothing(server: RunningServer) -> None:
    assert exchange(server.address, b"hello\n", half_close=True) == talkback_reply(b"hello")


def test_a_line_that_comes_byte_by_byte_is_one_line(server: RunningServer) -> None:
    with dial(server.address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"slowly\n":
            client.sendall(bytes([byte]))
        assert read_to_end(client) == talkback_reply(b"slowly")


def test_only_the_first_line_is_answered(server: RunningServer) -> None:
    assert exchange(server.address, b"one\ntwo\nthree\n") == talkback_reply(b"one")


def test_input_behind_the_line_does_not_cost_the_client_its_reply(server: RunningServer) -> None:
    """A close with unread input would reset the connection and throw away what the client has not read yet."""
    for _ in range(20):
        with dial(server.address) as client:
            client.sendall(b"one\n" + b"more\n" * 8_000)
            assert read_to_end(client) == talkback_reply(b"one")


def test_a_client_that_keeps_sending_still_reads_the_whole_reply(server: RunningServer) -> None:
    with dial(server.address) as client:
        sender = threading.Thread(target=send_until_refused, args=(client, b"first\n" + b"x" * 300_000))
        sender.start()
        assert read_to_end(client) == talkback_reply(b"first")
        sender.join(15)
        assert not sender.is_alive()


def send_until_refused(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        return  # the server need not take what comes behind the line


def test_a_line_beyond_the_limit_is_answered_and_closed(server: RunningServer) -> None:
    for size in (LIMIT + 1, 200_000):
        with dial(server.address) as client:
            client.sendall(b"y" * size)
            reply = read_to_end(client)
        assert reply.startswith(GREETING)
        answer = reply.removeprefix(GREETING)
        assert answer.endswith(b"\n")
        assert len(answer) < 200
        assert b"65536" in answer
    assert exchange(server.address) == talkback_reply(b"hello")


def test_a_client_that_leaves_early_disturbs_nobody(server: RunningServer) -> None:
    for _ in range(20):
        dial(server.address).close()
        with dial(server.address) as client:
            client.sendall(b"half a li")
        with dial(server.address) as client:
            client.sendall(b"not read\n")
        abort(dial(server.address))
        client = dial(server.address)
        client.sendall(b"reset\n")
        abort(client)
    assert [exchange(server.address) for _ in range(8)] == [talkback_reply(b"hello")] * 8
    assert " ERROR " not in server.log


@pytest.mark.timing
@pytest.mark.parametrize("app", ["talkback", "nap", "echo"])
def test_a_silent_client_is_closed_after_the_idle_timeout(serve: Serve, app: str) -> None:
    server = serve(app, "--workers", "1", "--idle-timeout", "300ms")
    with dial(server.address) as client:
        started = time.monotonic()
        assert read_to_end(client) == (b"" if app == "echo" else GREETING)
        assert 0.25 < time.monotonic() - started < 15
    pids = server.worker_pids()
    with dial(server.address) as client:
        client.sendall(b"and then nothing")
        read_to_end(client)
    assert server.worker_pids() == pids


@pytest.mark.timing
def test_the_idle_timeout_starts_again_with_every_byte(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", "--idle-timeout", "400ms")
    with dial(server.address) as client:
        read_exactly(client, len(GREETING))
        started = time.monotonic()
        client.settimeout(0.15)
        for byte in b"steady":
            client.sendall(bytes([byte]))
            with pytest.raises(TimeoutError):  # the server says nothing, and does not close either
                client.recv(1)
        assert time.monotonic() - started > 0.8
        client.settimeout(10)
        client.sendall(b"\n")
        assert read_to_end(client) == b"you said: steady\n"


def test_nap_takes_its_five_milliseconds(shared: Shared) -> None:
    server = shared("nap", "--workers", "2")
    exchange(server.address)
    started = time.monotonic()
    for _ in range(20):
        exchange(server.address)
    assert time.monotonic() - started >= 20 * 0.005


def test_what_became_of_each_connection_is_counted(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", "--idle-timeout", "300ms")
    for _ in range(3):
        exchange(server.address)
    exchange(server.address, b"y" * 100_000 + b"\n")
    exchange(server.address, b"")
    exchange(server.address, b"")
    assert server.stop() == 0
    for count in ("accepted=6", "completed=3", "too_long=1", "idle_closed=2", "errors=0"):
        assert f" {count} " in server.log


class TestEcho:
    """echo returns each line as it came until the client closes."""

    @pytest.fixture
    def echo(self, shared: Shared) -> RunningServer:
        return shared("echo", "--workers", "2")

    def test_lines_come_back_as_they_came(self, echo: RunningServer) -> None:
        with dial(echo.address) as client:
            for line in (b"one\n", b"two\r\n", b"\n", b"\r\n", BINARY + b"\n", b"last\n") * 3:
                client.sendall(line)
                assert read_exactly(client, len(line)) == line
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b""

    def test_pipelined_lines_all_come_back_in_order(self, echo: RunningServer) -> None:
        data = b"".join(b"line %d\n" % n for n in range(2_000))
        assert exchange(echo.address, data, half_close=True) == data

    def test_the_last_line_may_lack_its_end(self, echo: RunningServer) -> None:
        assert exchange(echo.address, b"a\nb", half_close=True) == b"a\nb"

    def test_a_client_that_only_closes_gets_nothing(self, echo: RunningServer) -> None:
        assert exchange(echo.address, b"", half_close=True) == b""

    def test_a_line_beyond_the_limit_is_answered_and_closed(self, echo: RunningServer) -> None:
        with dial(echo.address) as client:
            client.sendall(b"fine\n" + b"y" * 200_000)
            reply = read_to_end(client)
        assert reply.startswith(b"fine\n")
        assert b"65536" in reply.removeprefix(b"fine\n")
        assert len(reply) < 200
