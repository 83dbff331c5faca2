"""Who is cut at --graceful-timeout: it is logged and counted, and whoever is asked says the same."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.master.test_handover import SOON_S, STOPPED, WAYS, agreed, totals
from tests.support.admin import ADMIN, address_of
from tests.support.client import dial, read_exactly
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import CONTINUE, request

if TYPE_CHECKING:
    import socket

    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

UPLOAD = request("/length", method="POST", content_length="9", expect="100-continue"), CONTINUE
LINE = b"hello\n", b"hello\n"
ENGINES = {name: (*way, UPLOAD) for name, way in WAYS.items()}
ENGINES |= {
    "handler": ("echo", "--threads", "3", LINE),
    "coroutine": (f"{APPS / 'coroutines.py'}:echo", "--loop", "asyncio", LINE),
    "protocol": (f"{APPS / 'protocols.py'}:Echo", "--loop", "asyncio", LINE),
    "protocol-uvloop": (f"{APPS / 'protocols.py'}:Echo", "--loop", "uvloop", LINE),
}
HELD = 3


def begin(address: str, says: tuple[bytes, bytes], stack: ExitStack) -> socket.socket:
    """A client who is being served, and does not come to an end."""
    sock = stack.enter_context(dial(address))
    sock.sendall(says[0])
    assert read_exactly(sock, len(says[1])) == says[1]
    return sock


@pytest.mark.parametrize("engine", ENGINES)
def test_whoever_is_asked_has_counted_who_was_cut(serve: Serve, place: Place, engine: str) -> None:
    *how, says = ENGINES[engine]
    server = serve(*how, "--workers", "1", "--graceful-timeout", "300ms", *ADMIN, env=place.env)
    admin = address_of(server)
    with ExitStack() as stack:
        dial(server.address).close()
        eventually(lambda: totals(place)["closed"] == 1, within_s=SOON_S)
        for _ in range(HELD):
            begin(server.address, says, stack)
        eventually(lambda: totals(place)["connections"] == HELD, within_s=SOON_S)
        server.signal(signal.SIGHUP)
        server.wait_log("connections cut .*count=3 ")
        eventually(lambda: totals(place) and "reloaded" in server.log, within_s=SOON_S)
        found = agreed(place, admin)
        assert (found["accepted"], found["closed"], found["cut"], found["connections"]) == (4, 1, 3, 0)
        for _ in range(HELD - 1):
            begin(server.address, says, stack)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert re.findall(r"connections cut .*count=(\d+)", server.log) == ["3", "2"]
    (last,) = re.findall(STOPPED, server.log)
    assert last == ("6", "1", "5", "0", "0")


def test_who_was_cut_with_a_worker_that_had_to_be_killed_is_counted_as_well(
    serve: Serve, place: Place, gate: Gate
) -> None:
    """The only thread is in the application, so nobody but the master can end it."""
    how = (*WAYS["wsgi"], "--workers", "1", "--graceful-timeout", "300ms", *ADMIN)
    server = serve(*how, env=place.env | gate.env)
    admin = address_of(server)
    with ExitStack() as stack:
        for _ in range(HELD - 1):
            begin(server.address, UPLOAD, stack)
        stack.enter_context(dial(server.address)).sendall(request("/hold"))
        gate.wait_entered(1)
        server.signal(signal.SIGHUP)
        server.wait_log(r"killing worker .*still busy")
        server.wait_log(r"worker died .*cut=3\b")
        server.wait_log("reloaded")
        found = agreed(place, admin)
        assert (found["accepted"], found["closed"], found["cut"], found["connections"]) == (3, 0, 3, 0)
    assert server.stop() == 0
    (last,) = re.findall(STOPPED, server.log)
    assert last == ("3", "0", "3", "0", "0")
