"""MASTER. Why a worker ended, in one line an operator can act on. Pure: what is known goes in, words come out."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from .errors import AppLoadError, BootError, PreforkError
from .exits import Exit
from .roster import WorkerHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class Obituary:
    """One worker's end. `message` is what it said of its own failure, `fault` what faulthandler wrote for it."""

    worker: WorkerHandle
    exit: Exit
    age_s: float
    serving: str = ""
    message: dict[str, Any] | None = None
    fault: str = ""

    @property
    def expected(self) -> bool:
        """True if it was told to leave and left, or had not begun to serve."""
        return self.worker.retiring_s is not None and (self.exit.clean or self.worker.pending)

    @property
    def reason(self) -> str | None:
        """What is known beyond the exit status."""
        if self.worker.killed and self.exit.signum == signal.SIGKILL:
            return self.worker.killed
        if self.message:
            return str(self.message["message"])
        if self.exit.signum == signal.SIGKILL:
            return "killed from outside: by the kernel, out of memory, or by a person"
        return "it left by itself" if self.exit.clean else None

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
        if self.message and self.message["code"] == AppLoadError.exit_code:
            return AppLoadError(str(self.message["message"]), self.detail)
        who = " ".join(f"{key}={value}" for key, value in self.worker.identity.items())
        return BootError(f"{who} cannot boot: {self.reason or f'it died of {self.exit}'}", self.detail)
