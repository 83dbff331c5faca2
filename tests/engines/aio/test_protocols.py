"""Unmodified `asyncio.Protocol` classes and factories: what they meet, and what is counted of them."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import abort, dial, exchange, read_exactly, read_to_end, talkback_reply
from tests.support.server import APPS, run
from tests.support.tls import TLS, trusting

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
DOORS = pytest.mark.parametrize("accept", ["shared", "per-worker"])
ONE = ("--workers", "1")
APP_FAILED = 4


def protocol(name: str) -> str:
    return f"{APPS / 'protocols.py'}:{name}"


def counted(server: RunningServer, **counts: int) -> None:
    """Stop the server, and find these counts in its last words."""
    assert server.stop() == 0
    for name, count in counts.items():
        assert f" {name}={count} " in server.log, name


@LOOPS
@DOORS
@pytest.mark.parametrize("name", ["Echo", "Slotted", "Buffered", "Guarded", "Last"])
def test_what_a_protocol_writes_comes_back(shared: Shared, name: str, accept: str, loop: str) -> None:
    server = shared(protocol(name), "--workers", "2", "--accept", accept, "--loop", loop)
    data = bytes(range(256)) * 1_000
    for _ in range(5):
        with dial(server.address) as client:
            client.sendall(data)
            assert read_exactly(client, len(data)) == data
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b""


@pytest.mark.parametrize(("name", "said"), [("make", b"function"), ("make_partly", b"partial")])
def test_a_factory(shared: Shared, name: str, said: bytes) -> None:
    server = shared(protocol(name), "--interface", "protocol", *ONE)
    assert exchange(server.address, b"echo", half_close=True) == b"made by a " + said + b"\necho"


def test_a_partial_of_a_class_needs_no_word_on_what_it_is(shared: Shared) -> None:
    server = shared(protocol("make_partly"), *ONE)
    assert exchange(server.address, b"echo", half_close=True) == b"made by a partial\necho"


@LOOPS
def test_a_class_without_subclasses_is_counted_and_missed_when_it_ends(serve: Serve, loop: str) -> None:
    server = serve(protocol("Last"), *ONE, "--max-connections", "1", "--loop", loop)
    for _ in range(2):
        assert exchange(server.address, b"x", half_close=True) == b"x"
    with dial(server.address) as client:
        client.sendall(b"y")
        assert read_exactly(client, 1) == b"y"
    counted(server, accepted=3, completed=3, errors=0)


@pytest.mark.smoke
@LOOPS
@DOORS
def test_talkback_as_a_protocol(shared: Shared, accept: str, loop: str) -> None:
    server = shared(protocol("Talk"), "--workers", "2", "--accept", accept, "--loop", loop)
    assert [exchange(server.address, b"hi\n") for _ in range(50)] == [HI] * 50


def test_a_half_close_is_the_protocols_to_judge(shared: Shared) -> None:
    server = shared(protocol("HalfClosed"), *ONE)
    assert exchange(server.address, b"data\n", half_close=True) == b"data\nand that was all\n"


@LOOPS
@pytest.mark.parametrize("accept", ["shared", "per-worker"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("RaisesAtFirst", "connection_made"),
        ("LastFails", "connection_made"),
        ("RaisesOnData", "data_received"),
        ("RaisesAtEnd", "eof_received"),
        ("RaisesAtLast", "connection_lost"),
        ("RaisesInBuffer", "get_buffer"),
        ("Obey", "an answer"),
    ],
)
def test_what_a_protocol_raises_is_logged_once_a_second_and_counted(
    serve: Serve, name: str, place: str, loop: str, accept: str
) -> None:
    server = serve(protocol(name), *ONE, "--loop", loop, "--accept", accept, expect_traceback=True)
    for _ in range(10):
        with dial(server.address) as client:
            try:
                client.sendall(b"raise in an answer\n")
                client.shutdown(socket.SHUT_WR)
                read_to_end(client)
            except OSError:
                pass  # it ends by a reset if there is something unread
    server.wait_log(r"ERROR.*handler failed.*peer=127\.0\.0\.1:\d+ error=RuntimeError")
    server.wait_log(f"RuntimeError.*{place}")
    assert server.log.count("handler failed") <= 5
    counted(server, accepted=10, errors=10, completed=0)


@DOORS
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("make_nothing", "'NoneType', which is no protocol of a stream"),
        ("fails", "RuntimeError: in the factory"),
        ("always_the_same", "a protocol that serves another connection"),
    ],
)
def test_a_factory_that_fails_costs_the_connection_and_no_other(
    serve: Serve, name: str, said: str, accept: str
) -> None:
    server = serve(protocol(name), "--interface", "protocol", *ONE, "--accept", accept, expect_traceback=True)
    first = dial(server.address)
    first.sendall(b"x")
    if name == "always_the_same":
        assert read_exactly(first, 1) == b"x"
    for _ in range(5):
        with dial(server.address) as client:
            try:
                assert read_to_end(client) == b""
            except ConnectionResetError:
                pass
    server.wait_log(said)
    first.close()
    assert server.stop() == 0
    assert re.search(r" errors=[56] ", server.log)


@LOOPS
def test_clients_that_reset_are_told_to_the_protocol_and_are_no_errors(serve: Serve, loop: str) -> None:
    server = serve(protocol("Lost"), *ONE, "--loop", loop)
    for _ in range(5):
        client = dial(server.address)
        client.recv(100)
        abort(client)
    server.wait_log("app: lost ConnectionResetError", count=5)
    counted(server, accepted=5, client_gone=5, errors=0)


def test_a_transport_that_is_handed_on_is_missed_when_it_ends(serve: Serve) -> None:
    """Its second protocol does not tell us that the connection is over: it must not count as held for ever."""
    server = serve(protocol("Passes"), *ONE, "--max-connections", "2")
    for _ in range(6):  # three times as many as may be held
        with dial(server.address) as client:
            client.sendall(b"upgrade")
            read_exactly(client, 19)
            client.sendall(b"hi\n")
            assert read_to_end(client) == b"you said: hi\n"
    assert server.stop(within_s=15) == 0


@LOOPS
def test_the_graceful_timeout_cuts_protocols(serve: Serve, loop: str) -> None:
    server = serve(protocol("Lost"), "--workers", "2", "--graceful-timeout", "300ms", "--loop", loop)
    clients = [dial(server.address) for _ in range(6)]
    for client in clients:
        client.recv(100)
    assert server.stop(within_s=15) == 0
    assert server.log.count("app: lost") == 6
    assert sum(map(int, re.findall(r"connections cut.*count=(\d+)", server.log))) == 6
    for client in clients:
        client.close()


@LOOPS
@DOORS
def test_tls(serve: Serve, loop: str, accept: str) -> None:
    server = serve(protocol("Talk"), *ONE, *TLS, "--loop", loop, "--accept", accept)
    context = trusting()
    for _ in range(3):
        with context.wrap_socket(dial(server.address), server_hostname="127.0.0.1") as client:
            client.sendall(b"hi\n")
            assert read_to_end(client) == HI
    assert exchange(server.address, b"no handshake\n") == b""
    counted(server, completed=3, errors=0)


def test_every_kind_of_address(serve: Serve, tmp_path: Path) -> None:
    bind = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/s"]
    server = serve(protocol("Talk"), "--workers", "2", bind=bind)
    for address in server.addresses:
        assert [exchange(address, b"hi\n") for _ in range(10)] == [HI] * 10


@DOORS
def test_preload(serve: Serve, accept: str) -> None:
    server = serve(protocol("Talk"), "--workers", "2", "--preload", "--accept", accept)
    assert [exchange(server.address, b"hi\n") for _ in range(20)] == [HI] * 20


def test_idle_timeout_is_for_coroutines(serve: Serve) -> None:
    """Nobody can tell what a protocol waits for."""
    server = serve(protocol("Echo"), *ONE, "--idle-timeout", "100ms")
    with dial(server.address, timeout_s=0.7) as client:
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"still here")
        assert read_exactly(client, 10) == b"still here"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class App(asyncio.DatagramProtocol): ...", "App is no protocol of a stream"),
        ("class App(asyncio.SubprocessProtocol): ...", "App is no protocol of a stream"),
        ("class App(asyncio.BaseProtocol): ...", "App is no protocol of a stream"),
        (
            "class App(asyncio.Protocol):\n    def __init__(self, loop): ...",
            "made for each connection without arguments, but takes 1",
        ),
        (
            "import functools\nclass P(asyncio.Protocol):\n    def __init__(s, a, b): 1\nApp = functools.partial(P, 1)",
            "made for each connection without arguments, but takes 1",
        ),
        ("def App(): return asyncio.Protocol()", "--interface"),
        ("App = asyncio.Protocol()", "not callable"),
    ],
)
def test_what_cannot_serve_is_told_at_the_start(app: AppWriter, source: str, said: str) -> None:
    done = run("serve", app(f"import asyncio\n{source}\n", attribute="App"), "--bind", "127.0.0.1:0")
    assert done.returncode == APP_FAILED
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_held_a_client_has_none_when_it_has_gone(serve: Serve) -> None:
    server = serve(protocol("Echo"), *ONE, "--max-connections", "1")
    for _ in range(20):
        with dial(server.address) as client:
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
