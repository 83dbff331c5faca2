"""What /proc says of a process: memory and CPU time. None where it has gone or /proc cannot be read.

PSS, the proportional set size, is the one figure that adds up: a page that four workers share counts a quarter for
each. The kernel walks every page for it (1-2 ms per 100 MB, and the process cannot map memory meanwhile), so
`PssCache` asks at most once in PSS_EVERY_S for each process, only when somebody wants to know, and stops for this
time when it has taken PSS_BUDGET_S. RSS is a counter, free to read, and never smaller than PSS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

PSS_EVERY_S = 10.0
PSS_BUDGET_S = 0.05  # a call; who is left out is first next time

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int | None:
    """Resident memory, shared pages counted in full (proc(5), statm)."""
    text = _read(f"/proc/{pid}/statm")
    return int(text.split()[1]) * _PAGE if text else None


def pss_bytes(pid: int) -> int | None:
    """Resident memory, each shared page divided by its owners (proc(5), smaps_rollup). Costly: see above."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def cpu_s(pid: int) -> float | None:
    """User and system time that the process has used (proc(5), stat: utime, stime)."""
    text = _read(f"/proc/{pid}/stat")
    fields = text.rpartition(")")[2].split()  # the name may hold blanks and brackets: count from its end
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else None


def stopped(pid: int) -> bool:
    """Whether the process's main thread is stopped: by a signal (T) or a debugger (t)."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] in (["T"], ["t"])


def thread_states(pid: int) -> set[str]:
    """The states of the process's threads, as proc(5) letters them; empty if they cannot be known."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return set()
    stats = [_read(f"/proc/{pid}/task/{thread}/stat") for thread in threads]
    return {text.rpartition(")")[2].split()[0] for text in stats if text}


def children() -> frozenset[int]:
    """The children of this thread (proc(5), children); empty if they cannot be known."""
    return frozenset(map(int, _read("/proc/thread-self/children").split()))


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""  # ESRCH, ENOENT: reaped; EACCES: it runs as another user, or is not dumpable


@dataclass(slots=True, kw_only=True)
class PssCache:
    """The last PSS of each process, in bytes."""

    measure: Callable[[int], int | None] = pss_bytes
    clock: Callable[[], float] = time.monotonic
    _samples: dict[int, tuple[float, int | None]] = field(default_factory=dict)  # by pid: when, how much

    def read(self, pids: Iterable[int]) -> dict[int, int | None]:
        """The figures of each process, measured again if they are too old. Other processes are forgotten."""
        wanted = set(pids)
        started_s = self.clock()
        self._samples = {pid: sample for pid, sample in self._samples.items() if pid in wanted}
        for pid in sorted(wanted, key=self._sampled_s):
            now_s = self.clock()
            if self._sampled_s(pid) > now_s - PSS_EVERY_S or now_s - started_s > PSS_BUDGET_S:
                break
            self._samples[pid] = (now_s, self.measure(pid))
        return {pid: self._samples[pid][1] if pid in self._samples else None for pid in wanted}

    def _sampled_s(self, pid: int) -> float:
        return self._samples[pid][0] if pid in self._samples else float("-inf")
