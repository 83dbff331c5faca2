"""Slow clients cost memory and nothing else: others are served meanwhile, and each of them is ended in time."""

from __future__ import annotations

import contextlib
import itertools
import resource
import select
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.apps.routes import HELLO
from tests.support.processes import open_fds, rss_kib, wait_idle
from tests.support.wait import eventually
from tests.support.ways import EACH_ENGINE, ONE, Way
from tests.support.web import WEB, Browser, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

LATE_S = 15.0  # for busy machines
PER_SOURCE = 5_000  # connections from one loopback address: fewer than there are ports


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Let this process have so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 256:
        pytest.skip(f"needs {count + 256} descriptors, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 256), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """TEST. Many connections of one process, from as many loopback addresses as their number needs."""

    def __init__(self, server: RunningServer, count: int, data: bytes, *, window: int = 0) -> None:
        host, _, port = server.address.rpartition(":")
        self._socks: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._trickled_s = time.monotonic()
        for number in range(count):
            sock = socket.socket()
            sock.settimeout(20)
            if window:  # as small as the kernel lets it be, so that the server soon has to wait for the reader
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            sock.bind((f"127.0.0.{2 + number // PER_SOURCE}", 0))
            sock.connect((host, int(port)))
            sock.sendall(data)
            sock.setblocking(False)
            self._socks[sock.fileno()] = sock
            self._poll.register(sock, select.POLLIN)
        self._all = list(self._socks.values())
        self._turns = itertools.cycle(self._all)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._all:
            sock.close()

    def trickle(self, data: bytes) -> None:
        """Send a little more from each, once a second; call it often, and it is those whose time has come."""
        now_s = time.monotonic()
        due = int((now_s - self._trickled_s) * len(self._all))
        if not due:
            return
        self._trickled_s = now_s
        for sock in itertools.islice(self._turns, min(due, len(self._all))):
            try:
                sock.send(data)
            except OSError:
                continue  # it has been ended, or its buffer is full

    def ended(self, *, within_s: float) -> bool:
        """Wait until the server has closed every one of them, reading whatever it says."""
        until_s = time.monotonic() + within_s
        while self._socks and time.monotonic() < until_s:
            for fd, _mask in self._poll.poll(100):
                try:
                    if not self._socks[fd].recv(1 << 16):
                        self._forget(fd)
                except BlockingIOError:
                    continue
                except OSError:
                    self._forget(fd)
        return not self._socks

    def _forget(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._socks.pop(fd)


class Waits(NamedTuple):
    """How long a healthy client waits for its answers, in ms."""

    p50: float
    p99: float


def probe(server: RunningServer, seconds: float, between: Callable[[], None] | None = None) -> Waits:
    """Ask for so long, on new and on kept connections by turns."""
    took_ns: list[int] = []
    until_s = time.monotonic() + seconds
    with Browser(server) as kept:
        while time.monotonic() < until_s:
            began_ns = time.monotonic_ns()
            if len(took_ns) % 2:
                assert kept.get().body == HELLO
            else:
                with Browser(server) as fresh:
                    assert fresh.get(connection="close").body == HELLO
            took_ns.append(time.monotonic_ns() - began_ns)
            if between is not None:
                between()
    took_ns.sort()
    return Waits(took_ns[len(took_ns) // 2] / 1e6, took_ns[len(took_ns) * 99 // 100] / 1e6)


def besiege(server: RunningServer, *, heads: int, bodies: int, readers: int, limit_s: float) -> None:
    """Serve somebody healthy amid such clients, then see each of them ended."""
    (worker,) = server.worker_pids()
    usual = probe(server, limit_s / 2)
    wait_idle(worker)
    before = len(open_fds(worker))
    with (
        Crowd(server, heads, b"GET / HTTP/1.1\r\nHost: a\r\n") as slow_heads,
        Crowd(server, bodies, request("/length", method="POST", content_length="100000") + b"1") as slow_bodies,
        Crowd(server, readers, request("/stream?300"), window=4096) as slow_readers,
    ):
        wait_idle(worker)
        began_s = time.monotonic()

        def trickle() -> None:
            slow_heads.trickle(b"X: y\r\n")
            slow_bodies.trickle(b"12")

        besieged = probe(server, limit_s / 2, trickle)
        assert slow_heads.ended(within_s=limit_s + LATE_S)
        assert slow_bodies.ended(within_s=limit_s + LATE_S)
        eventually(lambda: len(open_fds(worker)) <= before, within_s=limit_s + LATE_S)
        took_s = time.monotonic() - began_s
        slow_readers.ended(within_s=1)
    print(
        f"{heads} slow heads, {bodies} bodies, {readers} readers: p50 {usual.p50:.2f}, p99 {usual.p99:.2f} ms before",
        f"p50 {besieged.p50:.2f}, p99 {besieged.p99:.2f} ms amid them",
        f"all ended {took_s:.1f} s after the last came, with limits of {limit_s:g} s",
        sep="; ",
    )
    assert besieged.p50 < 20 * usual.p50 + 20
    assert besieged.p99 < 20 * usual.p99 + 1000 * limit_s, "nobody waits for what is waited for"
    assert server.worker_pids() == {worker}


@EACH_ENGINE
def test_thirty_slow_clients_of_each_kind(serve: Serve, way: Way) -> None:
    limits = ("--header-timeout", "500ms", "--idle-timeout", "500ms")
    server = serve(*way, *ONE, *limits)
    besiege(server, heads=30, bodies=30, readers=30, limit_s=0.5)


@EACH_ENGINE
def test_two_thousand_slow_heads_and_five_hundred_slow_readers(serve: Serve, way: Way) -> None:
    limits = ("--header-timeout", "5", "--idle-timeout", "5", "--max-connections", "4000")
    with descriptors(3_500):
        server = serve(*way, *ONE, *limits)
        besiege(server, heads=2_000, bodies=500, readers=500, limit_s=5)


def test_ten_thousand_idle_connections_cost_ten_kib_each_and_no_second_crowd_costs_more(serve: Serve) -> None:
    count = 10_000
    with descriptors(count):
        server = serve(WEB, "--workers", "1", "--keep-alive", "600", "--max-connections", str(count + 100))
        (worker,) = server.worker_pids()
        if resource.prlimit(worker, resource.RLIMIT_NOFILE)[0] < count + 100:
            pytest.skip("the server may not have so many descriptors")
        with Browser(server) as browser:
            for _ in range(2_000):
                browser.get()
            fds, first = len(open_fds(worker)), rss_kib(worker)
        held = []
        for _ in range(3):
            with Crowd(server, count, request(user_agent="idle", accept="*/*")), Browser(server) as browser:
                eventually(lambda: len(open_fds(worker)) >= fds + count, within_s=30)
                assert browser.get().body == HELLO
                held.append(rss_kib(worker))
            eventually(lambda: len(open_fds(worker)) <= fds, within_s=30)
            each_kib = (held[-1] - first) / count
            print(f"{count} idle connections: {each_kib:.2f} KiB each; RSS {first} before, {rss_kib(worker)} KiB after")
            assert each_kib <= 10
        assert held[-1] <= held[0] * 1.05, f"it grows with each crowd: {held}"
        assert server.worker_pids() == {worker}
