"""What /proc says about other processes. Zombies count as gone: they hold neither memory, sockets nor clients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
GONE = "ZX"


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that the tests use."""

    state: str
    parent: int
    session: int
    cpu_s: float


def stat(pid: int) -> Stat | None:
    """Read /proc/PID/stat; None when there is no such process any more."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name may hold spaces and brackets: count from its end
    ticks = os.sysconf("SC_CLK_TCK")
    return Stat(
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_s=(int(fields[11]) + int(fields[12])) / ticks,
    )


def alive(pid: int) -> bool:
    """Say whether the process still runs."""
    found = stat(pid)
    return found is not None and found.state not in GONE


def _matching(field: str, value: int) -> set[int]:
    pids = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    found = ((pid, stat(pid)) for pid in pids)
    return {pid for pid, seen in found if seen and seen.state not in GONE and getattr(seen, field) == value}


def children(pid: int) -> set[int]:
    """List the living direct children of a process."""
    return _matching("parent", pid)


def session_members(session: int) -> set[int]:
    """List the living processes of a session: all that a server started with its own session has left behind."""
    return _matching("session", session)


def zombies_of(pid: int) -> set[int]:
    """List the direct children that have died and were not reaped."""
    pids = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    found = ((child, stat(child)) for child in pids)
    return {child for child, seen in found if seen and seen.state in GONE and seen.parent == pid}


def open_fds(pid: int) -> dict[int, str]:
    """Map each open descriptor of a process to what it points at."""
    found = {}
    for entry in (PROC / str(pid) / "fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:  # closed between the listing and the look
            continue
    return found


def thread_count(pid: int) -> int:
    """Count the threads of a process."""
    return len(list((PROC / str(pid) / "task").iterdir()))
