"""Event loops share one listener evenly, and a worker inside the application leaves new connections to the others."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import HELLO
from tests.support.client import dial, read_to_end
from tests.support.fairness import by_turns, even, share_evenly
from tests.support.ways import BOTH, EACH_ENGINE, EACH_WAY, Way, units
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


def sequential(server: RunningServer, count: int) -> Counter[int]:
    """Who serves connections that come one after the other."""
    raw = request("/pid", connection="close")
    served = Counter[int]()
    for _ in range(count):
        with dial(server.address) as sock:
            sock.sendall(raw)
            served[int(read_to_end(sock).rpartition(b"\r\n")[2])] += 1
    return served


def held(server: RunningServer, count: int) -> Counter[int]:
    """Who serves connections that stay."""
    with contextlib.ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(count)]
        for browser in browsers:
            browser.send(request("/pid"))
        assert not any(browser.response().closes for browser in browsers)
        return Counter(int(browser.get("/pid").body) for browser in browsers)


@BOTH
@pytest.mark.timing
def test_four_workers_share_four_hundred_held_connections_evenly(serve: Serve, way: Way) -> None:
    share_evenly(serve(*way, "--workers", "4"), held, 400, fair=even)


@pytest.mark.timing
@EACH_WAY
def test_four_workers_share_two_thousand_sequential_connections_evenly(serve: Serve, way: Way) -> None:
    server = serve(*way, "--workers", "4")
    share_evenly(server, sequential, 2000, fair=by_turns)
    share_evenly(server, held, 400, fair=even)


@EACH_ENGINE
def test_no_new_connection_waits_for_a_worker_in_a_long_request(serve: Serve, gate: Gate, way: Way) -> None:
    """All but one worker are inside, one after the other; with threads, all threads of each."""
    server = serve(*way, "--workers", "3", env=gate.env)
    with contextlib.ExitStack() as stack:
        for _ in range(2 * units(way)):
            inside = stack.enter_context(Browser(server))
            inside.send(request("/hold"))
            gate.wait_entered(1)
        workers = set[bytes]()
        for _ in range(100):
            workers.add(fetch(server, "/pid").body)  # who waits for one at the gate is never answered
        if units(way) == 1:
            assert len(workers) == 1
        many = [stack.enter_context(Browser(server)) for _ in range(100)]
        for browser in many:
            browser.send(request())
        assert all(browser.response().body == HELLO for browser in many)
        gate.open()


@EACH_ENGINE
def test_with_a_worker_inside_nobody_new_waits_in_a_crowd(serve: Serve, gate: Gate, way: Way) -> None:
    """Clients come one after the other and many at once; who waits for the one at the gate is never answered."""
    server = serve(*way, "--workers", "4", env=gate.env)
    answers: list[bytes] = []
    with contextlib.ExitStack() as stack:
        for _ in range(units(way)):
            inside = stack.enter_context(Browser(server))
            inside.send(request("/hold"))
            gate.wait_entered(1)

        def come() -> None:
            answers.extend(fetch(server).body for _ in range(300))

        clients = [threading.Thread(target=come) for _ in range(4)]
        for thread in clients:
            thread.start()
        for _ in range(30):
            with contextlib.ExitStack() as crowd:
                many = [crowd.enter_context(Browser(server)) for _ in range(20)]
                for browser in many:
                    browser.send(request())
                answers.extend(browser.response().body for browser in many)
        for thread in clients:
            thread.join(60)
        assert answers == [HELLO] * (4 * 300 + 30 * 20)
        gate.open()


@BOTH
def test_a_socket_for_each_worker(serve: Serve, way: Way) -> None:
    server = serve(*way, "--workers", "3", "--accept", "per-worker")
    assert set(sequential(server, 60)) == server.worker_pids()
    assert sum(held(server, 30).values()) == 30
