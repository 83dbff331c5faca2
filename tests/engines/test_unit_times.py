"""`p50_us` and `p99_us` mean the same for every kind of application: the time that the application took for a unit."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.apps.units import NAP_S
from tests.support.client import dial, read_to_end
from tests.support.server import APPS

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.control import Place

pytestmark = [pytest.mark.slow, pytest.mark.timing]

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
KINDS = pytest.mark.parametrize(
    ("way", "head"),
    [
        pytest.param(["units.py:stream"], b"", id="stream"),
        pytest.param(["units.py:wsgi"], HEAD, id="wsgi"),
        pytest.param(["units.py:wsgi", "--threads", "3"], HEAD, id="wsgi-threads"),
        pytest.param(["units.py:streams"], b"", id="coroutine"),
        pytest.param(["units.py:streams", "--loop", "asyncio"], b"", id="coroutine-asyncio"),
        pytest.param(["units.py:asgi"], HEAD, id="asgi"),
        pytest.param(["units.py:asgi", "--loop", "asyncio"], HEAD, id="asgi-asyncio"),
    ],
)
CLIENTS = 12


@KINDS
def test_the_wait_for_others_is_not_in_it(serve: Serve, place: Place, way: list[str], head: bytes) -> None:
    server = serve(str(APPS / way[0]), *way[1:], "--workers", "1", env=place.env)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(CLIENTS)]
        for client in clients:
            client.sendall(head + b"nap\n")
        assert all(read_to_end(client).endswith(b"done") for client in clients)
    p50_us = place.status()["totals"]["p50_us"]
    assert NAP_S * 0.98 < p50_us / 1e6 < 2.5 * NAP_S  # the sixth client alone has waited for five


@KINDS
def test_the_wait_for_the_client_is_not_in_it(serve: Serve, place: Place, way: list[str], head: bytes) -> None:
    server = serve(str(APPS / way[0]), *way[1:], "--workers", "1", env=place.env)
    pause_s = 0.3
    for _ in range(6):
        with dial(server.address) as client:
            client.sendall(head + b"n")
            time.sleep(pause_s)  # the pause of a client, not a wait for an event
            client.sendall(b"op\n")
            assert read_to_end(client).endswith(b"done")
    assert 0 < place.status()["totals"]["p50_us"] / 1e6 < pause_s / 3
