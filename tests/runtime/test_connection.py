"""One client of a stream handler, over real TCP, with the socket options that a worker sets on its listener."""

from __future__ import annotations

import _socket
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Self

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefork.core.address import Address, format_sockaddr
from prefork.core.listener import open_listener, timeval
from prefork.engines import linger
from prefork.engines.linger import close
from prefork.errors import LineTooLong
from prefork.runtime.connection import LINE_LIMIT, Connection, HandlerSocket
from prefork.status.scoreboard import (
    BUSY_NS,
    BYTES_IN,
    BYTES_OUT,
    COUNTERS,
    GONE,
    IDLE_CLOSED,
    SINCE,
    TOO_LONG,
    Scoreboard,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

LIMIT_S = 10.0  # of every wait that a test expects to end earlier
LONG_S = 30.0  # an idle timeout that no test may reach
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Pair:
    """A client and the connection that a worker made of it. `accept_s`: the short wait that is inherited."""

    def __init__(self, *, idle_s: float = LONG_S, accept_s: float = 0.02) -> None:
        listener = open_listener(Address.parse("127.0.0.1:0"), backlog=1)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(min(accept_s, idle_s)))
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(idle_s))
        host, _, port = listener.address.rpartition(":")
        self.client = socket.create_connection((host, int(port)), timeout=LIMIT_S)
        fd, sockaddr = listener.sock._accept()  # type: ignore[attr-defined]
        listener.close()
        self.sock = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
        self.cells = busy_row()
        self.conn = Connection(self.sock, format_sockaddr(socket.AF_INET, sockaddr), self.cells, idle_s)

    def reset(self) -> None:
        """Let the client reset the connection, and wait until that has arrived."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.client.close()
        poll = select.poll()
        poll.register(self.sock.fileno(), 0)
        assert poll.poll(LIMIT_S * 1000), "no reset came"

    def finish(self) -> None:
        """Let the client half-close."""
        self.client.shutdown(socket.SHUT_WR)

    def received(self) -> bytes:
        """All that the client reads to the end."""
        data = b""
        while piece := self.client.recv(65536):
            data += piece
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.sock.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def busy_row() -> memoryview:
    """The cells of a row whose handler has just begun."""
    cells = Scoreboard(groups=1, threads=1).row(0).cells
    cells[SINCE] = time.monotonic_ns()
    return cells


def thread(work: Callable[[], object]) -> threading.Thread:
    running = threading.Thread(target=work)
    running.start()
    return running


def joined(running: threading.Thread) -> None:
    running.join(LIMIT_S)
    assert not running.is_alive()


# --- lines


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""], ids=["LF", "CRLF", "EOF"])
@pytest.mark.parametrize("limit", [1, 20, LINE_LIMIT])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_lines_at_their_limit(pair: Pair, limit: int, beyond: int, end: bytes) -> None:
    """The line end is not counted; a line of `limit` bytes is a line, one byte more is too much."""
    line = b"x" * (limit + beyond) + end
    sender = thread(lambda: (pair.client.sendall(line), pair.finish()))
    if beyond <= 0:
        assert pair.conn.readline(limit) == line
        assert pair.conn.outcome == 0
    else:
        with pytest.raises(LineTooLong, match=f"no line end within {limit} bytes") as caught:
            pair.conn.readline(limit)
        assert caught.value.limit == limit
        assert pair.conn.outcome == TOO_LONG
    joined(sender)


@pytest.mark.parametrize("tail", [b"x", b"\rx", b"xx", b"x\r"])
def test_a_line_too_long_is_told_while_the_client_still_waits(pair: Pair, tail: bytes) -> None:
    pair.client.sendall(b"x" * 20 + tail)
    with pytest.raises(LineTooLong):
        pair.conn.readline(20)


@pytest.mark.parametrize("so_far", [b"x" * 20, b"x" * 20 + b"\r"])
def test_a_line_that_may_still_fit_is_waited_for(so_far: bytes) -> None:
    with Pair(idle_s=0.05) as pair:
        pair.client.sendall(so_far)
        with pytest.raises(TimeoutError):
            pair.conn.readline(20)


def test_lines_are_returned_one_by_one_and_then_nothing(pair: Pair) -> None:
    pair.client.sendall(b"one\ntwo\r\n\n\0\xff\nlast")
    pair.finish()
    lines = [pair.conn.readline() for _ in range(7)]
    assert lines == [b"one\n", b"two\r\n", b"\n", b"\0\xff\n", b"last", b"", b""]
    assert pair.cells[BYTES_IN] == sum(map(len, lines))


def lines_of(data: bytes, limit: int) -> list[bytes | None]:
    """The lines of a stream; None and nothing more for one that is too long."""
    lines: list[bytes | None] = []
    while data:
        line, found, rest = data.partition(b"\n")
        if len(line.removesuffix(b"\r") if found else line) > limit:
            return [*lines, None]
        lines.append(line + found)
        data = rest
    return lines


@given(
    data=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"bcd", b"efghi"]), max_size=30).map(b"".join),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    limit=st.integers(1, 8),
)
def test_any_split_of_the_stream_gives_the_same_lines(data: bytes, cuts: list[int], limit: int) -> None:
    """Over a socket that keeps the borders of each send(), so that the split is real."""
    assume(not data.endswith(b"\r"))
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with client, server:
        rest, turn = data, 0
        while rest:
            size = cuts[turn % len(cuts)]
            client.send(rest[:size])
            rest, turn = rest[size:], turn + 1
        client.shutdown(socket.SHUT_WR)
        conn = Connection(server, "unix:", busy_row(), LONG_S)
        lines: list[bytes | None] = []
        try:
            while line := conn.readline(limit):
                lines.append(line)
        except LineTooLong:
            lines.append(None)
    assert lines == lines_of(data, limit)


@given(data=st.binary(max_size=60), reads=st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=10))
def test_lines_and_pieces_may_be_read_in_turn(data: bytes, reads: list[int | None]) -> None:
    """None: a line; a number: at most so many bytes."""
    client, server = socket.socketpair()
    with client, server:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        conn = Connection(server, "unix:", busy_row(), LONG_S)
        read, turn = b"", 0
        while True:
            size = reads[turn % len(reads)]
            piece = conn.readline() if size is None else conn.recv(size)
            if not piece:
                break
            assert (len(piece) <= size) if size else (piece.count(b"\n") <= 1)
            read, turn = read + piece, turn + 1
    assert read == data


# --- waiting for the client


def test_a_silent_client_is_given_up_after_the_idle_timeout_and_not_before() -> None:
    """The listener's short wait runs out first, and is continued."""
    with Pair(idle_s=0.2, accept_s=0.02) as pair:
        began_s = time.monotonic()
        with pytest.raises(TimeoutError, match=rf"{pair.conn.peer} sent nothing for 0\.[2-9] s"):
            pair.conn.recv()
        assert time.monotonic() - began_s >= 0.19
        assert pair.conn.outcome == IDLE_CLOSED


@pytest.mark.parametrize("deadline_in_s", [0.05, 0.0, -5.0])
def test_a_deadline_ends_a_wait_before_the_idle_timeout(pair: Pair, deadline_in_s: float) -> None:
    began_s = time.monotonic()
    pair.conn.deadline = began_s + deadline_in_s
    with pytest.raises(TimeoutError):
        pair.conn.recv()
    assert deadline_in_s - 0.01 <= time.monotonic() - began_s < LIMIT_S


def test_a_deadline_ends_a_reply_to_a_client_that_does_not_read(pair: Pair) -> None:
    began_s = time.monotonic()
    pair.conn.deadline = began_s + 0.05
    with pytest.raises(TimeoutError):
        pair.conn.sendall(b"x" * (32 << 20))
    assert time.monotonic() - began_s < LIMIT_S


def test_a_deadline_that_is_far_leaves_the_idle_timeout() -> None:
    with Pair(idle_s=0.05) as pair:
        pair.conn.deadline = time.monotonic() + 1000
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            pair.conn.readline()
        assert time.monotonic() - began_s < LIMIT_S


def test_a_handler_may_go_on_after_a_wait_that_ran_out(pair: Pair) -> None:
    pair.client.sendall(b"hel")
    pair.conn.deadline = time.monotonic() + 0.05
    with pytest.raises(TimeoutError):
        pair.conn.readline()
    pair.conn.deadline = None
    pair.client.sendall(b"lo\n")
    assert pair.conn.readline() == b"hello\n"
    assert pair.conn.outcome == 0  # the client did not end it


def test_the_idle_timeout_is_whole_again_after_a_deadline() -> None:
    with Pair(idle_s=0.3) as pair:
        for wait in (pair.conn.recv, lambda: pair.conn.sendall(b"x" * (32 << 20))):
            pair.conn.deadline = time.monotonic() + 0.01
            with pytest.raises(TimeoutError):
                wait()
            pair.conn.deadline = None
            began_s = time.monotonic()
            with pytest.raises(TimeoutError):
                wait()
            assert time.monotonic() - began_s >= 0.29


def test_time_is_the_handlers_but_for_waits(pair: Pair) -> None:
    """SINCE is what --timeout judges: 0 while the client is waited for; time spent before counts as busy."""
    pair.cells[SINCE] = began_ns = time.monotonic_ns() - 5_000_000_000
    lines: list[bytes] = []
    handler = thread(lambda: lines.append(pair.conn.readline()))
    eventually(lambda: pair.cells[SINCE] == 0, within_s=LIMIT_S, what="the wait for the client")
    pair.client.sendall(b"x")
    eventually(lambda: pair.cells[BYTES_IN] == 1 and pair.cells[SINCE] == 0, within_s=LIMIT_S, what="a second wait")
    pair.client.sendall(b"\n")
    joined(handler)
    assert lines == [b"x\n"]
    assert began_ns < pair.cells[SINCE] <= time.monotonic_ns()
    assert 5_000_000_000 <= pair.cells[BUSY_NS] < 5_000_000_000 + (time.monotonic_ns() - began_ns)


def test_the_time_of_a_slow_reader_is_not_the_handlers(pair: Pair) -> None:
    data = b"x" * (32 << 20)
    handler = thread(lambda: pair.conn.sendall(data))
    eventually(lambda: pair.cells[SINCE] == 0, within_s=LIMIT_S, what="the wait for the client")
    size = 0
    while size < len(data):
        size += len(pair.client.recv(1 << 20))
    joined(handler)
    assert size == len(data) == pair.cells[BYTES_OUT]
    assert pair.cells[SINCE] > 0


def test_a_client_that_does_not_read_is_given_up() -> None:
    with Pair(idle_s=0.1) as pair:
        data = b"x" * (32 << 20)
        with pytest.raises(TimeoutError, match="read nothing for"):
            pair.conn.sendall(data)
        assert 0 < pair.cells[BYTES_OUT] < len(data)
        assert pair.conn.outcome == IDLE_CLOSED


# --- replies and ends


def test_what_is_sent_and_received_is_counted(pair: Pair) -> None:
    pair.client.sendall(b"question")
    assert pair.conn.recv(5) == b"quest"
    assert pair.conn.recv() == b"ion"
    pair.conn.sendall(b"")
    pair.conn.sendall(b"answer\n")
    assert pair.client.recv(100) == b"answer\n"
    counted = {name: pair.cells[cell] for name, cell in COUNTERS.items() if name != "busy_ns" and pair.cells[cell]}
    assert counted == {"bytes_in": 8, "bytes_out": 7}


def test_the_peer_is_the_clients_address(pair: Pair) -> None:
    assert pair.conn.peer == format_sockaddr(socket.AF_INET, pair.client.getsockname())


def test_a_half_close_ends_the_reply_and_the_client_can_still_send(pair: Pair) -> None:
    pair.conn.sendall(b"bye")
    pair.conn.shutdown_write()
    assert pair.received() == b"bye"
    pair.client.sendall(b"thanks\n")
    assert pair.conn.readline() == b"thanks\n"


@pytest.mark.parametrize(
    "step",
    [
        lambda conn: conn.recv(),
        lambda conn: conn.readline(),
        lambda conn: conn.sendall(b"x"),
        lambda conn: conn.shutdown_write(),
    ],
    ids=["recv", "readline", "sendall", "shutdown_write"],
)
def test_a_client_that_resets_is_gone_and_no_error_of_the_handler(
    pair: Pair, step: Callable[[Connection], object]
) -> None:
    pair.reset()
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the step; the outcome is what counts
        step(pair.conn)
    assert pair.conn.outcome == GONE


def test_a_client_that_leaves_during_a_long_reply_is_gone(pair: Pair) -> None:
    handler_failed: list[BaseException] = []

    def reply() -> None:
        try:
            pair.conn.sendall(b"x" * (32 << 20))
        except OSError as error:
            handler_failed.append(error)

    handler = thread(reply)
    pair.client.recv(1000)
    pair.client.close()  # with input unread: a reset
    joined(handler)
    assert isinstance(handler_failed[0], ConnectionError)
    assert pair.conn.outcome == GONE


def test_the_descriptor_blocks_with_the_idle_timeout() -> None:
    with Pair(idle_s=0.2, accept_s=0.01) as pair:
        fd = pair.conn.fileno()
        began_s = time.monotonic()
        with socket.socket(fileno=fd) as raw:
            assert raw.getblocking()
            with pytest.raises(BlockingIOError):
                raw.recv(1)
            assert time.monotonic() - began_s >= 0.19
            pair.client.sendall(b"x")
            assert raw.recv(1) == b"x"
            raw.detach()


# --- close


def wait_for_end(client: socket.socket) -> None:
    """Wait until the server has ended its side: FIN or RST."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    assert poll.poll(LIMIT_S * 1000)


def test_a_client_reads_the_whole_reply_although_it_sent_unread_input(pair: Pair) -> None:
    pair.client.sendall(b"unread " * 10_000)
    pair.conn.sendall(b"reply " * 10_000)
    closing = thread(lambda: close(pair.sock))
    wait_for_end(pair.client)
    assert pair.received() == b"reply " * 10_000
    pair.client.close()
    joined(closing)


def test_a_client_may_send_on_for_a_while_and_still_reads_the_reply(pair: Pair) -> None:
    pair.client.sendall(b"unread")
    pair.conn.sendall(b"reply")
    closing = thread(lambda: close(pair.sock))
    wait_for_end(pair.client)
    pair.client.sendall(b"more " * 1000)
    assert pair.received() == b"reply"
    pair.client.close()
    joined(closing)


def test_a_client_that_never_stops_sending_is_cut(pair: Pair) -> None:
    """After a bounded amount: closing must not hold a worker for as long as the client likes."""
    sent = 0

    def flood() -> None:
        nonlocal sent
        try:
            while sent < 1 << 30:
                sent += pair.client.send(b"x" * 65536)
        except ConnectionError:
            pass

    pair.client.sendall(b"x")
    select.select([pair.sock.fileno()], [], [], LIMIT_S)
    flooding = thread(flood)
    close(pair.sock)
    joined(flooding)
    assert sent < linger.LINGER_BYTES + (1 << 26)  # what was thrown away, and the buffers of both sides


def test_a_client_that_stays_silent_is_left_after_a_bounded_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.05)
    pair.client.sendall(b"unread")
    select.select([pair.sock.fileno()], [], [], LIMIT_S)
    closing = thread(lambda: close(pair.sock))
    joined(closing)
    assert pair.sock.fileno() == -1


def test_closing_does_not_wait_for_a_client_whose_input_was_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", LONG_S)
    pair.client.sendall(b"all of it")
    assert pair.conn.recv() == b"all of it"
    pair.conn.sendall(b"reply")
    closing = thread(lambda: close(pair.sock))
    joined(closing)
    assert pair.received() == b"reply"


def test_closing_after_a_half_close_does_not_wait(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", LONG_S)
    pair.finish()
    assert pair.conn.recv() == b""
    closing = thread(lambda: close(pair.sock))
    joined(closing)


def test_closing_after_a_reset_is_no_error(pair: Pair) -> None:
    pair.client.sendall(b"unread")
    pair.reset()
    close(pair.sock)
    assert pair.sock.fileno() == -1


# --- what socketserver handlers get


@pytest.fixture
def request_of(pair: Pair) -> Iterator[HandlerSocket]:
    with HandlerSocket.adopt(pair.sock, pair.cells, LONG_S) as made:
        yield made


def test_it_is_a_socket_that_counts(pair: Pair, request_of: HandlerSocket) -> None:
    assert isinstance(request_of, socket.socket)
    pair.client.sendall(b"question")
    buffer = bytearray(5)
    assert request_of.recv(3) == b"que"
    assert (request_of.recv_into(buffer), bytes(buffer)) == (5, b"stion")
    assert request_of.send(b"an") == 2
    request_of.sendall(memoryview(b"swer"))
    assert pair.client.recv(100) == b"answer"
    assert (pair.cells[BYTES_IN], pair.cells[BYTES_OUT]) == (8, 6)
    assert request_of.outcome == 0


def test_its_files_read_lines(pair: Pair, request_of: HandlerSocket) -> None:
    pair.client.sendall(b"one\ntwo\nthree")
    pair.finish()
    with request_of.makefile("rb") as file:
        assert file.readlines() == [b"one\n", b"two\n", b"three"]
    assert pair.cells[BYTES_IN] == 13


def test_its_waits_are_the_clients_time(pair: Pair, request_of: HandlerSocket) -> None:
    handler = thread(lambda: request_of.recv(1))
    eventually(lambda: pair.cells[SINCE] == 0, within_s=LIMIT_S, what="the wait for the client")
    pair.client.sendall(b"x")
    joined(handler)
    assert pair.cells[SINCE] > 0


def test_a_silent_client_is_a_timeout_and_no_end_of_file() -> None:
    with Pair(idle_s=0.05) as pair, HandlerSocket.adopt(pair.sock, pair.cells, 0.05) as request:
        with request.makefile("rb") as file, pytest.raises(TimeoutError, match="silent for --idle-timeout"):
            file.readline()
        assert request.outcome == IDLE_CLOSED


def test_a_handlers_own_timeout_is_its_own(pair: Pair, request_of: HandlerSocket) -> None:
    request_of.settimeout(0.02)
    with pytest.raises(TimeoutError):
        request_of.recv(1)
    assert request_of.outcome == 0
    request_of.setblocking(False)
    with pytest.raises(BlockingIOError):
        request_of.recv(1)
    assert request_of.outcome == 0


def test_a_request_whose_client_does_not_read() -> None:
    with Pair(idle_s=0.05) as pair, HandlerSocket.adopt(pair.sock, pair.cells, 0.05) as request:
        with pytest.raises(TimeoutError):
            request.sendall(b"x" * (32 << 20))
        assert request.outcome == IDLE_CLOSED


def test_a_request_whose_client_resets(pair: Pair, request_of: HandlerSocket) -> None:
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    pair.client.close()
    with pytest.raises(ConnectionResetError):
        request_of.recv(1)
    assert request_of.outcome == GONE
