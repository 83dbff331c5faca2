"""What a wait status says: the one place that turns it into words."""

from __future__ import annotations

import os
from dataclasses import dataclass

from prefork.core.signals import name


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. Exactly one of `code` and `signum` is set."""

    pid: int
    code: int | None = None
    signum: int | None = None
    dumped_core: bool = False
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
            dumped_core=os.WCOREDUMP(status),
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


def reap() -> list[Exit]:
    """Collect every child that has exited. SIGCHLDs coalesce, so this asks until there is none; it never blocks."""
    exits: list[Exit] = []
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return exits  # no children at all
        if pid == 0:
            return exits  # the rest are alive
        cpu_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
        exits.append(Exit.of_status(pid, status, cpu_ns=cpu_ns, peak_rss_bytes=usage.ru_maxrss * 1024))
