"""The master is SIGKILLed: no orphan serves on, and the address is free."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, talkback_reply
from tests.support.processes import session_members
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve

OBEY = f"{APPS / 'obey.py'}:handle"


@pytest.mark.parametrize(
    "deed", [b"", b"work 60\n", b"spin\n", b"hold_gil 60\n"], ids=["idle", "asleep", "busy", "in-c"]
)
def test_no_worker_is_alive_a_second_later_and_the_port_can_be_bound(serve: Serve, deed: bytes) -> None:
    server = serve(OBEY, "--workers", "4", expected_exit=-signal.SIGKILL)
    assert len(server.worker_pids()) == 4
    with dial(server.address) as client:
        client.sendall(deed)
        exchange(server.address, b"pid\n")
        server.signal(signal.SIGKILL)
        eventually(lambda: not session_members(server.pid), within_s=1.0, what="every worker gone")
    successor = serve("--workers", "1", bind=server.address)
    assert exchange(successor.address, b"hi\n") == talkback_reply(b"hi")


def test_a_unix_socket_of_a_killed_master_can_be_bound_again(serve: Serve, tmp_path: object) -> None:
    address = f"unix:{tmp_path}/s"
    server = serve("--workers", "2", bind=address, expected_exit=-signal.SIGKILL)
    server.signal(signal.SIGKILL)
    eventually(lambda: not session_members(server.pid), within_s=1.0, what="every worker gone")
    successor = serve("--workers", "1", bind=address)
    assert exchange(successor.address, b"hi\n") == talkback_reply(b"hi")


def test_a_respawned_worker_does_not_outlive_the_master_either(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1", expected_exit=-signal.SIGKILL)
    exchange(server.address, b"pid\n")
    before = server.worker_pids()
    exchange(server.address, b"exit 1\n")
    server.wait_workers(1, without=before)
    server.signal(signal.SIGKILL)
    eventually(lambda: not session_members(server.pid), within_s=1.0, what="every worker gone")


@pytest.mark.slow
def test_twenty_killed_masters_leave_nobody(serve: Serve) -> None:
    for _ in range(20):
        server = serve("--workers", "4", expected_exit=-signal.SIGKILL)
        server.signal(signal.SIGKILL)
        eventually(lambda pid=server.pid: not session_members(pid), within_s=1.0, what="every worker gone")
