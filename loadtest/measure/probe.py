"""The lab's view of the processes of one side, from outside, ten times a second.

The generator tells only afterwards which window it measured (its clock is ours: CLOCK_MONOTONIC is one for the whole
machine), so the probe keeps running counts, and cuts the window out of them at the end. Samples outside the window
are never used: there the load is another. Growth between the first and the last sample inside is scaled to the whole
window, which assumes that the up to 0.1 s at each edge are like the rest; `covered` says how much was seen (90 % of 2
s at worst).

CPU time is read to the nanosecond from each process's own clock, plus what its dead children used, which the kernel
counts in ticks of 10 ms, and only once they were waited for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..data.records import Queue, Usage, Worker
from . import procfs, sockdiag

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

PERIOD_S = 0.1
_KEEPERS = ("systemd",)  # service managers that keep a server's socket open, and serve nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The running counts at one moment."""

    at_ns: int
    cpu_ns: int
    cpu_by_pid: Mapping[int, int]
    wait_ns: int | None
    voluntary: int
    involuntary: int
    listening: sockdiag.Listening | None


@dataclass(slots=True)
class _Growth:
    """Adds up a count over threads that come and go; a dead thread's last bit, since the sample before, is lost."""

    total: int = 0
    _last: dict[str, int] = field(default_factory=dict)

    def add(self, now: dict[str, int]) -> int:
        self.total += sum(value - self._last.get(thread, 0) for thread, value in now.items())
        self._last = now
        return self.total


def owners(port: int | None) -> list[int]:
    """The processes that have the port's listening socket open, without their children; none where we may not look."""
    listening = sockdiag.listening(port) if port is not None else None
    holders = procfs.holders(listening.inodes, procfs.everybody()) if listening else []
    seen = {pid: stat for pid in holders if (stat := procfs.stat(pid)) and stat.name not in _KEEPERS}
    return [pid for pid, stat in seen.items() if stat.parent not in seen]


class Probe:
    """Watches processes with all their descendants and, if given a port, that port's accept queue."""

    def __init__(self, roots: Collection[int], port: int | None = None) -> None:
        self._roots = roots  # none: a server of which only the queue can be seen
        self._port = port
        self._samples: list[Sample] = []
        self._wait, self._voluntary, self._involuntary = _Growth(), _Growth(), _Growth()

    def sample(self) -> None:
        """Read everything now."""
        at_ns = time.monotonic_ns()
        pids = self._pids()
        cpu = {pid: procfs.cpu_ns(pid) for pid in pids}
        reaped_ns = sum(seen.reaped_ns for pid in pids if (seen := procfs.stat(pid)))
        threads = [thread for pid in pids for thread in procfs.threads(pid)]
        waits = {thread: wait for thread in threads if (wait := procfs.wait_ns(thread)) is not None}
        switches = {thread: procfs.switches(thread) for thread in threads}
        self._samples.append(
            Sample(
                at_ns=at_ns,
                cpu_ns=sum(cpu.values()) + reaped_ns,
                cpu_by_pid=cpu,
                wait_ns=self._wait.add(waits) if waits else None,
                voluntary=self._voluntary.add({thread: count for thread, (count, _) in switches.items()}),
                involuntary=self._involuntary.add({thread: count for thread, (_, count) in switches.items()}),
                listening=sockdiag.listening(self._port) if self._port is not None else None,
            )
        )

    def usage(self, start_ns: int, end_ns: int) -> Usage | None:
        """What the processes used in the window; None when there were too few samples in it, or nothing to watch."""
        inside = self._inside(start_ns, end_ns)
        if not self._roots or len(inside) < 2:
            return None
        first, last = inside[0], inside[-1]
        covered = (last.at_ns - first.at_ns) / (end_ns - start_ns)

        def whole(growth: int) -> int:
            return max(0, round(growth / covered))

        waited = None if first.wait_ns is None or last.wait_ns is None else last.wait_ns - first.wait_ns
        return Usage(
            cpu_ns=whole(last.cpu_ns - first.cpu_ns),
            busiest_ns=whole(max(used - first.cpu_by_pid.get(pid, 0) for pid, used in last.cpu_by_pid.items())),
            wait_ns=None if waited is None else whole(waited),
            switches_voluntary=whole(last.voluntary - first.voluntary),
            switches_involuntary=whole(last.involuntary - first.involuntary),
            processes=max(len(sample.cpu_by_pid) for sample in inside),
            covered=covered,
        )

    def queue(self, start_ns: int, end_ns: int) -> Queue | None:
        """The accept queue in the window. Drops count from the first sample: one in the warm-up still hurts inside."""
        seen = [sample.listening for sample in self._inside(start_ns, end_ns) if sample.listening]
        drops = [sample.listening.drops for sample in self._samples if sample.listening]
        if not seen:
            return None
        depths = [listening.depth for listening in seen]
        return Queue(
            depth_max=max(depths),
            depth_mean=sum(depths) / len(depths),
            limit=seen[-1].limit,
            drops=max(0, drops[-1] - drops[0]),
        )

    def series(self, start_ns: int) -> tuple[tuple[float, float, int | None], ...]:
        """For each sample: seconds since the window began, cores in use since the sample before, accept queue."""
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return tuple(
            (
                round((now.at_ns - start_ns) / 1e9, 3),
                round(max(0, now.cpu_ns - before.cpu_ns) / (now.at_ns - before.at_ns), 3),
                now.listening.depth if now.listening else None,
            )
            for before, now in pairs
        )

    def pss_bytes(self) -> int | None:
        """The processes' memory now; None when one of them cannot be read."""
        sizes = [procfs.pss_bytes(pid) for pid in self._pids()] or [None]
        return None if None in sizes else sum(size for size in sizes if size)

    def cpu_by_pid(self, start_ns: int, end_ns: int) -> dict[int, int]:
        """What each process used that was there all the time, scaled to the whole window."""
        inside = self._inside(start_ns, end_ns)
        if len(inside) < 2:
            return {}
        first, last = inside[0], inside[-1]
        scale = (end_ns - start_ns) / (last.at_ns - first.at_ns)
        return {
            pid: round((used - first.cpu_by_pid[pid]) * scale)
            for pid, used in last.cpu_by_pid.items()
            if pid in first.cpu_by_pid
        }

    def workers(self, start_ns: int, end_ns: int) -> tuple[Worker, ...] | None:
        """The processes that can accept, with their CPU time: those that hold the listening socket still.

        A parent that holds it for its children's sake is not one of them. None for a single process.
        """
        listening = self._samples[-1].listening if self._samples else None
        cpu = self.cpu_by_pid(start_ns, end_ns)
        holders = set(procfs.holders(listening.inodes, cpu)) if listening else set()
        parents = {stat.parent for pid in holders if (stat := procfs.stat(pid))}
        serving = sorted(holders - parents)
        if len(serving) < 2:
            return None
        return tuple(
            Worker(slot=slot, cpu_ns=cpu[pid], accepted=None, requests=None, connections=None)
            for slot, pid in enumerate(serving)
        )

    def _pids(self) -> list[int]:
        return list(dict.fromkeys(pid for root in self._roots for pid in procfs.tree(root)))

    def _inside(self, start_ns: int, end_ns: int) -> list[Sample]:
        return [sample for sample in self._samples if start_ns <= sample.at_ns <= end_ns]
