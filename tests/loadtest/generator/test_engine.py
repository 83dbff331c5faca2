"""The fast engine without locust: its links against a server that speaks well, in pieces, or not at all."""

from __future__ import annotations

import itertools
import random
import select
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.generator.http import WebLink
from loadtest.generator.lines import GREETING, PREFIX, EchoLink, TalkbackLink
from loadtest.generator.link import OpenModel, constant, poisson
from loadtest.plan.request import Request
from tests.loadtest import stand_in as behave
from tests.loadtest.generator.driving import Driving, completed, failed
from tests.support.server import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Drive = Callable[..., Driving]

pytestmark = pytest.mark.slow

LINE = b"a line\n"
LONG_LINE = b"x" * 3_000_000 + b"\n"  # more than sockets buffer: it has to be sent, and comes back, in pieces
OK = b"HTTP/1.1 200 OK\r\n"
GET = Request().encode("h")


@pytest.fixture
def drive() -> Iterator[Drive]:
    """Make a Driving; its sockets are closed with the test."""
    made: list[Driving] = []

    def make(address: Any, **keywords: Any) -> Driving:
        made.append(Driving(address, **keywords))
        return made[-1]

    yield make
    for driving in made:
        driving.close()


@pytest.mark.smoke
@pytest.mark.parametrize("line", [LINE, LONG_LINE])
def test_talkback_is_read_to_the_end(line: bytes, stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.talkback)
    done = drive(server.server_address).link(lambda engine: TalkbackLink(engine, line)).until(completed(3))
    assert done.failures == {}
    assert done.completed == server.connections
    assert done.received == done.completed * len(GREETING + PREFIX + line)


@pytest.mark.parametrize("line", [LINE, LONG_LINE])
def test_echo_keeps_its_connection_for_some_exchanges(line: bytes, stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.echo)
    done = drive(server.server_address).link(lambda engine: EchoLink(engine, line, 3)).until(completed(6))
    assert done.failures == {}
    connects = sum(len(batch.connects) for batch in done.batches)
    assert (done.completed + 2) // 3 == server.connections == connects
    assert done.received == done.completed * len(line)


RESPONSES = [
    OK + b"Content-Length: 5\r\n\r\nhello",
    OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    OK + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000,
]


@pytest.mark.smoke
@pytest.mark.parametrize("response", RESPONSES)
def test_http_keeps_its_connection(response: bytes, stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.responding(response, good=True))
    done = drive(server.server_address).link(lambda engine: WebLink(engine, GET)).until(completed(5))
    assert done.failures == {}
    assert server.connections == 1
    assert done.received == done.completed * len(response)


@pytest.mark.parametrize("head", [b"Connection: close\r\nContent-Length: 2\r\n", b""])
def test_http_connects_again_when_the_response_says_so(head: bytes, stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.responding(OK + head + b"\r\nok", good=True, once=True))
    done = drive(server.server_address).link(lambda engine: WebLink(engine, GET)).until(completed(3))
    assert done.failures == {}
    assert server.connections == done.completed


def test_time_that_others_take_beyond_what_they_were_given_is_a_gap(stand_in: StartServer, drive: Drive) -> None:
    driving = drive(stand_in(behave.hang).server_address).link(lambda engine: EchoLink(engine, LINE, 1))
    run = driving.engine.run()
    idle_s = next(idle_s for idle_s in run if idle_s)
    threading.Event().wait(idle_s + 0.2)
    next(run)
    driving.engine.report()
    assert max(batch.gap_ns for batch in driving.batches) >= 190_000_000


class Together:
    """A poller that tells of events only when both connections have one."""

    def __init__(self, poller: select.epoll) -> None:
        self.poller = poller
        self.register, self.modify = poller.register, poller.modify

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        found = self.poller.poll(timeout, maxevents)
        return found if len(found) == 2 else []


def test_what_came_is_read_from_all_before_anything_is_sent(stand_in: StartServer, drive: Drive) -> None:
    did: list[str] = []

    class Noted(WebLink):
        def begin(self) -> None:
            did.append("send")
            super().begin()

        def ready(self, mask: int) -> None:
            did.append("read")
            super().ready(mask)

    server = stand_in(behave.responding(OK + b"Content-Length: 2\r\n\r\nok", good=True))
    driving = drive(server.server_address)
    driving.engine._poller = Together(driving.poller)
    for _ in range(2):
        driving.link(lambda engine: Noted(engine, GET))
    done = driving.until(completed(6))
    assert done.failures == {}
    assert did[: len(did) // 4 * 4] == ["send", "send", "read", "read"] * (len(did) // 4)


def test_a_response_that_differs_from_the_one_before_is_still_checked(stand_in: StartServer, drive: Drive) -> None:
    replies = itertools.chain(
        [OK + b"Content-Length: 2\r\n\r\nok"] * 3, itertools.repeat(OK + b"Content-Length: 1\r\n\r\nok")
    )

    def serve(peer: socket.socket) -> Iterator[None]:
        requests = peer.makefile("rb")
        while requests.readline():
            while requests.readline() not in (b"\r\n", b""):
                continue
            peer.sendall(next(replies))
            yield

    server = stand_in(serve)
    done = drive(server.server_address).link(lambda engine: WebLink(engine, GET)).until(failed(2))
    assert done.completed == 3
    assert set(done.failures) == {"wrong reply"}


def test_a_status_other_than_200_is_a_failure_that_keeps_the_connection(stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.responding(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))
    done = drive(server.server_address).link(lambda engine: WebLink(engine, GET)).until(failed(3))
    assert (set(done.failures), done.completed, server.connections) == ({"status 503"}, 0, 1)


def test_a_wrong_reply_that_never_ends_is_wrong_not_slow(stand_in: StartServer, drive: Drive) -> None:
    def serve(peer: socket.socket) -> Iterator[None]:
        peer.sendall(b"who is there?\n")
        yield from behave.hang(peer)

    driving = drive(stand_in(serve).server_address, deadline_s=0.1)
    done = driving.link(lambda engine: TalkbackLink(engine, LINE)).until(failed(2))
    assert set(done.failures) == {"wrong reply"}


@pytest.mark.parametrize(
    "make", [lambda e: TalkbackLink(e, LINE), lambda e: EchoLink(e, LINE, 2), lambda e: WebLink(e, GET)]
)
def test_silence_is_a_timeout_and_a_refusal_a_refusal(
    make: Any, stand_in: StartServer, refusing_address: str, drive: Drive
) -> None:
    done = drive(stand_in(behave.hang).server_address, deadline_s=0.1).link(make).until(failed(2))
    assert set(done.failures) == {"timeout"}
    assert done.failed_connects == 0
    host, _, port = refusing_address.partition(":")
    done = drive((host, int(port))).link(make).until(failed(2))
    assert set(done.failures) == {"refused"}
    assert done.failed_connects == (done.failures.total() if isinstance(done.engine.links[0], EchoLink) else 0)


class LazyServer:
    """Accepts nothing until it is told to; then it speaks talkback, one connection after another."""

    def __init__(self, listener: socket.socket, backlog: int) -> None:
        self.listener = listener
        listener.listen(backlog)
        self._stop_reading, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while self.listener in select.select([self.listener, self._stop_reading], [], [])[0]:
            peer, _ = self.listener.accept()
            with peer:
                list(behave.talkback(peer))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.close()
        if self._thread.ident is not None:
            self._thread.join(5)
        self._stop_reading.close()
        self.listener.close()


@pytest.fixture
def lazy_server(tmp_path: Path) -> Iterator[Callable[[Any, int], LazyServer]]:
    made: list[LazyServer] = []

    def make(address: Any, backlog: int) -> LazyServer:
        listener = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        listener.bind(address)
        made.append(LazyServer(listener, backlog))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_connections_that_find_the_accept_queue_full_wait_for_their_place(
    kind: str, tmp_path: Path, lazy_server: Callable[[Any, int], LazyServer], drive: Drive
) -> None:
    """A Unix server's full queue is EAGAIN, without an event to wait for; TCP's is a handshake that takes a second."""
    server = lazy_server(str(tmp_path / "s") if kind == "unix" else ("127.0.0.1", 0), 1)
    driving = drive(server.listener.getsockname())
    for _ in range(6):
        driving.link(lambda engine: TalkbackLink(engine, LINE))
    turns = itertools.count()

    def enough(found: Driving) -> bool:
        if next(turns) == 1:
            assert found.completed == 0
            server.start()
        return all(link.sent_ns for link in found.engine.links) and found.completed >= 20

    done = driving.until(enough)
    assert done.failures == {}
    assert done.completed >= 20


def test_an_idle_connection_that_the_server_closes_is_no_failure(stand_in: StartServer, drive: Drive) -> None:
    response = OK + b"Content-Length: 2\r\n\r\nok"
    server = stand_in(behave.responding(response, good=True, once=True))  # closes without a word
    driving = drive(server.server_address).link(lambda engine: WebLink(engine, GET))
    # Far enough apart for the close to be seen before the next request goes out.
    driving.engine.model = OpenModel(driving.engine, constant(time.perf_counter_ns(), 5.0), 10)
    done = driving.until(completed(3))
    assert done.failures == {}
    assert server.connections == done.completed


def test_in_the_open_model_exchanges_come_due_whatever_the_server_does(stand_in: StartServer, drive: Drive) -> None:
    server = stand_in(behave.slow(0.05))
    driving = drive(server.server_address).link(lambda engine: TalkbackLink(engine, LINE))
    start_ns, cap = time.perf_counter_ns(), 4
    driving.engine.model = OpenModel(driving.engine, constant(start_ns, 100.0), cap)
    done = driving.until(completed(10))
    due_ns = [due for batch in done.batches for due, _ in batch.offered]
    assert due_ns == list(itertools.islice(constant(start_ns, 100.0), len(due_ns)))  # all, and no other
    missed_ns = {due for batch in done.batches for due in batch.missed_ns}
    begun_ns = [due for batch in done.batches for due in batch.due_ns]
    assert sorted(begun_ns) == begun_ns == [due for due in due_ns if due not in missed_ns]
    assert len(missed_ns) > 20  # one connection serves a fifth of the rate
    for batch in done.batches:
        for due, sent, end in zip(batch.due_ns, batch.sent_ns, batch.end_ns, strict=True):
            assert due <= sent <= end
    waits_ns = [sent - due for batch in done.batches for due, sent in zip(batch.due_ns, batch.sent_ns, strict=True)]
    assert max(waits_ns) > 100_000_000  # in the queue, for the ones before it


def test_what_the_engine_itself_sees_too_late_is_missed_and_not_sent_in_a_burst(
    stand_in: StartServer, drive: Drive
) -> None:
    driving = drive(stand_in(behave.talkback).server_address).link(lambda engine: TalkbackLink(engine, LINE))
    ago_ns = time.perf_counter_ns() - 10_000_000_000
    driving.engine.model = OpenModel(driving.engine, constant(ago_ns, 100.0), 10_000)
    done = driving.until(completed(3))
    missed_ns = [due for batch in done.batches for due in batch.missed_ns]
    assert len(missed_ns) > 900
    assert max(missed_ns) < min(due for batch in done.batches for due in batch.due_ns)


EXHAUST = """
    import contextlib, fcntl, socket, struct, sys, threading
    sys.path[:0] = {path!r}
    from loadtest.generator.dialer import Dialer
    from pathlib import Path

    with socket.socket() as any_socket:  # the new network's loopback device is down
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))
    settings = Path("/proc/sys/net/ipv4")
    (settings / "ip_local_port_range").write_text("40000 40009")
    (settings / "tcp_tw_reuse").write_text("0")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 50000))
        listener.listen(100)
        dial = Dialer(socket.AF_INET, listener.getsockname())
        sources = set()
        for _ in range(35):
            with contextlib.closing(dial()):
                peer, source = listener.accept()
            peer.recv(1)  # our end closed first and keeps its port
            peer.close()
            sources.add(source)
        assert len(sources) == 35, sources
        print(*sorted({{host for host, _ in sources}}))
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 50000))
        listener.listen(100)
        dial = Dialer(socket.AF_INET6, listener.getsockname())
        held = []
        try:
            for _ in range(11):
                held.append(dial())
        except OSError as error:
            print(len(held), error.strerror)
"""


def test_when_the_ports_of_one_source_are_used_up_another_takes_its_place() -> None:
    """In a network of its own, with ten ports: 35 connections need four sources; of IPv6 there is but one."""

    def apart(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["unshare", "-rn", *command], check=False, capture_output=True, text=True, timeout=30)

    if shutil.which("unshare") is None or apart("true").returncode:
        pytest.skip("no network of its own can be made here (unshare -rn)")
    done = apart(sys.executable, "-c", textwrap.dedent(EXHAUST.format(path=[str(ROOT)])))
    expected = "127.0.0.1 127.0.0.2 127.0.0.3 127.0.0.4\n10 Cannot assign requested address\n"
    assert done.stdout == expected, done.stderr


@pytest.mark.smoke
def test_schedules() -> None:
    assert list(itertools.islice(constant(1000, 4.0), 4)) == [1000, 250_001_000, 500_001_000, 750_001_000]
    times = list(itertools.islice(poisson(1000, 1000.0, random.Random(1)), 20_000))
    assert times == list(itertools.islice(poisson(1000, 1000.0, random.Random(1)), 20_000))
    assert times == sorted(times)
    assert times[0] >= 1000
    gaps_ns = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean_ns = sum(gaps_ns) / len(gaps_ns)
    assert mean_ns == pytest.approx(1e6, rel=0.05)
    # Exponential: as wide as its mean, and a share of 1/e beyond it.
    assert sum(gap > mean_ns for gap in gaps_ns) / len(gaps_ns) == pytest.approx(0.368, abs=0.03)
