"""The queue in which connections change hands, with real sockets: nothing is lost, what is no connection is refused."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from prefork.core.log import printable
from prefork.runtime.transfer import SIZE, TransferMessage, TransferQueue
from tests.support.server import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = TransferMessage(
    server=("127.0.0.1", 8000),
    client=("192.0.2.7:4711", "192.0.2.7", 4711),
    since_ns=5,
    served=True,
    queue_ms=None,
    evened=False,
    master=1,
    sent_ns=6,
)
RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


@pytest.fixture
def queue() -> Iterator[TransferQueue]:
    with closing(TransferQueue()) as queue:
        yield queue


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the client's end, and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        with client, listener.accept()[0] as served:
            yield client, served


def test_a_connection_goes_on_where_it_was(queue: TransferQueue, pair: tuple[socket.socket, socket.socket]) -> None:
    client, served = pair
    client.sendall(b"sent before")
    assert queue.give(served.fileno(), MESSAGE.encode())
    served.close()
    client.sendall(b", and after")
    taken = queue.take()
    assert taken is not None
    sock, message = taken
    assert message == MESSAGE
    assert not os.get_inheritable(sock.fileno())
    assert sock.recv(100) == b"sent before, and after"
    sock.sendall(b"answer")
    assert client.recv(100) == b"answer"
    sock.close()
    assert client.recv(100) == b""


def test_what_waits_is_counted_by_the_kernel(queue: TransferQueue, pair: tuple[socket.socket, socket.socket]) -> None:
    assert (queue.waiting(), queue.oldest_ns(), queue.take()) == (0, 0, None)
    for sent_ns in (7, 8, 9):
        assert queue.give(pair[1].fileno(), replace(MESSAGE, sent_ns=sent_ns).encode())
    assert (queue.waiting(), queue.oldest_ns()) == (3, 7)
    (first := queue.take() or pytest.fail("nothing"))[0].close()
    assert first[1].sent_ns == 7
    assert (queue.waiting(), queue.oldest_ns()) == (2, 8)


def test_a_giver_who_is_too_fast_keeps_its_connections(
    queue: TransferQueue, pair: tuple[socket.socket, socket.socket]
) -> None:
    given = 0
    while queue.give(pair[1].fileno(), MESSAGE.encode()):
        given += 1
        assert given < 100
    assert 20 <= given == queue.waiting() <= 40
    while taken := queue.take():
        taken[0].close()
    assert queue.give(pair[1].fileno(), MESSAGE.encode())


def test_a_unix_connection_and_one_of_ipv6_change_hands(queue: TransferQueue) -> None:
    with ExitStack() as stack:
        ends = [*socket.socketpair()]
        if socket.has_dualstack_ipv6():
            listener = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
            stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
            ends.append(listener.accept()[0])
        for end in ends:
            stack.enter_context(end)
            assert queue.give(end.fileno(), MESSAGE.encode())
            (taken := queue.take() or pytest.fail("nothing"))[0].close()
            assert taken[0].fileno() < 0


def test_a_client_that_has_left_meanwhile_is_no_connection(
    queue: TransferQueue, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, served = pair
    assert queue.give(served.fileno(), MESSAGE.encode())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()  # by a reset
    assert queue.take() == (None, MESSAGE), "it is known whose it was"


def sent(queue: TransferQueue, data: bytes, *fds: int) -> None:
    """Put anything into the queue, as whoever has its descriptor can."""
    with socket.socket(fileno=os.dup(queue.fds[0])) as out:
        out.sendmsg([data], [(*RIGHTS, b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds))] if fds else [])


def test_what_is_no_connection_is_refused_and_closed(
    queue: TransferQueue, pair: tuple[socket.socket, socket.socket]
) -> None:
    _, served = pair
    good = MESSAGE.encode()
    reads, writes = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reads)
        stack.callback(os.close, writes)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        idle = stack.enter_context(socket.socket())
        said = json.loads(good)
        bad: list[tuple[bytes, tuple[int, ...]]] = [
            *((data.ljust(SIZE), (served.fileno(),)) for data in (b"", b"{", b"[" * 700, b"null", b"\xff")),
            *(
                (json.dumps({**said, **change}).encode().ljust(SIZE), (served.fileno(),))
                for change in (
                    {"v": 2},
                    {"server": None},
                    {"client": ["x" * 300, "x", 1]},
                    {"client": ["1.2.3.4:1\n", "1.2.3.4", 1]},
                    {"client": ["1.2.3.4:1", "1.2.3.4", 70000]},
                    {"since_ns": "1"},
                    {"served": 1},
                )
            ),
        ]
        no_connections: list[tuple[int, ...]] = [
            (),
            (served.fileno(), served.fileno()),
            *((each,) for each in (reads, listener.fileno(), datagrams.fileno(), idle.fileno())),
        ]
        queue.take()  # its spare descriptor is there from now on
        before = len(os.listdir("/proc/self/fd"))
        for fds in no_connections:
            sent(queue, good, *fds)
            assert queue.take() == (None, MESSAGE)
            assert len(os.listdir("/proc/self/fd")) == before, fds
        for data, fds in bad:
            sent(queue, data, *fds)
            with pytest.raises(ValueError, match=r"."):
                queue.take()
            assert len(os.listdir("/proc/self/fd")) == before, (data, fds)
        assert queue.give(served.fileno(), good), "and it goes on"
        (queue.take() or pytest.fail("nothing"))[0].close()


def test_times_that_have_not_come_yet_are_now() -> None:
    message = TransferMessage.decode(replace(MESSAGE, since_ns=1 << 70, sent_ns=1 << 70).encode())
    assert message.since_ns == message.sent_ns <= time.monotonic_ns()


@pytest.mark.parametrize("name", ["unix:/" + "x" * 300, "unix:/a\nb", "unix:/\udcff", "unix:/" + "\U0001f600" * 90])
def test_a_client_of_any_name_can_be_given(
    queue: TransferQueue, pair: tuple[socket.socket, socket.socket], name: str
) -> None:
    longest = replace(MESSAGE, server=("/" + 107 * "\udcff", None), client=(name, "unix:", 0))
    assert queue.give(pair[1].fileno(), longest.encode())
    sock, message = queue.take() or pytest.fail("nothing")
    sock.close()
    text, *rest = message.client
    assert rest == ["unix:", 0]
    assert text.isprintable()
    assert text == printable(name)[: len(text)]
    assert len(text) >= min(len(name), 100)
    assert message.server == longest.server


@pytest.mark.parametrize("made", ["here", "of the master before"])
def test_a_default_timeout_of_the_application_makes_nobody_wait(
    pair: tuple[socket.socket, socket.socket], made: str
) -> None:
    with ExitStack() as stack:
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(3.0)
        queue = stack.enter_context(closing(TransferQueue()))
        if made != "here":
            fds = tuple(map(os.dup, queue.fds))
            queue = stack.enter_context(closing(TransferQueue((fds[0], fds[1]))))
        began_s = time.monotonic()
        assert (queue.waiting(), queue.oldest_ns(), queue.take()) == (0, 0, None)
        while queue.give(pair[1].fileno(), MESSAGE.encode()):
            assert queue.oldest_ns() == MESSAGE.sent_ns
        while taken := queue.take():
            taken[0].close()
        assert time.monotonic() - began_s < 2.0


AT_THE_LIMIT = """
    import os, resource, socket
    from contextlib import suppress
    from prefork.runtime.transfer import TransferQueue
    from tests.runtime.test_transfer import MESSAGE

    queue = TransferQueue()
    queue.take()
    client, served = socket.socketpair()
    for _ in range(3):
        assert queue.give(served.fileno(), MESSAGE.encode())
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    full = []
    with suppress(OSError):
        while True:
            full.append(os.dup(0))
    while queue.waiting() and (got := queue.take()):
        taken.append(got)
    print(len(taken), queue.waiting())
    for fd in full:
        os.close(fd)
    while got := queue.take():
        taken.append(got)
    print(len(taken), queue.waiting())
    taken[-1][0].send(b"alive")
    print(client.recv(100).decode())
"""


def test_without_a_free_descriptor_nothing_is_lost() -> None:
    """recvmsg() would take the message and drop the descriptor: so whoever has no spare one does not take."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 64
    code = textwrap.dedent(AT_THE_LIMIT)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["1 2", "3 0", "alive"], done.stderr
