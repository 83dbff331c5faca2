"""The lingering close is the same for every kind of application: who sends more than is read still gets the reply."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, read_to_end

if TYPE_CHECKING:
    from tests.conftest import Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

MUCH = b"hello\n" + b"x" * 8_000_000  # several times what the buffers of both sides hold


@pytest.fixture(params=["stream", "Handler", "streams"])
def server(request: pytest.FixtureRequest, shared: Shared) -> RunningServer:
    return shared(f"tests.apps.bye:{request.param}", "--workers", "1")


def test_a_client_may_send_much_before_it_reads(server: RunningServer) -> None:
    with dial(server.address) as client:
        client.sendall(MUCH)
        assert read_to_end(client) == b"bye\n"


def test_a_client_may_read_while_it_sends(server: RunningServer) -> None:
    with dial(server.address) as client:
        sender = threading.Thread(target=client.sendall, args=(MUCH,))
        sender.start()
        assert read_to_end(client) == b"bye\n"
        sender.join(15)
        assert not sender.is_alive()


def test_a_client_that_sends_no_more_is_not_waited_for(server: RunningServer) -> None:
    for _ in range(5):
        assert exchange(server.address) == b"bye\n"
