"""When a worker's listeners are in its epoll: real listeners and epolls, the time by hand."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from select import epoll
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from prefork.core.listener import Listener
from prefork.engines.accept import EMPTY_LOOKS, FULL_NS, OFF_NS, REST_NS, AcceptBalance, EpollAcceptor
from prefork.engines.timers import NEVER
from prefork.errors import ACCEPT_PAUSE_S
from prefork.runtime.orders import Orders
from prefork.status.scoreboard import BYTES_IN, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAUSE_NS = round(ACCEPT_PAUSE_S * 1e9)


class Machine:
    """Two workers on the same listeners; the second is a line of the scoreboard only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stack: ExitStack, listeners: int) -> None:
        self.now_ns = 1_000_000_000_000
        monkeypatch.setattr("prefork.engines.accept.monotonic_ns", lambda: self.now_ns)
        self.stack = stack
        self.board = Scoreboard(groups=2, threads=1)
        orders = Orders(2)
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        stack.callback(os.close, self.wake_fd)
        for group in range(2):
            self.board.clear(group)
            orders.begin(group)
        self.balance = AcceptBalance(self.board, orders, 0, self.wake_fd, may_exceed=False)
        self.other = AcceptBalance(self.board, orders, 1, self.wake_fd, may_exceed=False)
        self.listeners = [
            Listener(stack.enter_context(socket.create_server(("127.0.0.1", 0))), f"127.0.0.1:{number}")
            for number in range(listeners)
        ]
        self.epoll = stack.enter_context(epoll())
        self.most = 100
        self.held: list[Listener] = []
        self.idle = 0  # of those, which may make room
        self.offered = 0  # how often it was asked to make room
        self.meanwhile: Callable[[], object] = int  # what happens then
        self.notes: list[str] = []
        self.acceptor = EpollAcceptor(
            self.listeners,
            epoll=self.epoll,
            balance=self.balance,
            errors=cast("Any", SimpleNamespace(note=lambda event, **_: self.notes.append(event))),
            admit=self.admit,
            room=lambda: len(self.held) < self.most,
            make_room=self.make_room,
            held=lambda: len(self.held),
        )
        self.handlers = self.acceptor.handlers()
        self.balance.publish(0, able=True)
        self.other.publish(0, able=True)
        self.acceptor.open()

    def admit(self, fd: int, _sockaddr: Any, listener: Listener) -> None:
        os.close(fd)
        self.held.append(listener)
        self.balance.publish(len(self.held), able=len(self.held) < self.most)

    def make_room(self, accept: Callable[[], bool]) -> bool:
        self.offered += 1
        self.meanwhile()
        if not self.idle or not accept():
            return False
        self.idle -= 1
        self.held.pop(0)
        return True

    def connect(self, number: int = 0) -> None:
        self.stack.enter_context(socket.create_connection(self.listeners[number].sock.getsockname(), timeout=5))

    def ready(self) -> list[int]:
        """What the epoll reports now."""
        return [fd for fd, _mask in self.epoll.poll(0)]

    def turn(self, after_ns: int = 0) -> None:
        """Have a turn of the loop, some time later."""
        self.now_ns += after_ns
        self.balance.woke()
        for fd in self.ready():
            self.handlers[fd](fd, self.now_ns)
        if self.acceptor.check_ns != NEVER:
            self.acceptor.maintain(self.now_ns)
        self.balance.sleeps()

    @property
    def off(self) -> bool:
        """Whether it has left a connection that waits to others: the epoll does not tell of it."""
        assert self.acceptor.waits()
        return not self.ready()

    def wake_ups(self) -> int:
        try:
            return os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            return 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> Machine:
    return Machine(monkeypatch, stack, listeners=1)


def test_after_one_it_rests_for_a_moment_and_looks_again(machine: Machine) -> None:
    machine.other.publish(50, able=True)
    machine.connect()
    machine.connect()
    machine.turn()
    assert len(machine.held) == 1
    assert machine.off
    assert machine.acceptor.check_ns == machine.now_ns + REST_NS
    machine.turn(REST_NS - 1)
    assert machine.off
    machine.turn(1)
    machine.turn()
    assert len(machine.held) == 2


def test_a_client_that_has_asked_ends_the_rest(machine: Machine) -> None:
    machine.other.publish(50, able=True)
    machine.connect()
    machine.turn()
    machine.connect()
    assert machine.off
    machine.board.row(0).cells[BYTES_IN] += 1
    machine.turn(1)
    machine.turn()
    assert len(machine.held) == 2


def test_above_its_share_it_wakes_another_and_looks_soon_while_one_waits(machine: Machine) -> None:
    machine.connect()
    machine.connect()
    machine.turn()
    assert len(machine.held) == 1, "the mean is one half"
    assert machine.wake_ups() == 1
    assert machine.acceptor.check_ns == machine.now_ns + REST_NS
    machine.turn(REST_NS)
    assert machine.off
    assert machine.acceptor.check_ns == machine.now_ns + REST_NS, "one waits: its share may change any moment"
    machine.other.publish(2, able=True)
    machine.turn(REST_NS)
    machine.turn()
    assert len(machine.held) == 2


def test_what_is_left_to_another_is_not_taken_from_its_wake_up_in_the_same_turn(machine: Machine) -> None:
    """The epoll reports the listener and a wake-up at once, and the listener comes first."""
    machine.connect()
    machine.connect()
    machine.other.wake_another()
    machine.turn()
    assert len(machine.held) == 1
    assert machine.wake_ups() == 3, "who has heard the one does not act on it, so the other worker is woken once more"


def test_a_wake_up_of_another_lets_it_take_what_waits(machine: Machine) -> None:
    machine.other.wake_another()
    machine.turn()
    assert machine.wake_ups() == 0
    assert not machine.held, "it was taken meanwhile"
    machine.connect()
    machine.turn()
    assert len(machine.held) == 1


def test_without_a_client_it_looks_seldom_and_after_many_looks_waits_to_be_woken(machine: Machine) -> None:
    machine.connect()
    machine.turn()
    assert machine.acceptor.check_ns == machine.now_ns + OFF_NS
    for _ in range(EMPTY_LOOKS - 1):
        machine.turn(OFF_NS)
        assert machine.acceptor.check_ns == machine.now_ns + OFF_NS
    machine.turn(OFF_NS)
    assert machine.acceptor.check_ns == NEVER
    machine.connect()
    machine.turn()
    assert len(machine.held) == 1
    assert machine.off, "it has left it to the other worker"
    assert machine.wake_ups() == 1


def test_full_it_looks_now_and_then_and_takes_one_as_soon_as_room_is_made(machine: Machine) -> None:
    machine.most = 1
    machine.connect()
    machine.turn()
    assert machine.acceptor.check_ns == machine.now_ns + FULL_NS
    machine.connect()
    machine.turn(FULL_NS)
    machine.turn()
    assert machine.off
    machine.idle = 1
    machine.turn(FULL_NS)
    machine.turn()
    assert len(machine.held) == 1
    assert not machine.idle
    assert not machine.acceptor.waits()


def test_full_it_sleeps_once_what_it_has_left_is_gone(machine: Machine) -> None:
    machine.most = 1
    machine.connect()
    machine.connect()
    machine.turn()
    assert machine.off, "it is left to the other worker"
    machine.listeners[0].sock.accept()[0].close()
    for _ in range(EMPTY_LOOKS + 1):
        machine.turn(FULL_NS)
    assert machine.acceptor.check_ns == NEVER


def test_a_connection_that_has_failed_before_it_was_accepted_does_not_end_the_turn(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket._accept  # type: ignore[attr-defined]
    failing = [errno.ECONNABORTED, errno.EPROTO]

    def fail(sock: socket.socket) -> Any:
        taken = accept(sock)
        if not failing:
            return taken
        os.close(taken[0])
        raise OSError(failing.pop(), "")

    monkeypatch.setattr(socket.socket, "_accept", fail)
    for _ in range(3):
        machine.connect()
    machine.turn()
    assert not failing
    assert len(machine.held) == 1


def test_no_room_is_made_while_nobody_waits(machine: Machine) -> None:
    machine.most = machine.idle = 1
    machine.connect()
    machine.turn()
    for _ in range(5):
        machine.turn(FULL_NS)
    assert not machine.offered


def test_no_idle_one_ends_for_what_another_full_worker_has_taken(machine: Machine) -> None:
    machine.most = machine.idle = 1
    machine.connect()
    machine.turn()
    machine.connect()

    def steal() -> None:
        machine.listeners[0].sock.accept()[0].close()

    machine.meanwhile = steal
    machine.turn(FULL_NS)
    machine.turn()
    assert machine.offered == 1
    assert machine.idle == 1
    assert len(machine.held) == 1


class TestWithoutDescriptors:
    """The kernel gives no descriptor for a connection: the worker pauses, and the others know."""

    @pytest.fixture(autouse=True)
    def accepting_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = True
        accept = socket.socket._accept  # type: ignore[attr-defined]

        def fail(sock: socket.socket) -> Any:
            if self.fails:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return accept(sock)

        monkeypatch.setattr(socket.socket, "_accept", fail)

    def test_another_is_woken_and_does_not_wait_for_it(self, machine: Machine) -> None:
        machine.other.publish(5, able=True)
        assert not machine.other.may_take(5)
        machine.connect()
        machine.turn()
        assert machine.notes == ["accept paused"]
        assert machine.wake_ups() == 1
        assert machine.other.may_take(5)
        machine.balance.publish(0, able=True)  # as with each heartbeat
        assert machine.other.may_take(5)

    def test_it_does_not_come_back_before_the_pause_is_over(self, machine: Machine) -> None:
        machine.connect()
        machine.turn()
        machine.board.row(0).cells[BYTES_IN] += 1
        machine.turn(PAUSE_NS - 1)
        assert machine.off
        self.fails = False
        machine.turn(1)
        machine.turn()
        assert len(machine.held) == 1

    def test_afterwards_the_others_count_on_it_again(self, machine: Machine) -> None:
        machine.other.publish(5, able=True)
        machine.connect()
        machine.turn()
        self.fails = False
        machine.turn(PAUSE_NS)
        assert not machine.other.may_take(5)

    def test_a_pause_is_forgotten_when_it_is_opened_anew(self, machine: Machine) -> None:
        machine.connect()
        machine.turn()
        machine.acceptor.stop_accepting()
        self.fails = False
        machine.acceptor.open()
        machine.turn()
        assert len(machine.held) == 1


def test_each_listener_has_its_turn(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    machine = Machine(monkeypatch, stack, listeners=2)
    machine.other.publish(50, able=True)
    for _ in range(6):
        machine.connect(0)
    machine.connect(1)
    while machine.acceptor.waits():
        machine.turn(REST_NS)
        assert len(machine.held) <= 7
    assert machine.listeners[1] in machine.held[:4], "a queue that is never empty does not keep the second out"
