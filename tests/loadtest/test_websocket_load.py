"""The websocket load: the link against a real server and against bad ones, and whole runs of locust and the lab."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.server import ServerConnection

from loadtest.generator.dialer import Dialer, tls_context
from loadtest.generator.link import OpenModel, constant
from loadtest.generator.websocket import BINARY, CLOSE, PING, PONG, TEXT, Handshake, WebSocketLink, frame
from loadtest.measure.server import WrongReplyError, check_files, exchange
from loadtest.plan import addresses
from loadtest.plan import file as planfile
from loadtest.plan.plan import Load, Plan, PlanError, Server
from tests.loadtest import stand_in as behave
from tests.loadtest.driving import Driving
from tests.loadtest.records import rounds_in
from tests.loadtest.websocket_server import WebSocketServer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.loadtest.generator import Generator
    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]
    StartWebSocket = Callable[..., WebSocketServer]
    Drive = Callable[..., Driving]

pytestmark = pytest.mark.slow

SLOW = pytest.mark.slow
CERTIFICATE = Path(__file__).with_name("certificate.pem")
ROOT = Path(__file__).parents[2]
HELLO = b"hello"
OPENING = Handshake.made(path="/chat?room=1", headers=("X-One: 1",), host="h:80")
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    + OPENING.accept
    + b"\r\n\r\n"
)
REPLY = frame(TEXT, HELLO)


@pytest.fixture
def web_socket() -> Iterator[StartWebSocket]:
    """Start a real server: `web_socket(handler, tls=context).address`."""
    servers: list[WebSocketServer] = []

    def start(*args: Any, **keywords: Any) -> WebSocketServer:
        servers.append(WebSocketServer(*args, max_size=None, **keywords))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


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


def completed(count: int) -> Callable[[Driving], bool]:
    return lambda driving: driving.completed >= count


def failed(count: int) -> Callable[[Driving], bool]:
    return lambda driving: driving.failures.total() >= count


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


def secured(name: str = "localhost") -> tuple[ssl.SSLContext, tuple[ssl.SSLContext, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context, (tls_context(insecure=False, ca=str(CERTIFICATE)), name)


@pytest.mark.parametrize("size", [5, 300_000])
def test_the_same_through_tls(size: int, web_socket: StartWebSocket, drive: Drive) -> None:
    ours, theirs = secured()
    server = web_socket(tls=ours)
    driving = drive(server.address, b"x" * size, exchanges=4, clients=2)
    driving.engine.dialer = Dialer(socket.AF_INET, server.address, tls=theirs)
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


# The proof that a server is ready, and plans


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


def test_a_load_may_have_its_own_scenario(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        textwrap.dedent("""
            scenario = "http"
            [[server]]
            name = "one"
            command = "serve {port}"
            [[load]]
            name = "hello"
            [[load]]
            name = "talk"
            scenario = "websocket"
            path = "/ws"
            message = "binary"
            tls = true
            """)
    )
    hello, talk = planfile.read(file, {}).loads
    assert (hello.scenario, talk.scenario, talk.message) == ("http", "websocket", "binary")
    assert talk.describe().startswith("websocket /ws, 64 bytes of binary, TLS, 64 connections, ")


def test_a_header_of_the_handshakes_own_is_refused_before_anything_runs(tmp_path: Path) -> None:
    load = Load(name="x", scenario="websocket", headers=("Sec-WebSocket-Key: x",))
    plan = Plan(name="p", servers=(Server(name="one", command="serve {port}"),), loads=(load,))
    with pytest.raises(PlanError, match="load 'x': header Sec-WebSocket-Key cannot be set for websocket"):
        check_files(plan, tmp_path)


# Whole runs


def brief(engine: str) -> tuple[str, ...]:
    clients = ("--connections", "3") if engine == "fast" else ("--users", "3", "--spawn-rate", "3")
    return ("--scenario", "websocket", "--engine", engine, "--run-time", "1s", *clients)


@pytest.mark.parametrize("engine", ["fast", pytest.param("readable", marks=SLOW)])
@pytest.mark.parametrize("options", [(), pytest.param(("--exchanges", "4", "--message", "binary"), marks=SLOW)])
def test_both_engines_do_what_the_options_say(
    engine: str, options: tuple[str, ...], web_socket: StartWebSocket, generate: Generate
) -> None:
    sent: list[str | bytes] = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            sent.append(message)
            await connection.send(message)

    server = web_socket(handler)
    host = f"ws://127.0.0.1:{server.address[1]}"
    asked = ("--path", "/a?b", "--header", "X-One: 1", "--payload", "30")
    run = generate("--host", host, *brief(engine), *asked, *options).wait()
    result = run.result()
    assert (result["scenario"], result["failures"], result["censored"]) == ("websocket", {}, 0)
    assert result["completed"] > 10
    assert result["completed"] <= len(sent)
    assert {(type(message), len(message)) for message in sent} == {(bytes if "binary" in options else str, 30)}
    assert {path for path, _ in server.requests} == {"/a?b"}
    assert {head["X-One"] for _, head in server.requests} == {"1"}
    assert len(server.requests) >= len(sent) / 4 if options else len(server.requests) == 3
    eventually(lambda: server.closed == [1000] * len(server.requests), within_s=10, what="clean ends")
    assert "WS       /a?b" in run.log
    assert "CONNECT  /a?b" in run.log


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_both_engines_count_a_refusal(engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.web)
    run = generate("--host", server.address, *brief(engine)).wait(exit_code=1)
    assert set(run.result()["failures"]) == {"status 200"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_both_engines_speak_tls(engine: str, web_socket: StartWebSocket, generate: Generate) -> None:
    server = web_socket(tls=secured()[0])
    host = f"wss://127.0.0.1:{server.address[1]}"
    run = generate("--host", host, *brief(engine), "--ca", str(CERTIFICATE), "--payload", "100000").wait()
    assert run.result()["failures"] == {}
    assert run.result()["completed"] > 10


@pytest.mark.slow
def test_both_engines_speak_on_a_unix_socket(web_socket: StartWebSocket, generate: Generate, tmp_path: Path) -> None:
    server = web_socket(path=str(tmp_path / "socket"))
    for engine in ("fast", "readable"):
        result = generate("--host", f"unix:{server.address}", *brief(engine)).wait().result()
        assert (result["failures"], result["completed"] > 10) == ({}, True)


@pytest.mark.slow
def test_several_generators_keep_to_a_rate(web_socket: StartWebSocket, generate: Generate) -> None:
    server = web_socket()
    several = ("--scenario", "websocket", "--engine", "fast", "--connections", "5", "--processes", "2")
    host = f"ws://127.0.0.1:{server.address[1]}"
    run = generate("--host", host, *several, "--rate", "200", "--run-time", "2s", "--window", "1.5").wait()
    result = run.result()
    assert (result["failures"], result["connections"], len(server.requests)) == ({}, 5, 5)
    assert 180 < result["arrivals"]["offered"] < 330  # of 300; one alone offers half of it


def test_a_header_that_is_the_handshakes_own_is_bad_usage(generate: Generate) -> None:
    run = generate(*brief("fast"), "--header", "Upgrade: h2c").wait(exit_code=2)
    assert "header Upgrade cannot be set for websocket" in run.log


ECHO = """
    import asyncio, sys
    from websockets.asyncio.server import serve, unix_serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async def main():
        where = sys.argv[1:]
        server = unix_serve(echo, *where) if len(where) == 1 else serve(echo, where[0], int(where[1]))
        async with server as running:
            await running.serve_forever()

    asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["{host} {port}", pytest.param("{unix}", marks=SLOW)])
def test_the_lab_measures_a_server_of_a_library(where: str, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(textwrap.dedent(ECHO))
    argv = [sys.executable, "-m", "loadtest", "run", "--scenario", "websocket", "--rounds", "1", "--connections", "4",
            "--duration", "0.5", "--warmup", "0.2", "--path", "/x", "--payload", "1000",
            "--server", f"one={{python}} server.py {where}", "--out", "out"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    (done,) = rounds_in(tmp_path / "out")
    assert (done["error"], done["client"]["failures"]) == ("", {})
    assert done["client"]["completed"] > 10
