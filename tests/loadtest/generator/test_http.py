"""The http load on the fast engine's own ground: bodies, connections, odd but lawful responses, TLS."""

from __future__ import annotations

import _socket
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.generator.dialer import Dialer, tls_context
from loadtest.generator.http import Expectation, WebLink
from loadtest.generator.lines import EchoLink
from loadtest.plan.request import Request
from tests.loadtest import stand_in as behave
from tests.loadtest.generator.driving import Driving, completed, failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Drive = Callable[..., Driving]

pytestmark = pytest.mark.slow

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
LONG = b"x" * 3_000_000  # more than sockets buffer


@pytest.fixture
def drive() -> Iterator[Drive]:
    """Drive some clients that send the request; their sockets are closed with the test."""
    made: list[Driving] = []

    def start(address: Any, request: Request, *, clients: int = 1, **keywords: Any) -> Driving:
        link = {name: keywords.pop(name) for name in ("expected", "exchanges", "retry") if name in keywords}
        made.append(Driving(address, **keywords))
        for _ in range(clients):
            made[-1].link(lambda engine: WebLink(engine, request.encode("h"), **link))
        return made[-1]

    yield start
    for driving in made:
        driving.close()


def reading(*responses: bytes, bodies: list[bytes] | None = None, once: bool = False) -> Behaviour:
    """Reads each request with its body; answers with the responses in turn."""
    turns = itertools.cycle(responses)

    def serve(peer: socket.socket) -> Iterator[None]:
        requests = peer.makefile("rb")
        while requests.readline():
            length = 0
            while (line := requests.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = requests.read(length)
            if bodies is not None:
                bodies.append(body)
            peer.sendall(next(turns))
            yield
            if once:
                return

    return serve


@pytest.mark.smoke
@pytest.mark.parametrize("body", [b"short", LONG])
def test_a_body_is_sent_whole_on_a_kept_connection(body: bytes, stand_in: StartServer, drive: Drive) -> None:
    bodies: list[bytes] = []
    server = stand_in(reading(HELLO, bodies=bodies))
    request = Request.made(method="POST", body=body, payload=0)
    done = drive(server.server_address, request).until(completed(3))
    assert (done.failures, server.connections) == ({}, 1)
    assert len(bodies) == done.completed
    assert set(bodies) == {body}


@pytest.mark.parametrize("length", [b"Content-Length: 5\r\n", b""])
def test_a_connection_serves_as_many_requests_as_it_may(length: bytes, stand_in: StartServer, drive: Drive) -> None:
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    server = stand_in(reading(HELLO if length else chunked))
    done = drive(server.server_address, Request(), exchanges=3).until(completed(7))
    assert done.failures == {}
    assert server.connections == -(-done.completed // 3)


def test_without_keep_alive_each_request_has_its_connection(stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(reading(HELLO))
    done = drive(server.server_address, Request(keep_alive=False), exchanges=1, clients=3).until(completed(9))
    assert (done.failures, server.connections) == ({}, done.completed)


@pytest.mark.parametrize("length", [b"Content-Length: 5\r\n", b""])
def test_a_server_of_http_1_0_is_asked_on_new_connections(length: bytes, stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(reading(b"HTTP/1.0 200 OK\r\n" + length + b"\r\nhello", once=True))
    wanted = Expectation(length=5)
    done = drive(server.server_address, Request(), expected=wanted).until(completed(3))
    assert (done.failures, server.connections) == ({}, done.completed)


def test_head_has_no_body_whatever_it_announces(stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(reading(OK + b"Content-Length: 5\r\n\r\n"))
    wanted = Expectation(bodiless=True, length=0)
    done = drive(server.server_address, Request(method="HEAD"), expected=wanted).until(completed(3))
    assert (done.failures, server.connections) == ({}, 1)


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3 + HELLO,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nDigest: x\r\n\r\n",
    ],
)
def test_odd_but_lawful_responses_are_good_and_keep_the_connection(
    response: bytes, stand_in: StartServer, drive: Drive
) -> None:
    server = stand_in(reading(response))
    request = Request.made(method="POST", body=b"x", payload=0, headers=("Expect: 100-continue",))
    done = drive(server.server_address, request).until(completed(3))
    assert (done.failures, server.connections) == ({}, 1)


@pytest.mark.parametrize(
    ("second", "cause", "connections"),
    [
        (OK + b"Content-Length: 4\r\n\r\nhell", "wrong length", 1),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n6\r\nhello!\r\n0\r\n\r\n", "wrong length", 1),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", "status 404", 1),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "status 101", 2),
        (OK + b"Content-Length: 4\r\n\r\nhello", "wrong reply", 2),
    ],
)
def test_a_response_that_is_not_like_the_first_is_a_failure_by_cause(
    second: bytes, cause: str, connections: int, stand_in: StartServer, drive: Drive
) -> None:
    server = stand_in(reading(HELLO, HELLO, second))
    driving = drive(server.server_address, Request(), expected=Expectation(length=5))
    done = driving.until(lambda found: found.completed >= 3 and found.failures.total() >= 1)
    assert set(done.failures) == {cause}
    assert done.completed >= 3
    assert server.connections >= connections
    assert (server.connections == 1) == (connections == 1)


def refusing(response: bytes, *, until: threading.Event | None = None) -> Behaviour:
    """Answers after the head of the request and reads no body; then closes, which resets, or waits before."""

    def serve(peer: socket.socket) -> Iterator[None]:
        peer.recv(1000)
        peer.sendall(response)
        yield
        if until:
            until.wait(20)

    return serve


TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"
ENDLESS = Request.made(method="POST", body=b"", payload=32 << 20)  # more than the buffers of both sides


def test_a_server_that_takes_no_more_of_a_body_is_heard(stand_in: StartServer, drive: Drive) -> None:
    enough = threading.Event()
    server = stand_in(refusing(TOO_LARGE, until=enough))
    done = drive(server.server_address, ENDLESS).until(failed(3))
    enough.set()
    # What is left of the request is not taken for the next one.
    assert (set(done.failures), server.connections) == ({"status 413"}, done.failures.total())


def test_it_is_heard_also_if_it_resets(stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(refusing(TOO_LARGE))
    done = drive(server.server_address, ENDLESS).until(lambda found: found.failures["status 413"] >= 3)
    assert set(done.failures) <= {"status 413", "reset"}  # the reset may overtake the answer


def test_a_good_answer_to_half_a_request_ends_its_connection(stand_in: StartServer, drive: Drive) -> None:
    enough = threading.Event()
    server = stand_in(refusing(HELLO, until=enough))
    done = drive(server.server_address, ENDLESS).until(completed(3))
    enough.set()
    assert (done.failures, server.connections) == ({}, done.completed)


def test_a_head_and_trailers_without_end_are_bounded(stand_in: StartServer, drive: Drive) -> None:
    for endless in (OK, OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"):
        more = endless if endless.startswith(b"HTTP/1.1 100") else b"A: bcdefghijklmnopqrstuvwxyz\r\n"
        server = stand_in(reading(endless + more * 3000))
        done = drive(server.server_address, Request()).until(failed(2))
        assert set(done.failures) == {"wrong reply"}


# TLS


def trusting(address: Any, name: str = "localhost", **how: Any) -> Dialer:
    verified = tls_context(**({"insecure": False, "ca": str(behave.CERTIFICATE)} | how))
    return Dialer(socket.AF_INET, address, tls=(verified, name))


@pytest.mark.parametrize(
    ("name", "how"), [("localhost", {}), ("127.0.0.1", {}), ("other", {"insecure": True, "ca": ""})]
)
@pytest.mark.parametrize("exchanges", [0, 1])
def test_https(name: str, how: dict[str, Any], exchanges: int, stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.secure(reading(HELLO)))
    driving = drive(server.server_address, Request(), clients=2, exchanges=exchanges)
    driving.engine.dialer = trusting(server.server_address, name, **how)
    done = driving.until(completed(6))
    assert done.failures == {}
    assert server.connections == (done.completed if exchanges else 2)
    assert done.received == done.completed * len(HELLO)


def test_long_bodies_go_both_ways_through_tls(stand_in: StartServer, drive: Drive) -> None:
    bodies: list[bytes] = []
    response = OK + b"Content-Length: 3000000\r\n\r\n" + LONG
    server = stand_in(behave.secure(reading(response, bodies=bodies)))
    request = Request.made(method="POST", body=LONG, payload=0)
    driving = drive(server.server_address, request, expected=Expectation(length=len(LONG)))
    driving.engine.dialer = trusting(server.server_address)
    done = driving.until(completed(2))
    assert (done.failures, server.connections) == ({}, 1)
    assert set(bodies) == {LONG}
    assert done.received == done.completed * len(response)


@pytest.mark.parametrize("closes", ["with a goodbye", "without"])
def test_the_end_of_a_tls_stream_ends_a_body_without_length(closes: str, stand_in: StartServer, drive: Drive) -> None:
    def serve(peer: socket.socket) -> Iterator[None]:
        yield from reading(b"HTTP/1.0 200 OK\r\n\r\nhello", once=True)(peer)
        if closes == "without":
            peer.shutdown(socket.SHUT_RDWR)

    server = stand_in(behave.secure(serve))
    driving = drive(server.server_address, Request(), expected=Expectation(length=5))
    driving.engine.dialer = trusting(server.server_address)
    done = driving.until(completed(3))
    assert (done.failures, server.connections) == ({}, done.completed)


@pytest.mark.parametrize(
    ("behaviour", "name", "cause"),
    [
        (behave.talkback, "localhost", "TLS handshake"),  # it speaks, but not TLS
        (behave.secure(behave.web), "other", "bad certificate"),
        (behave.reset, "localhost", "reset"),
        (behave.hang, "localhost", "timeout"),
        (behave.closed_early, "localhost", "TLS handshake"),
    ],
)
def test_a_handshake_that_fails_is_a_failure_by_cause(
    behaviour: Behaviour, name: str, cause: str, stand_in: StartServer, drive: Drive
) -> None:
    server = stand_in(behaviour)
    driving = drive(server.server_address, Request(), deadline_s=0.3 if cause == "timeout" else 10.0)
    driving.engine.dialer = trusting(server.server_address, name)
    done = driving.until(failed(2))
    assert (set(done.failures), done.completed) == ({cause}, 0)


def test_an_unknown_authority_is_a_bad_certificate(stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.secure(behave.web))
    driving = drive(server.server_address, Request())
    driving.engine.dialer = trusting(server.server_address, ca="")
    assert set(driving.until(failed(2)).failures) == {"bad certificate"}


def test_the_handshake_is_a_part_of_the_latency_of_a_new_connection(stand_in: StartServer, drive: Drive) -> None:
    def slow(peer: socket.socket) -> Iterator[None]:
        peer.recv(1, socket.MSG_PEEK)
        threading.Event().wait(0.15)
        yield from behave.secure(reading(HELLO))(peer)

    server = stand_in(slow)
    driving = drive(server.server_address, Request())
    driving.engine.dialer = trusting(server.server_address)
    done = driving.until(completed(4))
    latencies = [end - sent for batch in done.batches for sent, end in zip(batch.sent_ns, batch.end_ns, strict=True)]
    assert latencies[0] >= 150_000_000
    assert min(latencies[1:]) < 150_000_000


# Kept connections that end


def ending(*answers: int, then: Behaviour = behave.closed_early) -> Behaviour:
    """Answers so many requests on a connection (in turn), then serves it as the other behaviour does."""
    turns = itertools.cycle(answers)

    def serve(peer: socket.socket) -> Iterator[None]:
        for _ in range(next(turns)):
            peer.recv(65536)
            peer.sendall(HELLO)
            yield
        peer.recv(65536)
        yield from then(peer)

    return serve


def silent_end(_: socket.socket) -> Iterator[None]:
    yield from ()


def test_the_clock_of_a_request_that_is_sent_once_more_goes_on(stand_in: StartServer, drive: Drive) -> None:
    def late_end(_: socket.socket) -> Iterator[None]:
        threading.Event().wait(0.1)
        yield from ()

    server = stand_in(ending(1, then=late_end))
    done = drive(server.server_address, Request(), retry=True).until(completed(4))
    assert done.failures == {}
    retried = [start_ns for batch in done.batches for start_ns in batch.retried_ns]
    slow = [
        sent_ns
        for batch in done.batches
        for sent_ns, end_ns in zip(batch.sent_ns, batch.end_ns, strict=True)
        if end_ns - sent_ns >= 100_000_000
    ]
    assert slow == retried[: len(slow)]
    assert len(slow) >= done.completed - 1


def test_a_request_is_sent_once_more_and_not_again(stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(ending(1, 0, then=silent_end))
    done = drive(server.server_address, Request(), retry=True).until(failed(3))
    assert set(done.failures) == {"closed early"}
    assert sum(len(batch.retried_ns) for batch in done.batches) == done.failures.total()
    assert server.connections == 2 * done.failures.total() + (done.completed > done.failures.total())


def test_a_deadline_counts_from_the_first_send(stand_in: StartServer, drive: Drive) -> None:
    def late_end(_: socket.socket) -> Iterator[None]:
        threading.Event().wait(0.3)
        yield from ()

    server = stand_in(behave.in_turn(ending(1, then=late_end), behave.hang))
    driving = drive(server.server_address, Request(), retry=True, deadline_s=0.5)
    done = driving.until(failed(1))
    assert set(done.failures) == {"timeout"}
    assert done.failed_ns[0] < 750_000_000


class CutLink(WebLink):
    """Ends its side of a kept connection just before each exchange, so that nothing can be sent there."""

    __slots__ = ()

    def begin(self) -> None:
        if isinstance(self.connection, _socket.socket) and self.connection.fileno() >= 0:
            self.connection.shutdown(socket.SHUT_WR)
        super().begin()


@pytest.mark.parametrize("retry", [True, False])
def test_a_request_of_which_nothing_could_be_sent_goes_on_a_new_connection_and_is_no_retry(
    retry: bool, stand_in: StartServer, drive: Drive
) -> None:
    server = stand_in(reading(HELLO))
    driving = drive(server.server_address, Request(), clients=0)
    request = Request.made(method="POST", payload=1, body=b"").encode("h")
    done = driving.link(lambda engine: CutLink(engine, request, retry=retry)).until(completed(3))
    assert done.failures == {}
    assert not any(batch.retried_ns for batch in done.batches)
    assert server.connections == done.completed


class Leaving:
    """Answers three requests on a connection and closes it without having said so; counts what it has done."""

    def __init__(self, *answers: bytes) -> None:
        self.done = threading.Semaphore(0)
        self._answers = itertools.cycle(answers)

    def __call__(self, peer: socket.socket) -> Iterator[None]:
        for number in range(3):
            if not peer.recv(65536):
                return
            peer.sendall(next(self._answers))
            if number == 2:
                peer.shutdown(socket.SHUT_WR)
            self.done.release()
            yield


@pytest.mark.parametrize("answers", [(HELLO,), (HELLO, OK + b"Content-Length: 0\r\n\r\n")])
def test_nothing_is_sent_where_the_end_has_come_with_the_answer(
    answers: tuple[bytes, ...], stand_in: StartServer, drive: Drive
) -> None:
    leaving = Leaving(*answers)

    class WaitingLink(WebLink):
        __slots__ = ()

        def begin(self) -> None:
            super().begin()
            assert leaving.done.acquire(timeout=10)

    server = stand_in(leaving)
    request = Request.made(method="POST", payload=1, body=b"").encode("h")
    driving = drive(server.server_address, Request(), clients=0)
    done = driving.link(lambda engine: WaitingLink(engine, request)).until(completed(12))
    assert done.failures == {}
    assert server.connections == -(-done.completed // 3)


def test_nor_is_a_line(stand_in: StartServer, drive: Drive) -> None:
    leaving = Leaving(b"line\n")

    class WaitingLink(EchoLink):
        __slots__ = ()

        def begin(self) -> None:
            super().begin()
            assert leaving.done.acquire(timeout=10)

    server = stand_in(leaving)
    driving = drive(server.server_address, Request(), clients=0)
    done = driving.link(lambda engine: WaitingLink(engine, b"line\n", 100)).until(completed(12))
    assert done.failures == {}
    assert server.connections == -(-done.completed // 3)
