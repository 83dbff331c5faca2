"""Loops of asyncio take connections: evenly, not from behind a blocked one, and none is lost without descriptors."""

from __future__ import annotations

import contextlib
import resource
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, Outcome, abort, collect, crowd, dial, exchange, read_to_end, talkback_reply
from tests.support.fairness import ROUNDS, by_turns, even, share_evenly
from tests.support.processes import open_fds, stat, wait_idle
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
PER_WORKER = ("--accept", "per-worker")
ACCEPT = pytest.mark.parametrize("accept", ["shared", "per-worker"])


def kinds(coroutine: str, protocol: str) -> pytest.MarkDecorator:
    """The same application as a coroutine handler and as a protocol."""
    names = (f"{APPS / 'coroutines.py'}:{coroutine}", f"{APPS / 'protocols.py'}:{protocol}")
    return pytest.mark.parametrize("app", names, ids=["coroutine", "protocol"])


def held(server: RunningServer, count: int) -> Counter[int]:
    """Who serves connections that stay."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(count)]
        return Counter(int(client.recv(100)) for client in clients)


def sequential(server: RunningServer, count: int) -> Counter[int]:
    """Who serves connections that come one after the other."""
    return Counter(int(exchange(server.address, b"", half_close=True)) for _ in range(count))


@kinds("stay", "Stay")
def test_four_workers_share_four_hundred_held_connections_evenly(serve: Serve, app: str) -> None:
    share_evenly(serve(app, "--workers", "4"), held, 400, fair=even)


@kinds("stay", "Stay")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_four_workers_share_two_thousand_sequential_connections_evenly(serve: Serve, app: str, loop: str) -> None:
    server = serve(app, "--workers", "4", "--loop", loop)
    share_evenly(server, sequential, 2000, fair=by_turns)
    share_evenly(server, held, 400, fair=even)


@pytest.mark.timing
@kinds("slot", "Slot")
def test_workers_that_share_a_queue_do_not_wait_for_each_other(serve: Serve, app: str) -> None:
    """A worker that has had its share is off for 5 ms, but no longer than until its client has left."""
    alone, together = serve(app, "--workers", "1"), serve(app, "--workers", "2")
    ratios = []
    for _ in range(ROUNDS):
        took_s = []
        for server in (alone, together):
            began_s = time.monotonic()
            for _ in range(500):
                assert exchange(server.address, b"", half_close=True)
            took_s.append(time.monotonic() - began_s)
        ratios.append(took_s[1] / took_s[0])
        if ratios[-1] < 3:
            return
    raise AssertionError(f"two workers take longer than one: {ratios} times")


@kinds("obey", "Obey")
@pytest.mark.parametrize("how", [b"block 60\n", b"later 60\n"], ids=["in-its-code", "by-a-timer"])
def test_nobody_new_waits_for_a_worker_that_is_blocked(serve: Serve, app: str, how: bytes) -> None:
    """Its own clients have left, so that it is the least loaded of all; who waits for it is not answered at all."""
    server = serve(app, "--workers", "4", "--graceful-timeout", "500ms")
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(dial(server.address))
        blocking = stack.enter_context(dial(server.address))
        blocking.sendall(how)
        if how.startswith(b"later"):
            read_to_end(blocking)
        server.wait_log("app: blocked")
        for _ in range(60):
            many = [stack.enter_context(dial(server.address)) for _ in range(8)]
            for client in many:
                client.sendall(b"nothing\n")
            for client in many:
                assert read_to_end(client) == b""
            stack.enter_context(dial(server.address))  # and one that stays


def leave_no_descriptor(pid: int) -> int:
    """Let it open nothing more; return how many it has."""
    wait_idle(pid)  # a client hears of the end of its connection before the descriptor is closed
    used = open_fds(pid)
    first_free = next(fd for fd in range(len(used) + 1) if fd not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    return len(used)


@pytest.mark.timing
@ACCEPT
@kinds("talk", "Talk")
def test_without_descriptors_accepting_pauses_and_nobody_is_lost(serve: Serve, app: str, accept: str) -> None:
    server = serve(app, "--workers", "1", "--accept", accept, "--log-level", "debug")
    (worker,) = server.worker_pids()
    assert exchange(server.address, b"hi\n") == HI
    usual = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    before = leave_no_descriptor(worker)
    if accept == "per-worker":
        server.wait_log("accepting with care")
        eventually(lambda: len(open_fds(worker)) < before, within_s=15, what="the end of uvloop's accepting")
        leave_no_descriptor(worker)  # not that of the listener's copy either, which uvloop's accepting had
    cpu_before_s = stat(worker).cpu_s  # type: ignore[union-attr]
    clients = crowd(server.address, 20)
    server.wait_log("accept paused.*open files")
    clients[0].settimeout(0.7)
    with pytest.raises(TimeoutError):
        clients[0].recv(1)
    assert stat(worker).cpu_s - cpu_before_s < 0.3, "it does not spin"  # type: ignore[union-attr]
    resource.prlimit(worker, resource.RLIMIT_NOFILE, usual)
    clients[0].settimeout(10)
    assert collect(clients, HI) == {Outcome.OK: 20}
    assert server.worker_pids() == {worker}
    assert server.log.count("accept paused") <= 5, "one a second"


@ACCEPT
@kinds("obey", "Obey")
def test_ten_seconds_without_descriptors(serve: Serve, app: str, accept: str) -> None:
    """An application takes them all, all at once, and gives them back."""
    wrapper = ["/bin/sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
    server = serve(app, "--workers", "1", "--accept", accept, wrapper=wrapper)
    (worker,) = server.worker_pids()
    with dial(server.address) as taker:
        taker.sendall(b"descriptors 10\n")
        server.wait_log("app: descriptors")
        began_s, before_s = time.monotonic(), stat(worker).cpu_s  # type: ignore[union-attr]
        clients = crowd(server.address, 60, b"hello\n")
        assert collect(clients, b"hello\n") == {Outcome.OK: 60}
        took_s = time.monotonic() - began_s
    used = (stat(worker).cpu_s - before_s) / took_s  # type: ignore[union-attr]
    print(f"{took_s:.1f} s, share of a processor: {used:.4f}")
    assert took_s > 9
    assert used < 0.05
    assert server.worker_pids() == {worker}
    assert server.log.count("accept paused") <= took_s + 2, "one a second"


@kinds("talk", "Talk")
def test_a_change_of_the_acceptor_under_load_loses_nobody(serve: Serve, app: str) -> None:
    """Near --max-connections our own accepting stands in for uvloop's, and back."""
    server = serve(app, "--workers", "1", *PER_WORKER, "--max-connections", "20")
    with Hammer(server.address, clients=24) as hammer:
        for _ in range(10):
            inside = [dial(server.address) for _ in range(8)]
            hammer.wait_more(100)
            for client in inside:
                client.close()
            hammer.wait_more(100)
    assert not hammer.failures


SEEN = """
import asyncio, contextvars
SEEN = contextvars.ContextVar("SEEN", default=b"nothing")
async def handle(reader, writer):
    writer.write(SEEN.get())
    SEEN.set(b"something")
    try:
        await reader.read()
    except ConnectionError:
        await asyncio.sleep(0.05)
        print("app: gone", flush=True)
"""


def test_a_connection_sees_no_context_of_an_earlier_one(serve: Serve, app: AppWriter) -> None:
    """Also if it was the end of the application's task that has changed who accepts."""
    server = serve(app(SEEN), "--workers", "1", *PER_WORKER, "--max-connections", "20")
    for count in range(1, 4):
        clients = [dial(server.address) for _ in range(16)]
        assert {client.recv(100) for client in clients} == {b"nothing"}
        for client in clients:
            abort(client)
        server.wait_log("app: gone", count=16 * count)  # the tasks have ended, and nothing else has happened
        for _ in range(10):
            assert exchange(server.address, b"", half_close=True) == b"nothing"
