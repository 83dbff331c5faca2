"""Reads what /proc says about processes. A process that is gone reads as nothing, never as an error."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """The few fields of /proc/PID/stat that the lab needs."""

    name: str  # of the program, at most 15 letters
    state: str
    parent: int
    session: int
    reaped_ns: int  # CPU time of children that died and were waited for, and of theirs; whole clock ticks (10 ms)


def stat(pid: int) -> Stat | None:
    """The process's state, or None when there is no such process."""
    line = _read(f"/proc/{pid}/stat")
    if not line:
        return None
    name, _, rest = line.partition("(")[2].rpartition(")")  # the name may hold blanks and brackets
    fields = rest.split()
    return Stat(
        name=name,
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        reaped_ns=(int(fields[13]) + int(fields[14])) * _TICK_NS,
    )


def cpu_ns(pid: int) -> int:
    """CPU time of the process, all its threads, dead ones included; 0 when it is gone.

    Every process has a CPU clock that others may read, to the nanosecond; its id is a bit pattern that
    clock_getcpuclockid(3) makes of the pid. /proc/PID/stat has the same figure rounded to 10 ms, /proc/PID/schedstat
    has the main thread's only.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:  # EINVAL: reaped
        return 0


def threads(pid: int) -> list[str]:
    """The process's threads, as folders in /proc."""
    try:
        return [f"/proc/{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def tree(root: int) -> Iterator[int]:
    """The process and all its living descendants."""
    yield root
    for thread in threads(root):
        for child in _read(f"{thread}/children").split():
            yield from tree(int(child))


def everybody() -> list[int]:
    """Every process that we may know of."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def session(leader: int) -> list[int]:
    """Every living process of the session that the leader opened, the leader included; no zombies."""
    return [pid for pid in everybody() if (seen := stat(pid)) and seen.session == leader and seen.state not in "ZX"]


def holders(inodes: Collection[int], pids: Iterable[int]) -> list[int]:
    """Those of the processes that have one of the sockets open, as far as we may look into them."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return [pid for pid in pids if any(link in wanted for link in _descriptors(pid))]


def _descriptors(pid: int) -> Iterator[str]:
    """What the process has open."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # gone, or not ours to read
        return
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            pass  # closed since we listed it


def wait_ns(thread: str) -> int | None:
    """How long the thread was ready to run and had no CPU; None where the kernel does not count it."""
    fields = _read(f"{thread}/schedstat").split()
    return int(fields[1]) if len(fields) == 3 else None


def switches(thread: str) -> tuple[int, int]:
    """Voluntary and involuntary context switches of the thread."""
    counts = [line.split()[1] for line in _read(f"{thread}/status").splitlines() if "ctxt_switches" in line]
    return (int(counts[0]), int(counts[1])) if len(counts) == 2 else (0, 0)


def pss_bytes(pid: int) -> int | None:
    """Memory of the process, each shared page divided by its users. Costs the kernel ms: not for a loop."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # ENOENT, ESRCH: the process ended; EACCES: not ours to read
        return ""
