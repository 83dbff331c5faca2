"""Real ASGI frameworks behind the server and real client libraries before it: what people will run."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.engines.wsgi.test_frameworks import SOURCE, STREAMED, visit
from tests.support.client import read_exactly
from tests.support.server import APPS
from tests.support.tls import FIRST, TLS, trusting
from tests.support.twins import ONE
from tests.support.wait import eventually
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets")

pytestmark = pytest.mark.slow
SITES = {"starlette": "site", "fastapi": "site", "quart": "site", "litestar": "site", "django": "asgi_site"}
WITH_SOCKETS = ("starlette", "fastapi", "quart", "litestar")


def site_of(framework: str) -> str:
    pytest.importorskip(framework)
    return f"{APPS / f'site_{framework}.py'}:{SITES[framework]}"


@pytest.fixture(params=SITES)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    return shared(site_of(request.param), *ONE)


@pytest.fixture(params=WITH_SOCKETS)
def chatty(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    return shared(site_of(request.param), *ONE)


@pytest.fixture
def starlette(shared: Shared) -> RunningServer:
    return shared(site_of("starlette"), *ONE)


def test_a_site_as_its_clients_see_it(server: RunningServer, tmp_path: Path) -> None:
    with httpx.Client() as client:
        visit(client, f"http://{server.address}", tmp_path / "file")


@pytest.mark.parametrize("framework", ["starlette", "django"])
def test_a_site_on_asyncios_own_loop_and_under_tls(shared: Shared, tmp_path: Path, framework: str) -> None:
    server = shared(site_of(framework), *ONE, "--loop", "asyncio", *TLS)
    with httpx.Client(verify=trusting()) as client:
        visit(client, f"https://localhost:{server.address.rpartition(':')[2]}", tmp_path / "file")


@pytest.mark.parametrize("framework", SITES)
def test_an_error_gives_nothing_away(serve: Serve, framework: str) -> None:
    server = serve(site_of(framework), *ONE, expect_traceback=True)
    for _ in range(2):
        answer = httpx.get(f"http://{server.address}/fail", timeout=10)
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert httpx.get(f"http://{server.address}/").text == "hello you"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_curl(shared: Shared, tmp_path: Path, tls: bool) -> None:
    """Including an upload for which it asks to continue."""
    server = shared(site_of("starlette"), *ONE, *(TLS if tls else ()))
    upload = tmp_path / "upload"
    upload.write_bytes(b"u" * 3_000_000)
    port = server.address.rpartition(":")[2]
    base = f"https://localhost:{port}" if tls else f"http://{server.address}"
    curl = ["curl", "-sS", "--http1.1", "--cacert", FIRST, "--fail", "--max-time", "20", "--expect100-timeout", "15"]
    done = subprocess.run(
        [*curl, "-F", f"file=@{upload}", f"{base}/upload", "--next", *curl[1:], f"{base}/stream"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"upload 3000000" + STREAMED


def test_djangos_static_files_and_streams(shared: Shared) -> None:
    server = shared(site_of("django"), *ONE)
    with httpx.Client(base_url=f"http://{server.address}") as client:
        answer = client.get("/static/web.py")
        assert answer.content == SOURCE
        since = {"If-Modified-Since": answer.headers["Last-Modified"]}
        assert client.get("/static/web.py", headers=since).status_code == 304
        assert client.get("/astream", headers={"Accept-Encoding": "identity"}).content == STREAMED


def test_fastapis_lifespan(serve: Serve) -> None:
    server = serve(site_of("fastapi"), *ONE)
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
    server = serve(site_of(framework), *ONE)

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
    server = serve(site_of("starlette"), *ONE)
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


def test_a_client_that_leaves_its_upload_makes_no_noise(server: RunningServer) -> None:
    for path in ("/json", "/form"):
        with Browser(server) as browser:
            browser.send(request(path, method="POST", content_type="application/json", content_length="1000") + b"{")
    assert fetch(server).body == b"hello you"
    assert "Traceback" not in server.log
