"""A client that speaks HTTP with a stream handler: the log says once how to serve an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange
from tests.support.server import APPS
from tests.support.ways import ONE, Way
from tests.support.web import request

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

COROUTINE = f"{APPS / 'coroutines.py'}:echo"
HANDLERS = [
    pytest.param(("talkback",), id="stream"),
    pytest.param(("echo", "--threads", "3"), id="stream-threads"),
    pytest.param((COROUTINE,), id="streams"),
    pytest.param((COROUTINE, "--loop", "asyncio", "--accept", "per-worker"), id="streams-asyncio"),
]
HINT = "an HTTP request came to a stream handler"


@pytest.mark.parametrize("way", HANDLERS)
def test_how_to_serve_an_application_is_told_once(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE)
    for data in (b"hello\n", b"GET it\n", b"HELP /x\r\n"):
        exchange(server.address, data, half_close=True)
    assert HINT not in server.log
    for _ in range(3):
        exchange(server.address, request("/a?b"), half_close=True)
    name = way[0].replace(".", r"\.")
    server.wait_log(
        rf"INFO \[worker=0 .*\] {HINT} app={name} "
        r'hint="to serve a WSGI or ASGI application, name it: prefork serve module:app"$'
    )
    server.stop()
    assert server.log.count(HINT) == 1
