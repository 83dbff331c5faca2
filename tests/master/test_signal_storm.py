"""Many signals at random moments: none is fatal by accident, none makes the server forget to stop."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, exchange, talkback_reply

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

HARMLESS = [signal.SIGCHLD, signal.SIGUSR1]


def test_a_storm_of_harmless_signals_costs_nobody(serve: Serve) -> None:
    server = serve("--workers", "3")
    before = server.worker_pids()
    choose = random.Random(11)
    with Hammer(server.address, clients=4) as hammer:
        for _ in range(20):
            for _ in range(100):
                os.kill(choose.choice([server.pid, *before]), choose.choice(HARMLESS))
            hammer.wait_more(10)
    assert hammer.failures == []
    assert server.worker_pids() == before
    assert server.stop() == 0


def test_workers_told_to_retire_at_random_are_replaced_and_nobody_loses_a_reply(serve: Serve) -> None:
    server = serve("nap", "--workers", "4")
    choose = random.Random(13)
    with Hammer(server.address, clients=8) as hammer:
        for _ in range(12):
            for pid in server.worker_pids():
                deed = choose.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, None])
                if deed:
                    tell(pid, deed)
            tell(server.pid, choose.choice(HARMLESS))
            hammer.wait_more(20)
        server.wait_workers(4, within_s=15)
    assert hammer.failures == []
    assert exchange(server.address, b"hi\n") == talkback_reply(b"hi")


def tell(pid: int, signum: signal.Signals) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return  # retired meanwhile


@pytest.mark.parametrize("seed", range(10))
def test_a_stop_at_any_moment_of_the_boot_leaves_nobody(serve: Serve, seed: int) -> None:
    """TERM comes right after `listening`, while workers are being forked, among other signals."""
    choose = random.Random(seed)
    server = serve("--workers", "8", ready=False)
    _ = server.address
    for _ in range(choose.randrange(60)):
        server.signal(choose.choice(HARMLESS))
    if choose.random() < 0.5:
        server.wait_workers(8)
    assert server.stop(choose.choice([signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])) == 0


def test_ten_thousand_signals_and_then_a_stop(serve: Serve) -> None:
    server = serve("--workers", "4")
    choose = random.Random(17)
    for _ in range(10_000):
        os.kill(
            choose.choice([server.pid, *server.worker_pids()]) if choose.random() < 0.01 else server.pid,
            choose.choice(HARMLESS),
        )
    assert exchange(server.address, b"hi\n") == talkback_reply(b"hi")
    assert server.stop() == 0
