"""A reload may change what an application is: connections of HTTP that a handler cannot go on with come to an end."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.master.test_handover import SOON_S, WAYS, totals, until_told
from tests.support.wait import eventually
from tests.support.web import Browser

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve
    from tests.support.control import Place

pytestmark = pytest.mark.slow

OF_HTTP = "import sys\nsys.path.insert(0, {folder!r})\nfrom {module} import app\n"
HANDLERS = {
    "coroutine": """
async def app(reader, writer):
    writer.write(b"hello")
""",
    "protocol": """
import asyncio
class app(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")
        transport.close()
""",
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("name", ["wsgi", "asyncio"])
def test_a_reload_to_a_handler_ends_idle_connections_within_five_seconds(
    serve: Serve, place: Place, app: AppWriter, name: str, kind: str, workers: int
) -> None:
    """Each with a last answer, if its client asks for one."""
    way = WAYS[name]
    folder, _, file = way[0].rpartition(":")[0].rpartition("/")
    path = app(OF_HTTP.format(folder=folder, module=file.removesuffix(".py")), attribute="app")
    server = serve(path, *way[1:], "--workers", str(workers), env=place.env)
    with ExitStack() as stack:
        asks, are_silent = ([stack.enter_context(Browser(server)) for _ in range(10)] for _ in range(2))
        for browser in (*asks, *are_silent):
            assert not browser.get("/").closes
        app(HANDLERS[kind], attribute="app")
        began_s = time.monotonic()
        server.signal(signal.SIGHUP)
        for browser in asks:
            until_told(browser)
        assert all(browser.ended() for browser in are_silent)
        assert time.monotonic() - began_s < 7 * workers, "they leave one after the other"
        server.wait_log("reloaded generation=2")
        with Browser(server) as new:
            assert new.rest() == b"hello"
        found = eventually(lambda: (seen := totals(place))["connections"] == 0 and seen, within_s=SOON_S)
        assert (found["accepted"], found["closed"], found["cut"], found["in_transfer"]) == (21, 21, 0, 0)
