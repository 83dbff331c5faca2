"""The link of the websocket load, against a real server and against bad ones."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.server import ServerConnection

from loadtest.generator.dialer import Dialer, tls_context
from loadtest.generator.link import OpenModel, constant
from loadtest.generator.websocket import BINARY, CLOSE, PING, PONG, TEXT, Handshake, WebSocketLink, frame
from tests.loadtest import stand_in as behave
from tests.loadtest.generator.driving import Driving, completed, failed
from tests.loadtest.websocket_server import WebSocketServer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    StartWebSocket = Callable[..., WebSocketServer]
    Drive = Callable[..., Driving]

pytestmark = pytest.mark.slow

HELLO = b"hello"
OPENING = Handshake.made(path="/chat?room=1", headers=("X-One: 1",), host="h:80")
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    + OPENING.accept
    + b"\r\n\r\n"
)
REPLY = frame(TEXT, HELLO)


@pytest.fixture
def drive() -> Iterator[Drive]:
    """Drive some clients; their sockets are closed with the test."""
    made: list[Driving] = []

    def start(
        address: Any, payload: bytes = HELLO, *, opcode: int = TEXT, exchanges: int = 0, clients: int = 1, **rest: Any
    ) -> Driving:
        made.append(Driving(address, **rest))
        for _ in range(clients):
            made[-1].link(lambda engine: WebSocketLink(engine, OPENING, opcode, payload, exchanges))
        return made[-1]

    yield start
    for driving in made:
        driving.close()


def connects(driving: Driving) -> int:
    return sum(len(batch.connects) for batch in driving.batches)


# The link, with a server that does as it should


@pytest.mark.smoke
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [0, 5, 126, 70_000, 3_000_000])
def test_messages_come_back_on_a_kept_connection(
    opcode: int, size: int, web_socket: StartWebSocket, drive: Drive
) -> None:
    kinds: set[type] = set()

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            kinds.add(type(message))
            await connection.send(message)

    server = web_socket(handler)
    done = drive(server.address, b"x" * size, opcode=opcode, clients=2).until(completed(6))
    assert (done.failures, connects(done), len(server.requests)) == ({}, 2, 2)
    assert done.received == done.completed * len(frame(opcode, b"x" * size))
    assert kinds == {str if opcode == TEXT else bytes}
    path, head = server.requests[0]
    assert (path, head["X-One"], head["Host"]) == ("/chat?room=1", "1", "h:80")
    eventually(lambda: server.closed == [1000, 1000], within_s=10, what="two clean ends")


def test_a_connection_serves_as_many_messages_as_it_may(web_socket: StartWebSocket, drive: Drive) -> None:
    server = web_socket()
    done = drive(server.address, exchanges=3).until(completed(7))
    opened = -(-done.completed // 3)
    assert (done.failures, connects(done), len(server.requests)) == ({}, opened, opened)
    eventually(lambda: server.closed == [1000] * opened, within_s=10, what="clean ends")


def test_a_ping_is_answered(web_socket: StartWebSocket, drive: Drive) -> None:
    pongs = 0

    async def handler(connection: ServerConnection) -> None:
        nonlocal pongs
        async for message in connection:
            pong = await connection.ping()
            await connection.send(message)
            await pong
            pongs += 1

    done = drive(web_socket(handler, ping_interval=None).address).until(completed(20))
    assert (done.failures, connects(done)) == ({}, 1)
    assert pongs >= 19


def test_a_reply_in_fragments_is_the_same_reply(web_socket: StartWebSocket, drive: Drive) -> None:
    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            assert isinstance(message, str)
            await connection.send([message[:2], message[2:]])

    done = drive(web_socket(handler).address).until(completed(20))
    assert (done.failures, connects(done)) == ({}, 1)


def test_a_server_that_closes_between_messages_is_no_failure(web_socket: StartWebSocket, drive: Drive) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(await connection.recv())
        await connection.close(1001)

    server = web_socket(handler)
    driving = drive(server.address)
    driving.engine.model = OpenModel(driving.engine, constant(time.perf_counter_ns(), 20), 10)
    done = driving.until(completed(5))
    assert done.failures == {}
    assert connects(done) == len(server.requests) == done.completed


@pytest.mark.parametrize("size", [5, 300_000])
def test_the_same_through_tls(size: int, web_socket: StartWebSocket, drive: Drive) -> None:
    server = web_socket(tls=behave.certified())
    driving = drive(server.address, b"x" * size, exchanges=4, clients=2)
    driving.engine.dialer = Dialer(
        socket.AF_INET, server.address, tls=(tls_context(insecure=False, ca=str(behave.CERTIFICATE)), "localhost")
    )
    done = driving.until(completed(10))
    assert done.failures == {}
    assert connects(done) == len(server.requests)
    eventually(lambda: server.closed == [1000] * len(server.requests), within_s=10, what="clean ends")


def test_the_same_on_a_unix_socket(web_socket: StartWebSocket, drive: Drive, tmp_path: Path) -> None:
    server = web_socket(path=str(tmp_path / "socket"))
    done = drive(server.address).until(completed(10))
    assert (done.failures, connects(done)) == ({}, 1)


# The link, with servers that do not


def saying(*answers: bytes, opening: bytes = AGREED) -> Behaviour:
    """Agrees, then answers each piece that comes with the next of these; closes after the last."""

    def serve(peer: socket.socket) -> Iterator[None]:
        peer.recv(65536)
        peer.sendall(opening)
        for answer in answers:
            peer.recv(65536)
            peer.sendall(answer)
            yield

    return serve


def test_what_comes_after_a_reply_is_not_about_it(stand_in: StartServer, drive: Drive) -> None:
    """A close, another message, nonsense: the exchange went well, and the next one has a connection of its own."""
    for after in (frame(CLOSE, b""), REPLY, b"\xff\xff", frame(PING, b"") + frame(PONG, b"x")):
        server = stand_in(saying(REPLY + after, *[REPLY] * 3))
        done = drive(server.server_address).until(completed(6))
        assert set(done.failures) <= {"closed early", "reset"}, after  # the server's end; reset with our pong unread
        assert done.completed >= 6


@pytest.mark.parametrize(
    ("behaviour", "cause", "while_connecting"),
    [
        (saying(opening=b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), "status 403", True),
        (saying(opening=AGREED.replace(OPENING.accept, b"x")), "wrong handshake", True),
        (saying(opening=AGREED[:-2]), "closed early", True),
        (saying(b"", opening=AGREED + REPLY), "wrong reply", True),  # an answer before the question
        (behave.reset, "reset", True),
        (behave.hang, "timeout", True),
        (saying(frame(TEXT, b"hullo")), "wrong reply", False),
        (saying(frame(BINARY, HELLO)), "wrong reply", False),
        (saying(frame(TEXT, HELLO + b"!")), "wrong reply", False),
        (saying(frame(TEXT, HELLO, b"\0\0\0\0")), "wrong frame", False),
        (saying(frame(CLOSE, (1011).to_bytes(2) + b"oh")), "close 1011", False),
        (saying(REPLY[:3]), "closed early", False),
    ],
)
def test_failures_by_cause(
    behaviour: Behaviour, cause: str, while_connecting: bool, stand_in: StartServer, drive: Drive
) -> None:
    server = stand_in(behaviour)
    done = drive(server.server_address, deadline_s=0.3 if cause == "timeout" else 10.0).until(failed(3))
    assert (set(done.failures), done.completed) == ({cause}, 0)
    assert done.failed_connects == (done.failures.total() if while_connecting else 0)
    assert server.connections >= 3
