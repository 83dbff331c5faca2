"""Taking connections from shared listeners, with several acceptors in threads instead of workers."""

from __future__ import annotations

import errno
import resource
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from prefork.core.address import Address, format_sockaddr
from prefork.core.listener import ACCEPT_WAIT_S, Listener, open_listener, timeval
from prefork.engines.threads.engine import Acceptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LIMIT_S = 10.0  # of every wait for loopback


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Listener]]:
    """`opened("127.0.0.1:0")`: a listener as workers inherit it; accept() waits 50 ms."""
    made: list[Listener] = []

    def make(text: str = "127.0.0.1:0", *, blocking: bool = True) -> Listener:
        listener = open_listener(Address.parse(text), backlog=64)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.05))
        listener.sock.setblocking(blocking)
        made.append(listener)
        return listener

    yield make
    for listener in made:
        listener.close()
        listener.unlink()


@pytest.fixture
def several(opened: Callable[..., Listener], tmp_path: Path) -> list[Listener]:
    """Two TCP listeners and a Unix one, non-blocking as the master leaves several."""
    return [opened(text, blocking=False) for text in ("127.0.0.1:0", f"unix:{tmp_path}/app.sock", "127.0.0.1:0")]


def connect(listener: Listener) -> socket.socket:
    """A client that is connected, or waits in the listener's queue."""
    where = Address.parse(listener.address)
    sock = socket.socket(where.family)
    sock.settimeout(LIMIT_S)
    sock.connect(where.path or (where.host, where.port))
    return sock


def serve(acceptor: Acceptor, take: Callable[[], tuple[int, object]]) -> str:
    """Take one connection and answer with its peer; return that."""
    fd, sockaddr = take()
    with socket.socket(fileno=fd) as sock:
        assert sock.family == acceptor.family
        peer = format_sockaddr(acceptor.family, sockaddr)
        sock.sendall(peer.encode())
        return peer


def answered(client: socket.socket) -> str:
    """What a client was told before its connection was closed."""
    with client:
        reply = b""
        while piece := client.recv(100):
            reply += piece
    return reply.decode()


def name(client: socket.socket) -> str:
    return format_sockaddr(client.family, client.getsockname())


def test_one_listener_gives_its_connections_in_their_order(opened: Callable[..., Listener]) -> None:
    listener = opened()
    acceptor = Acceptor([listener])
    clients = [connect(listener) for _ in range(5)]
    for client in clients:
        expected = name(client)
        assert serve(acceptor, acceptor.take) == expected
        assert answered(client) == expected


@pytest.mark.parametrize("blocking", [True, False])
def test_nothing_came(opened: Callable[..., Listener], blocking: bool) -> None:
    acceptor = Acceptor([opened(blocking=blocking)])
    for _ in range(2):
        with pytest.raises(BlockingIOError) as caught:
            acceptor.take()
        assert caught.value.errno == errno.EAGAIN
        acceptor.ran_out()


def test_a_listener_that_another_process_made_non_blocking_is_waited_for(opened: Callable[..., Listener]) -> None:
    """take() waits again, and does not spin."""
    listener = opened()
    acceptor = Acceptor([listener])
    listener.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        acceptor.take()
    acceptor.ran_out()
    came = threading.Thread(target=lambda: answered(connect(listener)))
    began_s = time.monotonic()
    with pytest.raises(BlockingIOError):
        acceptor.take()
    assert time.monotonic() - began_s >= ACCEPT_WAIT_S / 2
    came.start()
    serve(acceptor, acceptor.take)
    came.join(LIMIT_S)


def test_several_listeners_of_several_families(several: list[Listener]) -> None:
    acceptor = Acceptor(several)
    for listener in (*several, *reversed(several)):
        client = connect(listener)
        expected = name(client)
        assert serve(acceptor, acceptor.take) == expected
        assert answered(client) == expected
    with pytest.raises(BlockingIOError):
        acceptor.take()


def test_what_waits_on_several_listeners_is_all_taken(several: list[Listener]) -> None:
    acceptor = Acceptor(several)
    clients = [connect(listener) for listener in several for _ in range(4)]
    served = sorted(serve(acceptor, acceptor.take) for _ in clients)
    assert served == sorted(map(name, clients))
    for client in clients:
        answered(client)


@contextmanager
def acceptors(listeners: Sequence[Listener], count: int) -> Iterator[list[int]]:
    """So many acceptors at work; the list counts what each has served."""
    served = [0] * count
    stop = threading.Event()
    waiting = threading.Barrier(count + 1)

    def work(number: int) -> None:
        acceptor = Acceptor(listeners)
        waiting.wait(LIMIT_S)
        while not stop.is_set():
            try:
                fd, _peer = acceptor.take()
            except BlockingIOError:
                acceptor.ran_out()
                continue
            served[number] += 1
            with socket.socket(fileno=fd) as sock:
                sock.sendall(b"%d" % number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    waiting.wait(LIMIT_S)
    try:
        yield served
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()


@pytest.mark.timing
@pytest.mark.parametrize("count", [1, 2])
def test_acceptors_take_turns(opened: Callable[..., Listener], count: int) -> None:
    """On one listener as on several. Sequential clients, so that every acceptor is free each time."""
    listeners = [opened(blocking=count == 1) for _ in range(count)]
    with acceptors(listeners, 4) as served:
        for number in range(120):
            answered(connect(listeners[number % count]))
    assert sum(served) == 120
    assert min(served) >= 10


def test_the_queue_is_drained_from_every_listener_until_all_are_empty(several: list[Listener]) -> None:
    acceptor = Acceptor(several)
    clients = [connect(listener) for listener in several for _ in range(3)]
    for listener in several:
        listener.hold_off()
    served = sorted(serve(acceptor, acceptor.take_queued) for _ in clients)
    assert served == sorted(map(name, clients))
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            acceptor.take_queued()
    for client in clients:
        answered(client)


def test_a_listener_held_off_while_an_acceptor_waits(opened: Callable[..., Listener]) -> None:
    listener = opened()
    acceptor = Acceptor([listener])
    client = connect(listener)
    listener.hold_off()
    expected = name(client)
    assert serve(acceptor, acceptor.take_queued) == expected
    assert answered(client) == expected
    with pytest.raises(BlockingIOError):
        acceptor.take_queued()


def test_the_last_descriptor_is_not_needed_to_wait(opened: Callable[..., Listener]) -> None:
    """All that an acceptor needs is made at its start: descriptors may be out when it changes its way of waiting."""
    listener = opened()
    acceptor = Acceptor([listener])
    listener.sock.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match=r"Too many open files|Resource temporarily unavailable"):
            acceptor.take()
        acceptor.ran_out()
        with pytest.raises(BlockingIOError):
            acceptor.take()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
