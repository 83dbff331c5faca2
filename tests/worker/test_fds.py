"""Descriptors: none leak with connections or respawns, none reach the programs that handlers start."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import abort, dial, exchange, talkback_reply
from tests.support.processes import open_fds
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"


def test_five_hundred_connections_leave_no_descriptor_behind(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1")
    exchange(server.address)
    (worker,) = server.worker_pids()
    before = open_fds(worker)
    for n in range(500):
        match n % 4:
            case 0:
                abort(dial(server.address))
            case 1:
                dial(server.address).close()
            case _:
                exchange(server.address)
    eventually(lambda: len(open_fds(worker)) <= len(before), within_s=15, what="as few descriptors as before")
    assert server.worker_pids() == {worker}


def test_twenty_respawns_leave_no_descriptor_behind_in_the_master(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2")
    before = open_fds(server.pid)
    for _ in range(20):
        victim = min(server.worker_pids())
        exchange(server.address)
        exchange(server.address)  # one each, or two for the survivor: the deaths are not all barren
        os.kill(victim, signal.SIGKILL)
        server.wait_workers(2, without={victim})
    eventually(lambda: len(open_fds(server.pid)) <= len(before), within_s=15, what="as few descriptors as before")
    counts = {len(open_fds(pid)) for pid in server.worker_pids()}
    assert max(counts) <= len(before) + 8, "late workers do not inherit what earlier ones had"


def test_workers_hold_none_of_each_others_pipes(serve: Serve) -> None:
    server = serve("talkback", "--workers", "4")
    exchange(server.address)
    held = [len(open_fds(pid)) for pid in sorted(server.worker_pids())]
    assert max(held) - min(held) <= 1, "the last to be forked has no more descriptors than the first"


def test_a_program_that_a_handler_starts_does_not_hold_the_listener(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1")
    sleeper = int(exchange(server.address, b"spawn\n"))
    try:
        eventually(lambda: set(open_fds(sleeper)) <= {0, 1, 2}, within_s=15, what="no descriptor but 0, 1 and 2")
        assert server.stop() == 0
        successor = serve("--workers", "1", bind=server.address)
        assert exchange(successor.address, b"hi\n") == talkback_reply(b"hi")
        assert Path(f"/proc/{sleeper}").exists(), "the program itself is none of the server's business"
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_a_program_that_a_handler_starts_has_default_signals(serve: Serve) -> None:
    """An ignored signal, or a blocked one, would be inherited through exec and stay so."""
    server = serve(OBEY, "--workers", "1")
    sleeper = int(exchange(server.address, b"spawn\n"))
    try:
        status = Path(f"/proc/{sleeper}/status").read_text()
        masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
        assert int(masks["SigBlk"], 16) == 0
        ignored = {number for number in range(1, 65) if int(masks["SigIgn"], 16) >> (number - 1) & 1}
        assert not ignored & {signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1, signal.SIGCHLD}
    finally:
        os.kill(sleeper, signal.SIGKILL)
