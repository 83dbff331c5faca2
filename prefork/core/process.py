"""The only fork. Signals are blocked around it, and the child never returns into the parent's stack.

CPython clears the signals that are pending in the interpreter when it forks (`_PySignal_AfterFork`), so a signal that
arrives between fork and the child's own handlers would be lost: blocked in the kernel it waits until the child has
its inbox and unblocks. fork(2) leaves one thread, so only single-threaded processes come here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from _thread import get_ident
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from select import POLLIN, poll

from prefork.core.libc import libc
from prefork.core.signals import name

# --- What a wait status says: the one place that turns it into words.


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. Exactly one of `code` and `signum` is set."""

    pid: int
    code: int | None = None
    signum: int | None = None
    cpu_ns: int = 0  # user and system time that it has used
    peak_rss_bytes: int = 0  # the most memory that was resident; of its own children, if one had more

    @classmethod
    def of_status(cls, pid: int, status: int, cpu_ns: int = 0, peak_rss_bytes: int = 0) -> Exit:
        """Decode the status that wait4(2) gave, with what it says of the resources that were used."""
        signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return cls(
            pid=pid,
            code=os.WEXITSTATUS(status) if signum is None else None,
            signum=signum,
            cpu_ns=cpu_ns,
            peak_rss_bytes=peak_rss_bytes,
        )

    @property
    def clean(self) -> bool:
        """True if the process left by itself with 0."""
        return self.code == 0

    def __str__(self) -> str:
        """`exit code 3` or `SIGSEGV`."""
        return f"exit code {self.code}" if self.signum is None else name(self.signum)


def reap(stopped: dict[int, str]) -> list[Exit]:
    """Collect every child that has exited. SIGCHLDs coalesce, so this asks until there is none; it never blocks.

    A child that has asked to be traced (ptrace(2)) and stopped would never go on: it is killed, and noted in `stopped`.
    """
    exits: list[Exit] = []
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return exits  # no children at all
        if pid == 0:
            return exits  # the rest are alive
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGKILL)
            stopped[_process_of(pid)] = "it had asked to be traced, and stopped"
            continue
        cpu_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
        exits.append(Exit.of_status(pid, status, cpu_ns=cpu_ns, peak_rss_bytes=usage.ru_maxrss * 1024))


def _process_of(thread: int) -> int:
    """Return the pid of the process that a thread belongs to: one that stops is told of by its own number."""
    try:
        with open(f"/proc/{thread}/status") as file:
            return int(file.read().partition("Tgid:")[2].split(None, 1)[0])
    except (OSError, ValueError, IndexError):
        return thread


forking = 0  # the thread that makes a fork of ours, and that in the child, for the hooks of os.register_at_fork
ORPHANED = 1  # exit code; nobody is left to read it
_ADOPTION_S = 2.0
CHILD_CRASHED = 70  # EX_SOFTWARE of sysexits.h: `run` raised


def flush_output() -> None:
    """Write what is buffered of standard output and standard error. Raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # a full disk, a closed pipe or stream; or there is none
            stream.flush()


def open_standard_descriptors() -> None:
    """Open /dev/null at those of the numbers 0 to 2 that are closed: else a client could be there, and read the log."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free


def spawn(run: Callable[[], int]) -> int:
    """Fork; return the child's pid. In the child call `run` with all signals blocked and exit with what it returns.

    Raises OSError (errors.FORK_REFUSED) when the system has no process or memory left; nothing has changed then.
    """
    flush_output()  # else both processes would write what is buffered
    global forking  # noqa: PLW0603 - a fork is of the whole process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    forking = get_ident()
    try:
        pid = os.fork()
        if pid == 0:
            _child(run)
    finally:
        forking = 0
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _child(run: Callable[[], int]) -> None:
    """Run and exit without unwinding: the parent's finally blocks, atexit and buffers are not ours."""
    global forking  # noqa: PLW0603
    forking = 0
    code = CHILD_CRASHED
    try:
        code = run()
    except BaseException:  # noqa: BLE001 - the worker border: report once, then die
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            flush_output()
        finally:
            os._exit(code)


def adopted(master: int, lifeline: int) -> bool:
    """Wait until the master is this process's parent: at once, or when the process between it and the template exits.

    Returns False if that does not come: the master is gone.
    """
    give_up = time.monotonic() + _ADOPTION_S
    death = poll()
    death.register(lifeline, POLLIN)
    while os.getppid() != master and time.monotonic() < give_up and not death.poll(1):
        pass  # there is no event to wait for but the master's death; it takes one exit(2)
    return os.getppid() == master


_OOM_ABOVE = 50  # thousandths of the memory of the machine


def prefer_as_victim(parent: int) -> None:
    """Have the kernel take this process rather than `parent` when memory runs out (proc(5), oom_score_adj).

    Call it before a change of user, which makes the file root's. Where it cannot be done, nothing happens.
    """
    try:
        with open(f"/proc/{parent}/oom_score_adj", "rb") as file:
            score = min(1000, int(file.read()) + _OOM_ABOVE)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))
    except (OSError, ValueError):
        pass  # no /proc, or the template has done it before it changed its user


def die_with_parent(parent: int) -> bool:
    """Ask the kernel to SIGKILL this process when `parent` dies (prctl(2), PR_SET_PDEATHSIG).

    Returns False if the parent is dead already. The setting is lost at the next fork and at a change of uid.
    """
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG = 1
    return os.getppid() == parent
