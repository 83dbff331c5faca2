"""Signals as data. A handler appends to a deque and returns; the loop reads the deque when it wakes.

Python runs handlers between bytecodes of the main thread, so a handler that logs, locks or joins can re-enter the code
it interrupts. The byte that CPython writes to the wakeup fd ends the loop's wait; its content is not used.

`TABLE` is what the signals mean to an operator; the README's table is tested against it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections import deque
from collections.abc import Collection, Iterable
from os import read  # bound now: that of eventlet waits where this one says that there is nothing
from types import FrameType

from prefork.core.libc import libc

# What the master does with each signal.
TABLE: dict[signal.Signals, str] = {
    signal.SIGTERM: "graceful stop, after --lame-duck: drain the accept queue, finish requests in flight, exit",
    signal.SIGINT: "graceful stop; a second one stops at once",
    signal.SIGQUIT: "stop at once",
    signal.SIGCHLD: "internal: a child has exited",
    signal.SIGHUP: "reload: replace every worker by one that loads the app again, each ready before the old one ends",
    signal.SIGUSR1: "open the file of --log again, in the master and all workers, after a log rotation",
    signal.SIGUSR2: "upgrade: run the command again on the same sockets; this server ends when the new one is ready",
    signal.SIGTTIN: "one worker more",
    signal.SIGTTOU: "one worker less, down to 1",
}

# Ctrl-C and a terminal that closes signal the whole group: the master reads them and gives its workers orders.
NOT_OURS = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip

# Sent by the master to a worker that is out of time. Real-time signals: applications use the others.
STACKS = signal.SIGRTMIN + 1  # answered by a Python handler: the stacks of all threads
FAULT = signal.SIGRTMIN + 2  # answered by faulthandler, in C: works while other C code holds the GIL

# What the master has no use for, and what would end it by default: it says so in the log and goes on. Left out are
# those that cannot be caught, those that faulthandler reports, and SIGPIPE, which every client that leaves early may
# cause.
FATAL = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT})
_HARMLESS = frozenset({signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGTSTP})
_LEFT_OUT = {*TABLE, *FATAL, *_HARMLESS, signal.SIGPIPE, signal.SIGKILL, signal.SIGSTOP}
UNEXPECTED = frozenset(int(signum) for signum in signal.valid_signals() if signum not in _LEFT_OUT)

# The C library keeps these for itself (nptl(7)): it has handlers for them once there are threads, and until then the
# default, which ends the process. As it refuses to change them, the kernel is asked.
_INTERNAL = (32, 33)
_RT_SIGACTION = {"x86_64": 13, "aarch64": 134, "riscv64": 134}.get(os.uname().machine)  # sigaction(2)
_SIG_DFL, _SIG_IGN = 0, 1


def set_internal(*, ignored: bool) -> None:
    """Ignore the signals of the C library if they have their default, or the other way round."""
    if _RT_SIGACTION is None:
        return
    before, after = (_SIG_DFL, _SIG_IGN) if ignored else (_SIG_IGN, _SIG_DFL)
    for signum in _INTERNAL:
        action = (ctypes.c_ulong * 8)()  # struct sigaction of the kernel begins with the handler
        libc.syscall(_RT_SIGACTION, signum, None, action, ctypes.c_size_t(8))
        if action[0] == before:
            action[0] = after
            libc.syscall(_RT_SIGACTION, signum, action, None, ctypes.c_size_t(8))


class SignalInbox:
    """MASTER and WORKER. Remembers signals until the loop takes them.

    `fd` is readable when there may be something to take. A child makes its own inbox before it unblocks signals: the
    wakeup fd is inherited, and its signals would wake the parent.
    """

    def __init__(self, wanted: Iterable[int]) -> None:
        self._pending: deque[int] = deque()  # appended by handlers, drained by take()
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.listen()
        for signum in wanted:
            signal.signal(signum, self._record)

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends of the pipe."""
        return self.fd, self._write_fd

    def listen(self) -> None:
        """Set the wakeup fd again, after an event loop has replaced it."""
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)

    def _record(self, signum: int, _frame: FrameType | None) -> None:
        self._pending.append(signum)

    def holds(self, signums: Collection[int]) -> bool:
        """Return whether one of these signals waits to be taken."""
        return any(signum in signums for signum in list(self._pending))

    def take(self) -> list[int]:
        """Return the signals that came since the last call, oldest first. Never blocks."""
        try:
            while read(self.fd, 4096):
                pass  # the bytes only ended the wait
        except BlockingIOError:
            pass  # empty: all wake-ups seen
        taken = []
        while self._pending:
            taken.append(self._pending.popleft())
        return taken

    def close(self) -> None:
        """Give up the wakeup fd. Handlers stay; the deque still records."""
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._write_fd)


def by_default(signums: Iterable[int]) -> None:
    """Let the signals do what they do in a Python process of its own."""
    for signum in signums:
        signal.signal(signum, signal.SIG_IGN if signum == signal.SIGXFSZ else signal.SIG_DFL)


def ignore(signum: int) -> None:
    """Make the signal do nothing here, but not in programs that this process starts (SIG_IGN survives exec)."""
    signal.signal(signum, _nothing)


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    pass


def name(signum: int) -> str:
    """`SIGSEGV` of 11; `signal 40` where there is no name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
