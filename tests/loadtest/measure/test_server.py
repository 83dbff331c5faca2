"""One exchange of the load itself proves that a server is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtest.measure.server import WrongReplyError, exchange
from loadtest.plan import addresses
from loadtest.plan.plan import Load
from tests.loadtest import stand_in as behave
from tests.loadtest.websocket_server import WebSocketServer
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    StartWebSocket = Callable[..., WebSocketServer]

pytestmark = pytest.mark.slow


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
