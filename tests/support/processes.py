"""What /proc says about other processes. Zombies count as gone: they hold neither memory, sockets nor clients."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from tests.support.wait import eventually

PROC = Path("/proc")
GONE = b"ZX"
_STATE, _PARENT, _SESSION, _USER_TICKS, _SYSTEM_TICKS = 0, 1, 3, 11, 12  # fields behind the name


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that the tests use."""

    state: str
    parent: int
    session: int
    cpu_s: float


def _fields(pid: int | str) -> list[bytes]:
    """Read /proc/PID/stat; nothing when there is no such process any more. Tests ask for all processes, many times."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return []
    finally:
        os.close(fd)
    return text.rpartition(b")")[2].split()  # the name may hold spaces and brackets: count from its end


def stat(pid: int) -> Stat | None:
    """Read the fields of one process; None when there is no such process any more."""
    if not (fields := _fields(pid)):
        return None
    ticks = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
    return Stat(
        state=fields[_STATE].decode(),
        parent=int(fields[_PARENT]),
        session=int(fields[_SESSION]),
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
    )


def alive(pid: int) -> bool:
    """Say whether the process still runs."""
    fields = _fields(pid)
    return bool(fields) and fields[_STATE] not in GONE


def _matching(field: int, value: int) -> dict[int, bytes]:
    """Map the pids of the processes whose field has that value to their states."""
    found = ((name, _fields(name)) for name in os.listdir(PROC) if name.isdigit())
    return {int(name): fields[_STATE] for name, fields in found if fields and int(fields[field]) == value}


def _living(field: int, value: int) -> set[int]:
    return {pid for pid, state in _matching(field, value).items() if state not in GONE}


def children(pid: int) -> set[int]:
    """List the living direct children of a process."""
    return _living(_PARENT, pid)


def session_members(session: int) -> set[int]:
    """List the living processes of a session: all that a server started with its own session has left behind."""
    return _living(_SESSION, session)


def zombies_of(pid: int) -> set[int]:
    """List the direct children that have died and were not reaped."""
    return {child for child, state in _matching(_PARENT, pid).items() if state in GONE}


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


def rss_kib(pid: int) -> int:
    """Return what the process has in memory."""
    return int((PROC / str(pid) / "status").read_text().partition("VmRSS:")[2].split()[0])


def wait_idle(pid: int) -> None:
    """Wait until a worker has done what it had to do: its clients' buffers are full.

    It sleeps, with every thread, at each of some looks, and has not worked between them; who waits for the CPU is not
    asleep.
    """
    used: deque[float] = deque(maxlen=8)

    def idle() -> bool:
        tasks = (PROC / str(pid) / "task").glob("*/stat")
        if any(task.read_text().rpartition(") ")[2][0] != "S" for task in tasks):
            used.clear()
        found = stat(pid)
        assert found
        used.append(found.cpu_s)
        return len(used) == used.maxlen and used[0] == used[-1]

    eventually(idle, within_s=60, what="an idle worker")
