"""A server that closes kept connections: both engines send the same requests once more, and count alike."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.loadtest import stand_in as behave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from websockets.asyncio.server import ServerConnection

    from tests.loadtest.locust_process import Generator
    from tests.loadtest.stand_in import Behaviour, StandIn
    from tests.loadtest.websocket_server import WebSocketServer

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]

pytestmark = pytest.mark.slow

SLOW = pytest.mark.slow
CLIENTS = 2


def brief(engine: str) -> tuple[str, ...]:
    """Two clients for a second."""
    clients = ("--connections", str(CLIENTS)) if engine == "fast" else ("--users", str(CLIENTS), "--spawn-rate", "2")
    return ("--scenario", "http", "--engine", engine, "--run-time", "1s", *clients)


class Closing:
    """Answers so many requests on a connection (in turn), and ends it when it has got the next one."""

    def __init__(self, *answers: int, with_a_reset: bool = False, began: bytes = b"") -> None:
        self.closed = 0  # requests that were read and not answered
        self._answers = itertools.cycle(answers)
        self._reset = with_a_reset
        self._began = began
        self._lock = threading.Lock()

    def __call__(self, peer: socket.socket) -> Iterator[None]:
        with self._lock:
            answers = next(self._answers)
        requests = peer.makefile("rb")
        for number in itertools.count():
            if not requests.readline():
                return
            while requests.readline() not in (b"\r\n", b""):
                continue
            if number == answers:
                break
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
            yield
        with self._lock:
            self.closed += 1
        peer.sendall(self._began)
        if self._reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def check_counts(result: dict[str, Any], server: StandIn, failures: dict[str, int]) -> None:
    """Each answer was counted once, whenever its exchange began."""
    assert result["completed"] + result["outside"]["completed"] == server.answered > 10
    counted = sum(result["failures"].values())
    assert set(result["failures"]) == set(failures)
    assert counted + result["outside"]["failed"] == sum(failures.values())


@pytest.mark.parametrize("engine", ["fast", "readable"])
@pytest.mark.parametrize("with_a_reset", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("goodbye", [None, pytest.param(True, marks=SLOW), pytest.param(False, marks=SLOW)])
def test_a_request_whose_kept_connection_ends_is_sent_once_more(
    engine: str, with_a_reset: bool, goodbye: bool | None, stand_in: StartServer, generate: Generate
) -> None:
    if with_a_reset and goodbye:
        pytest.skip("no goodbye comes with a reset")
    closing = Closing(3, with_a_reset=with_a_reset)
    server = stand_in(closing if goodbye is None else behave.secure(closing, goodbye=goodbye))
    scheme = "http" if goodbye is None else "https"
    result = generate("--host", f"{scheme}://{server.address}", *brief(engine), "--insecure").wait().result()
    check_counts(result, server, {})
    beyond = sum(result["outside"].values())  # exchanges that began after the window
    assert closing.closed - beyond <= result["retried"] <= closing.closed


@pytest.mark.parametrize("engine", ["fast", "readable"])
@pytest.mark.parametrize(
    ("options", "with_a_reset", "began", "cause"),
    [
        (("--no-retry",), False, b"", "closed early"),
        pytest.param(("--no-retry",), True, b"", "reset", marks=SLOW),
        pytest.param(("--method", "POST", "--payload", "0"), False, b"", "closed early", marks=SLOW),
        pytest.param((), False, b"HTTP/1.1 200 OK\r\n", "closed early", marks=SLOW),
    ],
)
def test_what_may_not_be_sent_twice_is_a_failure(
    engine: str,
    options: tuple[str, ...],
    with_a_reset: bool,
    began: bytes,
    cause: str,
    stand_in: StartServer,
    generate: Generate,
) -> None:
    closing = Closing(3, with_a_reset=with_a_reset, began=began)
    server = stand_in(closing)
    result = generate("--host", server.address, *brief(engine), *options).wait(exit_code=1).result()
    check_counts(result, server, {cause: closing.closed})
    assert result["retried"] == 0


@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_a_new_connection_that_ends_is_a_failure(engine: str, stand_in: StartServer, generate: Generate) -> None:
    closing = Closing(3, 0)  # each second connection ends before it has answered anything
    server = stand_in(closing)
    result = generate("--host", server.address, *brief(engine)).wait(exit_code=1).result()
    assert result["retried"] > 10
    assert set(result["failures"]) == {"closed early"}
    ended = result["failures"]["closed early"] + result["outside"]["failed"] + result["retried"]
    assert closing.closed - sum(result["outside"].values()) <= ended <= closing.closed
    assert result["completed"] + result["outside"]["completed"] == server.answered


class Impatient:
    """Answers each line or request, and closes a connection on which nothing comes for some ms."""

    def __init__(self, answer: bytes = b"") -> None:
        self.closed = 0
        self._answer = answer
        self._lock = threading.Lock()

    def __call__(self, peer: socket.socket) -> Iterator[None]:
        came = b""
        peer.settimeout(10)
        while data := peer.recv(65536):
            came += data
            if not came.endswith(b"\r\n\r\n" if self._answer else b"\n"):
                continue
            peer.sendall(self._answer or came)
            came = b""
            yield
            peer.settimeout(0.01)
            try:
                peer.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                with self._lock:
                    self.closed += 1
                return
            peer.settimeout(10)


SLOWLY = """
    from locust import constant
    from loadtest.locustfile import EchoUser, FastUser, WebSocketUser, WebUser

    EchoUser.wait_time = WebSocketUser.wait_time = WebUser.wait_time = constant(0.08)
"""


@pytest.mark.parametrize("engine", ["fast", "readable"])
@pytest.mark.parametrize("scenario", ["http", "echo"])
def test_a_connection_that_ends_between_two_exchanges_costs_none(
    engine: str, scenario: str, stand_in: StartServer, generate: Generate, tmp_path: Path
) -> None:
    impatient = Impatient(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" if scenario == "http" else b"")
    server = stand_in(impatient)
    (tmp_path / "slowly.py").write_text(textwrap.dedent(SLOWLY))
    options = (*brief(engine), "--scenario", scenario, *(("--rate", "20") if engine == "fast" else ()))
    run = generate("--host", server.address, *options, locustfile=tmp_path / "slowly.py").wait()
    result = run.result()
    assert (result["failures"], result["retried"]) == ({}, 0)
    assert result["completed"] + result["outside"]["completed"] == server.answered > 5
    assert impatient.closed > 3


async def impatient(connection: ServerConnection) -> None:
    """Sends each message back, then a ping, and closes when nothing comes for some ms."""
    await connection.send(await connection.recv())
    while True:
        await connection.ping()
        async with asyncio.timeout(0.01):
            message = await connection.recv()
        await connection.send(message)


@pytest.mark.parametrize("engine", ["fast", "readable"])
@pytest.mark.parametrize("secure", [False, pytest.param(True, marks=SLOW)])
def test_a_websocket_that_is_closed_between_two_messages_costs_none(
    engine: str, secure: bool, web_socket: Callable[..., WebSocketServer], generate: Generate, tmp_path: Path
) -> None:
    async def serve(connection: ServerConnection) -> None:
        with contextlib.suppress(TimeoutError):
            await impatient(connection)
        await connection.close(1001)

    server = web_socket(serve, tls=behave.certified() if secure else None)
    (tmp_path / "slowly.py").write_text(textwrap.dedent(SLOWLY))
    options = (*brief(engine), "--scenario", "websocket", *(("--rate", "20") if engine == "fast" else ()))
    host = f"{'wss' if secure else 'ws'}://127.0.0.1:{server.address[1]}"
    run = generate("--host", host, "--insecure", *options, locustfile=tmp_path / "slowly.py").wait()
    result = run.result()
    assert (result["failures"], result["retried"]) == ({}, 0)
    assert result["completed"] > 5
    assert len(server.requests) > 5


class Leaving:
    """Answers three requests or lines on a connection and closes it, without having said so."""

    def __init__(self, answer: bytes = b"") -> None:
        self._answer = answer

    def __call__(self, peer: socket.socket) -> Iterator[None]:
        for _ in range(3):
            if not (came := peer.recv(65536)):
                return
            peer.sendall(self._answer or came)
            yield


@pytest.mark.timing
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_connections_that_close_after_an_answer_cost_no_exchange(
    engine: str, stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(Leaving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    result = generate("--host", server.address, *brief(engine)).wait().result()
    check_counts(result, server, {})
    assert result["retried"] < result["completed"] / 4  # mostly the end is seen before the next request is sent


@pytest.mark.timing
@pytest.mark.parametrize("engine", ["fast", "readable"])
@pytest.mark.parametrize("scenario", ["http", "echo"])
def test_nor_do_they_where_nothing_may_be_sent_twice(
    engine: str, scenario: str, stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(Leaving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" if scenario == "http" else b""))
    options = ("--scenario", scenario, "--method", "POST", "--payload", "1")
    run = generate("--host", server.address, *brief(engine), *options, "--exit-code-on-error", "0").wait()
    result = run.result()
    failed = sum(result["failures"].values())
    assert result["completed"] > 100
    # One request of three meets the end; the few that are sent before it is there are failures.
    assert failed < result["completed"] / 4
    assert set(result["failures"]) <= {"closed early", "reset"}
