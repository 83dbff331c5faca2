"""One exchange of the load itself proves that a server is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtest.measure.server import WrongReplyError, exchange
from loadtest.plan import addresses
from loadtest.plan.plan import Load
from tests.loadtest import stand_in as behave
from tests.loadtest.websocket_server import WebSocketServer
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    StartWebSocket = Callable[..., WebSocketServer]

pytestmark = pytest.mark.slow


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
