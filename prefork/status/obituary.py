"""MASTER. Why a worker ended, in one line an operator can act on. Pure: what is known goes in, words come out."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from prefork.core.exits import Exit
from prefork.errors import AppLoadError, BootError, PreforkError
from prefork.master.roster import WorkerHandle
from prefork.status.scoreboard import Slow

_KILLED = {
    True: "out of memory: the kernel killed it, and its control group counts that",
    False: "killed from outside, by a person or a program: the kernel counts no kill for want of memory",
    None: "killed from outside: by the kernel, out of memory, or by a person",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Obituary:
    """One worker's end. `message` is what it said of its own failure, `fault` what faulthandler wrote for it.

    `oom`: whether the kernel killed it for want of memory, None if nobody can tell.
    """

    worker: WorkerHandle
    exit: Exit
    time: str  # UTC
    age_s: float
    serving: str = ""
    serving_s: float | None = None  # since when; None = no unit of work was in progress
    requests: int = 0  # units of work that it had done
    last: tuple[str, ...] = ()  # what each of its threads served last
    slow: tuple[Slow, ...] = ()  # its latest slow requests
    oom: bool | None = None
    message: dict[str, Any] | None = None
    fault: str = ""

    @property
    def expected(self) -> bool:
        """True if it was told to leave and left, or had not begun to serve."""
        return self.worker.retiring_s is not None and (self.exit.clean or self.worker.pending)

    @property
    def cause(self) -> str:
        """One word or two, under which deaths are counted."""
        if self.worker.killed or self._verdict:
            return "boot-timeout" if self.worker.pending else "timeout" if self.worker.hang else "killed"
        return "out-of-memory" if self.oom else str(self.exit)

    @property
    def reason(self) -> str | None:
        """What is known beyond the exit status."""
        if self.worker.killed and self.exit.signum == signal.SIGKILL:
            return self.worker.killed
        if self._verdict:
            return self._verdict
        if self.message:
            return str(self.message["message"])
        if self.exit.signum == signal.SIGKILL:
            return _KILLED[self.oom]
        return "it left by itself" if self.exit.clean else None

    @property
    def _verdict(self) -> str:
        """What one that hung while it booted was to be killed for; it may have died before."""
        return self.worker.hang.verdict if self.worker.hang and self.worker.pending else ""

    @property
    def stacks(self) -> str:
        """Where its threads were, if it hung and could say so."""
        return self.worker.hang.stacks if self.worker.hang else ""

    @property
    def detail(self) -> str:
        """Text of the application's own: a traceback, or the stacks at a fatal signal."""
        return self.fault or (str(self.message["detail"]) if self.message else "")

    def fields(self) -> dict[str, Any]:
        """The log line."""
        return {
            **self.worker.identity,
            "cause": self.exit,
            "reason": self.reason,
            "serving": self.serving or None,
            "age": f"{self.age_s:.1f}s",
            "detail": self.detail,
        }

    def boot_failure(self) -> PreforkError:
        """Why the server cannot start: another worker would fail alike."""
        if self.message and self.message["code"] == AppLoadError.exit_code and not self._verdict:
            return AppLoadError(str(self.message["message"]), self.detail)
        who = " ".join(f"{key}={value}" for key, value in self.worker.identity.items())
        return BootError(f"{who} cannot boot: {self.reason or f'it died of {self.exit}'}", self.detail)
