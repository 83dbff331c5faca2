"""The corpus of requests over real connections: ASGI takes each case for what WSGI takes it for, to the byte."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from tests.http.cases import read_cases
from tests.support.client import dial, read_to_end
from tests.support.server import APPS
from tests.support.ways import ONE

if TYPE_CHECKING:
    from tests.conftest import Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

CASES = [*read_cases("valid"), *read_cases("invalid")]
DATE = re.compile(rb"\r\nDate: [^\r]*")


def verdict(server: RunningServer, data: bytes) -> bytes:
    """All that a client hears who sends this and ends its side."""
    with dial(server.address) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused meanwhile, and what was said can still be read
        return DATE.sub(b"", read_to_end(sock))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_asgi_and_wsgi_are_of_one_mind(shared: Shared, loop: str) -> None:
    wsgi = shared(f"{APPS / 'witness.py'}:wsgi", *ONE, "--max-body", "1m")
    asgi = shared(f"{APPS / 'witness.py'}:asgi", *ONE, "--max-body", "1m", "--loop", loop)
    different = {}
    for case in CASES:
        if any(request.attributes["upgrade"] for request in case.expected.requests):
            continue  # over WSGI, a WebSocket's handshake is a request like others
        ours, theirs = verdict(asgi, case.data), verdict(wsgi, case.data)
        if ours != theirs:
            different[case.name] = (ours, theirs)
    assert not different
