"""What ASGI's frameworks have of their own: lifespans, work in the background, WebSockets, streams of events.

Their sites as a client sees them, beside those of WSGI, are in the module of that name in the folder above.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from tests.engines.test_frameworks import STREAMED, way_of
from tests.support.client import read_exactly
from tests.support.wait import eventually
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets")

pytestmark = pytest.mark.slow
WITH_SOCKETS = ("starlette", "fastapi", "quart", "litestar")


@pytest.fixture(params=WITH_SOCKETS)
def chatty(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    return shared(*way_of(request.param))


@pytest.fixture
def starlette(shared: Shared) -> RunningServer:
    return shared(*way_of("starlette"))


def test_djangos_asynchronous_streams(shared: Shared) -> None:
    server = shared(*way_of("django-asgi"))
    with httpx.Client(base_url=f"http://{server.address}") as client:
        assert client.get("/astream", headers={"Accept-Encoding": "identity"}).content == STREAMED


def test_fastapis_lifespan(serve: Serve) -> None:
    server = serve(*way_of("fastapi"))
    assert httpx.get(f"http://{server.address}/").text == "hello you"
    assert server.stop() == 0
    assert "fastapi begins" in server.log
    assert "fastapi ends" in server.log


def test_work_in_the_background(starlette: RunningServer) -> None:
    with httpx.Client(base_url=f"http://{starlette.address}") as client:
        client.get("/later?what=one")
        eventually(lambda: "one" in client.get("/later?what=more").text.split(), within_s=30)


@pytest.mark.parametrize("compression", ["deflate", None])
def test_websockets(chatty: RunningServer, compression: str | None) -> None:
    async def talk() -> None:
        async with websockets.connect(f"ws://{chatty.address}/chat", compression=compression, proxy=None) as ws:
            for text in ("hello", "x" * 200_000, "\u20ac" * 1000):
                await ws.send(text)
                assert await ws.recv() == text
            await (await ws.ping())
        assert ws.close_code == 1000

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert "handler failed" not in chatty.log


@pytest.mark.parametrize("framework", WITH_SOCKETS)
def test_a_websocket_is_closed_by_a_reload_and_the_framework_makes_no_noise(serve: Serve, framework: str) -> None:
    server = serve(*way_of(framework))

    async def talk() -> int:
        async with websockets.connect(f"ws://{server.address}/chat", proxy=None) as ws:
            await ws.send("hello")
            assert await ws.recv() == "hello"
            server.signal(signal.SIGHUP)
            with contextlib.suppress(websockets.ConnectionClosed):
                await ws.recv()
            return int(ws.close_code)

    assert asyncio.run(asyncio.wait_for(talk(), 20)) == 1012
    server.wait_log("reloaded", within_s=20)
    assert "handler failed" not in server.log


def test_events_end_with_the_worker(serve: Serve) -> None:
    server = serve(*way_of("starlette"))
    with httpx.stream("GET", f"http://{server.address}/tick") as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ["data: 0", "", "data: 1"]
        server.signal(signal.SIGHUP)
        for _ in lines:
            pass  # to a proper end, else httpx raises
    server.wait_log("reloaded", within_s=20)
    assert "connections cut" not in server.log


@pytest.mark.parametrize("path", ["/tick", "/endless"])
def test_a_client_that_leaves_a_stream_makes_no_noise(starlette: RunningServer, path: str) -> None:
    for _ in range(3):
        with Browser(starlette) as browser:
            browser.send(request(path))
            read_exactly(browser.sock, 200)
    assert fetch(starlette).body == b"hello you"
    assert "Traceback" not in starlette.log
