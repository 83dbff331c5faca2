"""One exchange of the load itself proves that a server is ready."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from loadtest.measure.child import Interrupt
from loadtest.measure.server import ALONE, RunningServer, WrongReplyError, alone_ns, exchange
from loadtest.plan import addresses
from loadtest.plan.plan import Load, Server
from tests.loadtest import stand_in as behave
from tests.loadtest.websocket_server import WebSocketServer
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    StartWebSocket = Callable[..., WebSocketServer]

pytestmark = pytest.mark.slow

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"


def test_one_exchange_proves_that_a_server_is_ready(web_socket: StartWebSocket) -> None:
    server = web_socket()
    load = Load(name="x", scenario="websocket", path="/a", payload=70_000, message="binary")
    exchange(load, addresses.endpoint(f"127.0.0.1:{server.address[1]}"), ROOT, 10)
    assert server.requests[0][0] == "/a"
    eventually(lambda: server.closed == [1000], within_s=10, what="a clean end")


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (behave.web, "answered b'HTTP/1.1 200 OK.*: status 200; does it echo WebSocket messages at /?"),
        (behave.talkback, "answered b'hello from prefork.*: closed early; does it"),
    ],
)
def test_a_server_of_another_protocol_is_said_so(behaviour: Behaviour, why: str, stand_in: StartServer) -> None:
    server = stand_in(behaviour)
    with pytest.raises(WrongReplyError, match=why):
        exchange(Load(name="x", scenario="websocket"), addresses.endpoint(server.address), ROOT, 1.0)


def beginning(answer: bytes) -> Behaviour:
    """Sends that much, and no more until the client gives up."""

    def serve(peer: socket.socket) -> Iterator[None]:
        peer.sendall(answer)
        yield from behave.hang(peer)

    return serve


@pytest.mark.parametrize(
    ("scenario", "answer"),
    [
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-"),
        ("echo", b"rea"),
        ("talkback", behave.GREETING),
        ("websocket", b"HTTP/1.1 101 Switching Protocols\r\n"),
    ],
)
def test_an_answer_that_does_not_end_is_shown(scenario: str, answer: bytes, stand_in: StartServer) -> None:
    server = stand_in(beginning(answer))
    with pytest.raises(TimeoutError, match=r"the answer does not end; it begins with ") as raised:
        exchange(Load(name="x", scenario=scenario), addresses.endpoint(server.address), ROOT, 0.5)
    assert repr(answer[:80]) in str(raised.value)


def test_an_endless_answer_is_a_wrong_reply_at_once(stand_in: StartServer) -> None:
    server = stand_in(beginning(b"x" * 200_000))
    with pytest.raises(WrongReplyError, match=r"is talkback its scenario\?"):
        exchange(Load(name="x"), addresses.endpoint(server.address), ROOT, 10)


def test_lines_that_end_with_lf_alone_are_an_answer(stand_in: StartServer) -> None:
    server = stand_in(behave.responding(b"HTTP/1.1 200 OK\nContent-Length: 6\nContent-Length: 6\n\nhello\n", good=True))
    exchange(Load(name="x", scenario="http"), addresses.endpoint(server.address), ROOT, 2)


@pytest.mark.parametrize(
    ("load", "behaviour", "connections"),
    [
        (Load(name="x", scenario="talkback"), behave.talkback, ALONE),
        (Load(name="x", scenario="echo"), behave.echo, 1),
        (Load(name="x", scenario="http"), behave.web, 1),
        (Load(name="x", scenario="http", keep_alive=False), behave.responding(HELLO, once=True, good=True), ALONE),
    ],
)
def test_a_client_alone_keeps_its_connection_as_the_load_does(
    load: Load, behaviour: Behaviour, connections: int, stand_in: StartServer
) -> None:
    server = stand_in(behaviour)
    took_ns = alone_ns(load, addresses.endpoint(server.address), ROOT, 10)
    assert took_ns is not None
    assert 0 < took_ns < 1e9
    eventually(lambda: (server.connections, server.answered) == (connections, ALONE), within_s=10)


def test_a_client_alone_sends_web_socket_messages(web_socket: StartWebSocket) -> None:
    server = web_socket()
    load = Load(name="x", scenario="websocket", path="/a")
    took_ns = alone_ns(load, addresses.endpoint(f"127.0.0.1:{server.address[1]}"), ROOT, 10)
    assert took_ns is not None
    assert len(server.requests) == 1


def test_a_client_alone_takes_the_middle_of_its_times_and_not_longer_than_a_second(stand_in: StartServer) -> None:
    server = stand_in(behave.slow(0.4))
    took_ns = alone_ns(Load(name="x", scenario="talkback"), addresses.endpoint(server.address), ROOT, 10)
    assert took_ns is not None
    assert took_ns >= 4e8
    assert server.connections <= 3


def test_how_long_a_client_alone_takes_is_not_known_if_nobody_answers(stand_in: StartServer) -> None:
    load = Load(name="x", scenario="http")
    for behaviour in (behave.hang, behave.reset, behave.closed_early):
        assert alone_ns(load, addresses.endpoint(stand_in(behaviour).address), ROOT, 0.05) is None


def test_one_path_of_several_says_nothing_of_the_others(stand_in: StartServer, tmp_path: Path) -> None:
    load = Load(name="x", scenario="http")
    server = Server(name="x", attach=stand_in(behave.web).address)
    with Interrupt() as interrupt:
        running = RunningServer(server, folder=ROOT, log=tmp_path / "log", scratch=str(tmp_path), interrupt=interrupt)
        assert running.alone_ns(load)
        for paths in (("/a", "/b"), "@paths.txt"):
            assert running.alone_ns(replace(load, path=paths)) is None
