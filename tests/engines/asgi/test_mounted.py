"""--root-path: a FastAPI site below a path, behind a proxy that takes the path away and one that does not."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.server import APPS
from tests.support.ways import ONE
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import Shared
    from tests.support.server import RunningServer

pytest.importorskip("fastapi")
websockets = pytest.importorskip("websockets")

pytestmark = pytest.mark.slow

SITE = f"{APPS / 'site_mounted.py'}:app"


@pytest.fixture(params=["uvloop", "asyncio"])
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    return shared(SITE, *ONE, "--root-path", "/api", "--loop", request.param)


@pytest.fixture(params=["", "/api"], ids=["taken-away", "left"])
def prefix(request: pytest.FixtureRequest) -> str:
    """What the proxy leaves of the path."""
    return str(request.param)


def test_a_route(server: RunningServer, prefix: str) -> None:
    said = json.loads(fetch(server, f"{prefix}/items/a%20b").body)
    assert said == {
        "name": "a b", "url": "http://localhost/api/items/a b", "base": "http://localhost/api/",
        "item": "http://localhost/api/items/c", "root_path": "/api", "path": "/api/items/a b",
        "raw_path": "/api/items/a%20b",
    }  # fmt: skip


def test_a_site_below(server: RunningServer, prefix: str) -> None:
    said = json.loads(fetch(server, f"{prefix}/below/items/x").body)
    assert (said["name"], said["root_path"], said["path"]) == ("x", "/api/below", "/api/below/items/x")
    assert said["url"] == "http://localhost/api/below/items/x"


def test_files_below(server: RunningServer, prefix: str) -> None:
    response = fetch(server, f"{prefix}/static/site_mounted.py")
    assert (response.status, response.body) == (200, (APPS / "site_mounted.py").read_bytes())
    assert fetch(server, f"{prefix}/static/none").status == 404


def test_the_page_of_the_documentation_finds_its_schema(server: RunningServer, prefix: str) -> None:
    assert b"'/api/openapi.json'" in fetch(server, f"{prefix}/docs").body
    assert fetch(server, f"{prefix}/openapi.json").status == 200


@pytest.mark.parametrize("where", ["", "/below"])
def test_websockets(server: RunningServer, prefix: str, where: str) -> None:
    async def talk() -> dict[str, str]:
        url = f"ws://{server.address}{prefix}{where}/talk/a%20b"
        async with websockets.connect(url, proxy=None) as ws:
            said: dict[str, str] = json.loads(await ws.recv())
            return said

    said = asyncio.run(asyncio.wait_for(talk(), 20))
    assert (said["name"], said["path"]) == ("a b", f"/api{where}/talk/a b")
    assert said["url"] == f"ws://{server.address}/api{where}/talk/a b"


@pytest.mark.parametrize(
    ("target", "path"),
    [("/api", "/api"), ("/apixy", "/api/apixy"), ("/", "/api/"), ("http://localhost/x", "/api/x"), ("*", "*")],
)
def test_where_the_prefix_ends(shared: Shared, target: str, path: str) -> None:
    with Browser(shared(f"{APPS / 'site_mounted.py'}:told", *ONE, "--root-path", "/api")) as browser:
        browser.send(request(target, method="OPTIONS" if target == "*" else "GET"))
        assert browser.response().body.decode() == path
