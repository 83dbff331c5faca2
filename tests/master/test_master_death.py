"""The master is SIGKILLed: no orphan serves on, and the address is free."""

from __future__ import annotations

import signal
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, talkback_reply
from tests.support.processes import session_members
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
GONE_WITHIN_S = 1.0  # promised, and judged by the median of many
LATE_S = 10.0  # for a single one, on a busy machine: by itself no worker would ever end


def kill(server: RunningServer) -> float:
    """SIGKILL the master; return after how many seconds nobody is left."""
    began_s = time.monotonic()
    server.signal(signal.SIGKILL)
    eventually(lambda: not session_members(server.pid), within_s=LATE_S, what="every worker gone")
    return time.monotonic() - began_s


@pytest.mark.parametrize(
    "deed", [b"", b"work 60\n", b"spin\n", b"hold_gil 60\n"], ids=["idle", "asleep", "busy", "in-c"]
)
def test_no_worker_outlives_it_and_the_port_can_be_bound(serve: Serve, deed: bytes) -> None:
    server = serve(OBEY, "--workers", "4", expected_exit=-signal.SIGKILL)
    assert len(server.worker_pids()) == 4
    with dial(server.address) as client:
        client.sendall(deed)
        exchange(server.address, b"pid\n")
        kill(server)
    successor = serve("--workers", "1", bind=server.address)
    assert exchange(successor.address, b"hi\n") == talkback_reply(b"hi")


def test_a_unix_socket_of_a_killed_master_can_be_bound_again(serve: Serve, tmp_path: object) -> None:
    address = f"unix:{tmp_path}/s"
    server = serve("--workers", "2", bind=address, expected_exit=-signal.SIGKILL)
    kill(server)
    successor = serve("--workers", "1", bind=address)
    assert exchange(successor.address, b"hi\n") == talkback_reply(b"hi")


def test_a_respawned_worker_does_not_outlive_the_master_either(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1", expected_exit=-signal.SIGKILL)
    exchange(server.address, b"pid\n")
    before = server.worker_pids()
    exchange(server.address, b"exit 1\n")
    server.wait_workers(1, without=before)
    kill(server)


@pytest.mark.timing
def test_of_twenty_killed_masters_nobody_is_alive_a_second_later(serve: Serve) -> None:
    took_s = [kill(serve("--workers", "4", expected_exit=-signal.SIGKILL)) for _ in range(20)]
    assert statistics.median(took_s) < GONE_WITHIN_S, took_s
