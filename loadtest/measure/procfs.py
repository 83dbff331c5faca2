"""Reads from the kernel what it knows of processes (/proc) and of sockets (netlink, as `ss -lntm` and `ss -nt` do).

A process that has ended reads as nothing, never as an error.

/proc/net/tcp would list the sockets too, but with every connection of the machine: with a connection per exchange these
are tens of thousands of lines after some seconds, read ten times a second. The netlink question costs microseconds,
needs no privilege, and its answer also has the limit of the queue and the drops of this very listener.
"""

from __future__ import annotations

import os
import platform
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping


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
    """Read the process's state; None when there is no such process."""
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
    """Return the CPU time of the process and all its threads, dead ones included, in ns; 0 when it is gone.

    Every process has a CPU clock that others may read, to the nanosecond; its id is a bit pattern that
    clock_getcpuclockid(3) makes of the pid. /proc/PID/stat has the same figure rounded to 10 ms, /proc/PID/schedstat
    has the main thread's only.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:  # EINVAL: reaped
        return 0


def threads(pid: int) -> list[str]:
    """List the process's threads, as folders in /proc."""
    try:
        return [f"/proc/{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def tree(root: int) -> Iterator[int]:
    """Yield the process and all its living descendants."""
    yield root
    for thread in threads(root):
        for child in _read(f"{thread}/children").split():
            yield from tree(int(child))


def everybody() -> list[int]:
    """List every process that is visible to us."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def session(leader: int) -> list[int]:
    """List every living process of the leader's session, the leader included; no zombies."""
    return [pid for pid in everybody() if (seen := stat(pid)) and seen.session == leader and seen.state not in "ZX"]


def holders(inodes: Collection[int], pids: Iterable[int]) -> list[int]:
    """Return the processes that have one of the sockets open, among those that we may inspect."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return [pid for pid in pids if any(link in wanted for link in _descriptors(pid))]


def _descriptors(pid: int) -> Iterator[str]:
    """Yield the names of the process's open files."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # gone, or not ours to read
        return
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            pass  # closed since we listed it


def run_and_wait_ns(thread: str) -> tuple[int, int] | None:
    """Return for how long the thread ran, and for how long it was ready to and had no CPU, in ns.

    None where the kernel does not count it.
    """
    fields = _read(f"{thread}/schedstat").split()
    return (int(fields[0]), int(fields[1])) if len(fields) == 3 else None


def switches(thread: str) -> tuple[int, int]:
    """Return the voluntary and involuntary context switches of the thread."""
    counts = [line.split()[1] for line in _read(f"{thread}/status").splitlines() if "ctxt_switches" in line]
    return (int(counts[0]), int(counts[1])) if len(counts) == 2 else (0, 0)


# By machine: the calls in which an event loop waits for clients (epoll, io_uring), and those in which other servers do
# (accept, select, poll), a parent for its children or for signals, and a thread for nobody knows what (futex).
_LOOPS = {"x86_64": frozenset({232, 281, 426, 441}), "aarch64": frozenset({22, 426, 441})}
_OTHERS = {
    "x86_64": frozenset({7, 23, 34, 43, 61, 128, 130, 202, 247, 270, 271, 288, 449}),
    "aarch64": frozenset({72, 73, 95, 98, 133, 137, 202, 242, 260, 449}),
}


def call(pid: int) -> int | None:
    """Return the system call in which the process's main thread sleeps, -1 if it is not in one.

    None where the kernel does not say: it shows this to those only who may trace the process, as a parent may.
    """
    fields = _read(f"/proc/{pid}/task/{pid}/syscall").split()
    if not fields:
        return None
    return int(fields[0]) if fields[0].isdecimal() else -1


def is_blocked(number: int, *, loop: bool) -> bool | None:
    """Return whether a main thread in this call waits for something else than clients; None: not known.

    `loop`: it runs an event loop, as the server says. Else it may have other ways to wait for them.
    """
    waits = _LOOPS.get(platform.machine())
    if waits is None:
        return None
    return number >= 0 and number not in waits and (loop or number not in _OTHERS[platform.machine()])


def busy_ns(cpus: Collection[int]) -> int | None:
    """Return for how long these CPUs have been used, in ns, in all: by processes, and by other guests (steal).

    Interrupts are left out: they work for processes that the kernel counts them for, too. None without /proc/stat.
    """
    wanted = {f"cpu{cpu}" for cpu in cpus}
    rows = [fields for line in _read("/proc/stat").splitlines() if (fields := line.split())[0] in wanted]
    if len(rows) < len(wanted):
        return None
    return sum(int(fields[place]) for fields in rows for place in (1, 2, 3, 8)) * _TICK_NS


def pss_bytes(pid: int) -> int | None:
    """Return the memory of the process (PSS: shared pages are divided by their users).

    Costs the kernel ms: not for a loop.
    """
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


_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_ESTABLISHED, _LISTEN = 1 << 1, 1 << 10  # the states TCP_ESTABLISHED and TCP_LISTEN
_MEMINFO = 7  # INET_DIAG_SKMEMINFO: nine numbers, the last counts drops
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=4B48xIIIII")  # family, state, timer, retransmits; expires, queue, limit, uid, inode

_Row = tuple[int, int, int, int]  # queue, limit, drops, inode


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """All listening sockets of one TCP port together."""

    depth: int  # connections that wait to be accepted
    limit: int  # that many may wait
    drops: int  # connections turned away since the sockets were made
    inodes: frozenset[int]  # by which /proc/PID/fd names the sockets


def listening(port: int) -> Listening | None:
    """Return the sum of the port's accept queues (workers may have one each); None when there is none to be seen."""
    rows: list[_Row] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            rows += _ask(family, port, _LISTEN)
        except OSError:  # a sandbox without netlink
            return None
    if not rows:
        return None
    depths, limits, drops, inodes = zip(*rows, strict=True)
    return Listening(depth=sum(depths), limit=sum(limits), drops=sum(drops), inodes=frozenset(inodes))


def held(port: int, pids: Iterable[int], most: int) -> Mapping[int, int] | None:
    """Return how many connections of the port each process has open, without those that nobody has accepted yet.

    None where it cannot be seen, or where they are more than `most`. Costs 3 ms, and about 5 us for each open file.
    """
    inodes: set[int] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            inodes |= {
                inode for *_, inode in _ask(family, port, _ESTABLISHED) if inode
            }  # without one: not accepted yet
        except OSError:
            return None
        if inodes:
            break  # the other family's clients are hardly the load's, and each question costs 2 to 3 ms
    if len(inodes) > most:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    counts = {pid: len(wanted.intersection(_descriptors(pid))) for pid in pids}
    return counts if not inodes or any(counts.values()) else None  # there are some, with whom we cannot see


def _ask(family: int, port: int, state: int) -> list[_Row]:
    question = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_MEMINFO - 1), state)
    question += struct.pack("!H", port) + bytes(46)  # any address, any peer
    rows: list[_Row] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        netlink.send(_HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + question)
        while True:
            data = netlink.recv(65536)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_ERROR, _DONE):
                    return rows
                rows.append(_row(data[_HEADER.size : length]))
                data = data[(length + 3) & ~3 :]


def _row(message: bytes) -> _Row:
    *_, queue, limit, _, inode = _MESSAGE.unpack_from(message)
    drops = 0
    at = _MESSAGE.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _MEMINFO and length >= 4 + 36:
            drops = struct.unpack_from("=I", message, at + 4 + 32)[0]
        at += max((length + 3) & ~3, 4)
    return queue, limit, drops, inode
