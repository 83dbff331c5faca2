"""Signals as data. Each test leaves this process with the handlers that it found."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.core.signals import FAULT, STACKS, TABLE, SignalInbox, ignore, name

if TYPE_CHECKING:
    from collections.abc import Iterator

WANTED = (signal.SIGUSR1, signal.SIGUSR2)
KILL_PARENT = "import os, signal; os.kill(os.getppid(), signal.SIGUSR1)"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what a test changes: handlers and the wakeup fd."""
    before = {signum: signal.getsignal(signum) for signum in (*WANTED, signal.SIGCHLD)}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    yield
    signal.set_wakeup_fd(wakeup)
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def inbox(handlers: None) -> Iterator[SignalInbox]:
    made = SignalInbox(WANTED)
    yield made
    made.close()


def readable(fd: int, wait_s: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], wait_s)[0])


def test_signals_are_taken_once_in_their_order(inbox: SignalInbox) -> None:
    sent = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2, signal.SIGUSR1]
    for signum in sent:
        signal.raise_signal(signum)
    assert inbox.take() == sent
    assert inbox.take() == []


def test_it_is_readable_while_there_is_something_to_take(inbox: SignalInbox) -> None:
    assert not readable(inbox.fd)
    signal.raise_signal(signal.SIGUSR1)
    assert readable(inbox.fd)
    inbox.take()
    assert not readable(inbox.fd)


def test_taking_never_blocks(inbox: SignalInbox) -> None:
    assert inbox.take() == []


def test_a_signal_ends_a_wait(inbox: SignalInbox) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", KILL_PARENT]) as child:
        assert readable(inbox.fd, wait_s=20)
    assert inbox.take() == [signal.SIGUSR1]
    assert child.returncode == 0


def test_a_storm_fills_the_pipe_and_nothing_else(inbox: SignalInbox, capfd: pytest.CaptureFixture[str]) -> None:
    """The pipe's bytes only wake: when it is full, signals are still recorded, and nobody is told of an error."""
    for _ in range(70_000):
        signal.raise_signal(signal.SIGUSR1)
    assert inbox.take() == [signal.SIGUSR1] * 70_000
    assert not readable(inbox.fd)
    assert capfd.readouterr().err == ""


def test_programs_that_are_started_do_not_get_the_inbox(inbox: SignalInbox) -> None:
    assert not os.get_inheritable(inbox.fd)
    assert not os.get_inheritable(signal.set_wakeup_fd(-1))


def test_a_closed_inbox_gives_up_the_wakeup_and_its_descriptors(handlers: None) -> None:
    inbox = SignalInbox(WANTED)
    inbox.close()
    assert signal.set_wakeup_fd(-1) == -1
    signal.raise_signal(signal.SIGUSR1)  # its handler must not write to a descriptor that is another's by now
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(inbox.fd)


def test_a_second_inbox_takes_over(inbox: SignalInbox) -> None:
    """As in a child, which makes its own before it unblocks signals."""
    second = SignalInbox([signal.SIGUSR2])
    signal.raise_signal(signal.SIGUSR2)
    assert readable(second.fd)
    assert not readable(inbox.fd)
    assert (second.take(), inbox.take()) == ([signal.SIGUSR2], [])
    second.close()


def test_an_ignored_signal_does_nothing_here_and_its_usual_in_programs_that_are_started() -> None:
    ignore(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    child = subprocess.run(["/bin/sh", "-c", "kill -USR1 $$"], check=False, timeout=30)
    assert child.returncode == -signal.SIGUSR1


@pytest.mark.parametrize(
    ("signum", "expected"), [(11, "SIGSEGV"), (signal.SIGTERM, "SIGTERM"), (40, "signal 40"), (999, "signal 999")]
)
def test_names(signum: int, expected: str) -> None:
    assert name(signum) == expected


def test_the_table_answers_all_that_an_operator_may_send() -> None:
    """A signal that is missing would end the master, by its default action."""
    operators = {"TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TTIN", "TTOU", "CHLD"}
    assert {signum.name.removeprefix("SIG") for signum in TABLE} >= operators
    assert all(TABLE.values())


def test_the_questions_to_a_hung_worker_are_signals_that_applications_do_not_use() -> None:
    assert len({STACKS, FAULT}) == 2
    for signum in (STACKS, FAULT):
        assert signal.SIGRTMIN < signum <= signal.SIGRTMAX
        assert signum not in TABLE
