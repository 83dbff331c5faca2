"""Context variables: what one request or connection sets, no other sees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.engines.asgi.test_websocket import SHAKE
from tests.support.client import dial, read_exactly
from tests.support.server import APPS
from tests.support.ways import ONE
from tests.support.web import Browser, request

if TYPE_CHECKING:
    from tests.conftest import Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

CONTEXTS = APPS / "contexts.py"
SIZES = [0, 10, 200_000, 3_000_000]
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@pytest.fixture(params=["uvloop", "asyncio"])
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    return shared(f"{CONTEXTS}:app", *ONE, "--loop", request.param)


def test_requests_of_a_connection(server: RunningServer) -> None:
    with Browser(server) as browser:
        for path in ("/", "/later", "/large"):
            for size in SIZES * 2:
                assert browser.post(path, bytes(size)).body.rstrip(b"\0") == b"import "


@pytest.mark.parametrize("first", ["/", "/later", "/large"])
@pytest.mark.parametrize("size", SIZES)
def test_requests_in_a_pipeline(server: RunningServer, first: str, size: int) -> None:
    requests = [request(first, method="POST", body=bytes(size)) for _ in range(3)]
    with ThreadPoolExecutor(1) as sender, Browser(server) as browser:
        sent = sender.submit(browser.send, b"".join(requests) + request("/last"))
        for _ in range(4):
            assert browser.response().body.rstrip(b"\0") == b"import "
        sent.result()


@pytest.mark.parametrize("size", SIZES)
def test_a_websocket_behind_a_request(server: RunningServer, size: int) -> None:
    with ThreadPoolExecutor(1) as sender, Browser(server) as browser:
        sent = sender.submit(browser.send, request(method="POST", body=bytes(size)) + request("/ws", **SHAKE))
        assert browser.response().body == b"import "
        assert browser.head()[0] == 101
        assert browser.exactly(8) == b"\x82\x06import"
        sent.result()


@LOOPS
@pytest.mark.parametrize("what", ["streams", "Talk"])
def test_connections_of_handlers(shared: Shared, loop: str, what: str) -> None:
    address = shared(f"{CONTEXTS}:{what}", *ONE, "--loop", loop).address
    connections = []
    for _ in range(10):  # each is accepted while those before it are served
        connections.append(dial(address))
        for sock in connections:
            sock.sendall(b"hello\n")
        assert [read_exactly(sock, 7) for sock in connections] == [b"import\n"] * len(connections)
    for sock in connections:
        sock.close()
