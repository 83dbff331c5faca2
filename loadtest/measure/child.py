"""Starts commands in a session of their own, makes sure that they are gone afterwards, and handles Ctrl-C meanwhile.

The own session keeps the terminal's Ctrl-C from the children (the lab stops them in its own order), and makes every
process findable that a command leaves behind. If the lab is killed, the kernel sends them SIGTERM: a server that stayed
would take its CPU from the next run. The CPU affinity is set on our own thread around the fork, and the child inherits
it: no wrapper program.

Ctrl-C and SIGTERM raise no exception, which could come between a fork and the line that keeps its pid. Their handler
only sets a flag. Every wait of a round also watches the descriptor of the Interrupt, and then raises Interrupted in a
place where all processes are known and end with their context.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self

from loadtest.measure import procfs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


_KILL_S = 5.0
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
_LOG_TAIL_BYTES = 16_384


def _end_with_the_lab() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class ChildError(Exception):
    """A command cannot be started, or its processes cannot be killed."""


class Child:
    """A running command. Leaving its context kills every process that is left."""

    def __init__(
        self, argv: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str], cpus: Sequence[int] = ()
    ) -> None:
        self.log = log
        allowed = os.sched_getaffinity(0)
        with log.open("wb") as output:
            try:
                if cpus:
                    os.sched_setaffinity(0, cpus)
                self._process = subprocess.Popen(
                    argv,
                    cwd=cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=_end_with_the_lab,  # noqa: PLW1509 - one system call, and no thread runs beside us
                )
            except OSError as error:
                missing = error.filename if error.filename != argv[0] else "the command"
                raise ChildError(f"cannot start {argv[0]!r}: {missing}: {error.strerror}") from None
            finally:
                os.sched_setaffinity(0, allowed)
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sweep()
        finally:
            os.close(self._pidfd)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the command ends."""
        return self._pidfd

    def ended(self, within_s: float = 0.0) -> bool:
        """Return whether the command has ended, now or within the given time.

        It is not reaped, so its pid is not reused.
        """
        return bool(select.select([self], [], [], within_s)[0])

    @property
    def exit_code(self) -> int:
        """The ended command's exit status; negative for the signal that killed it. Waits until it has ended."""
        seen = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        assert seen is not None
        return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status

    def status(self) -> str:
        """Say how the command ended."""
        code = self.exit_code
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    def stop(self, grace_s: float) -> bool:
        """Send SIGTERM, wait, then kill what is left. Return False when the command did not end in time."""
        if not self.ended():
            os.kill(self.pid, signal.SIGTERM)
        in_time = self.ended(grace_s)
        self._sweep()
        return in_time

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of the command's output."""
        with self.log.open("rb") as output:
            output.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            return "\n".join(output.read().decode("utf-8", "replace").splitlines()[-lines:])

    def _sweep(self) -> None:
        """Kill every process of the session until none is left. The leader is reaped last: its pid names it."""
        if self._process.returncode is not None:
            return
        deadline = time.monotonic() + _KILL_S
        while left := procfs.session(self.pid):
            if time.monotonic() > deadline:
                raise ChildError(f"processes {left} of {self._process.args!r} do not die")
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it died since we looked
            self.ended(0.01)
        self._process.wait()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818  # like KeyboardInterrupt: no error
    """SIGINT or SIGTERM asked the run to end."""


class Interrupt:
    """Handles SIGINT and SIGTERM within its context; becomes readable (for select) with the first one."""

    def __init__(self) -> None:
        self.came = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._write)
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def _note(self, *_: object) -> None:
        self.came = True

    def fileno(self) -> int:
        """Return a descriptor that becomes readable with the first signal, and stays so."""
        return self._read

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.came:
            raise Interrupted
