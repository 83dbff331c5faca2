"""Watches the processes of one side during a round: from outside through the kernel, and by asking the server itself.

The generator says only afterwards which window it measured (its clock is ours: CLOCK_MONOTONIC is one for the whole
machine). So a probe keeps running counts, ten times a second, and cuts the window out of them at the end. Samples
outside the window are never used: there the load is another. Growth between the first and the last sample inside is
scaled to the whole window, which assumes that what is left at its edges is like the rest; `covered` says which part
of the window was seen.

CPU time is read in nanoseconds from each process's own clock, plus the time of its dead children, which the kernel
counts in ticks of 10 ms, and only once they were waited for.

A server is asked on the Unix socket whose path stands for {control} in its command. It answers the line

    {"command": "status"}

with one line of JSON, then it closes:

    {"ok": true, "answer": {"workers": [{"slot": 0, "pid": 4242, "accepted": 17, "requests": 17, "connections": 1,
                                         "threads": 4, "busy": 1}]}}

prefork's control socket does that, and any server can. Other keys are not read. The numbers are running counts, except
`connections`, which are those open now, and the last two, which may be left out: `threads`, in how many the application
can run at once, and `busy`, in how many of them it runs now; both null for an event loop.

The command `prefork status --json` would say the same for a quarter of a second of CPU; asking the socket costs the
server 1-2 ms. It is asked every 0.5 s, which costs less than half a percent of a core, and more often only in windows
so short that this would be too seldom. A server that does not answer delays the probe by ANSWER_S each time, and is
noted.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from loadtest.data.records import Queue, Usage, Worker
from loadtest.measure import procfs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


PERIOD_S = 0.1
MOST_SAMPLES = 6000  # of a round: ten minutes; in a longer one every second sample is kept, then every fourth, ...
HELD_MOST = 4000  # connections; of more, nobody counts who has them
HELD_PERIOD_NS = 300_000_000
HELD_SHARE = 200  # such a count may cost one part of so many of a core
_KEEPERS = ("systemd",)  # service managers that keep a server's socket open, and serve nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The running counts at one moment."""

    at_ns: int
    cpu_ns: int
    cpu_by_pid: Mapping[int, int]
    wait_ns: int | None
    wanted_ns: int
    voluntary: int
    involuntary: int
    listening: procfs.Listening | None
    calls: Mapping[int, int]  # by pid: the system call in which its main thread sleeps, -1: in none
    held: Mapping[int, int] | None  # by pid: connections open; None: not looked at


@dataclass(slots=True)
class _Growth:
    """Sums a count over threads that come and go; what a thread counted between its last sample and its end is lost."""

    total: int = 0
    of_most: int = 0  # the same, of the thread with the most since the sample before
    _last: dict[str, int] = field(default_factory=dict)

    def add(self, now: dict[str, int]) -> int:
        grown = [value - self._last.get(thread, 0) for thread, value in now.items()]
        self.total += sum(grown)
        self.of_most += max(grown, default=0)
        self._last = now
        return self.total


def owners(port: int | None) -> list[int]:
    """Find the processes that have the port's listening socket open, without their children, as far as we may look."""
    listening = procfs.listening(port) if port is not None else None
    holders = procfs.holders(listening.inodes, procfs.everybody()) if listening else []
    seen = {pid: stat for pid in holders if (stat := procfs.stat(pid)) and stat.name not in _KEEPERS}
    return [pid for pid, stat in seen.items() if stat.parent not in seen]


class Probe:
    """Samples processes with all their descendants and, if given a port, that port's accept queue."""

    def __init__(self, roots: Collection[int], port: int | None = None, *, counts_held: bool = False) -> None:
        """`counts_held`: whether to find out by the kernel how many connections each process has open."""
        self._roots = roots  # none: a server of which only the queue can be seen
        self._port = port
        self._held_due_ns = 0 if counts_held else None
        self._samples: list[Sample] = []
        self._stride = 1  # every so many of the looks is a sample
        self._looks = 0
        self._wait = _Growth()
        self._wanted = _Growth()
        self._voluntary = _Growth()
        self._involuntary = _Growth()

    def sample(self) -> None:
        """Take a sample, in a long round now and then only."""
        self._looks += 1
        if self._looks % self._stride:
            return
        if len(self._samples) >= MOST_SAMPLES:
            self._samples = self._samples[::2]
            self._stride *= 2
        at_ns = time.monotonic_ns()
        pids = self._pids()
        cpu = {pid: procfs.cpu_ns(pid) for pid in pids}
        reaped_ns = sum(seen.reaped_ns for pid in pids if (seen := procfs.stat(pid)))
        threads = [thread for pid in pids for thread in procfs.threads(pid)]
        times = {thread: found for thread in threads if (found := procfs.run_and_wait_ns(thread))}
        self._wanted.add({thread: ran + waited for thread, (ran, waited) in times.items()})
        switches = {thread: procfs.switches(thread) for thread in threads}
        self._samples.append(
            Sample(
                at_ns=at_ns,
                cpu_ns=sum(cpu.values()) + reaped_ns,
                cpu_by_pid=cpu,
                wait_ns=self._wait.add({thread: waited for thread, (_, waited) in times.items()}) if times else None,
                wanted_ns=self._wanted.of_most,
                voluntary=self._voluntary.add({thread: count for thread, (count, _) in switches.items()}),
                involuntary=self._involuntary.add({thread: count for thread, (_, count) in switches.items()}),
                listening=procfs.listening(self._port) if self._port is not None else None,
                calls=self._calls(pids),
                held=self._held(pids, at_ns),
            )
        )

    def _calls(self, pids: Iterable[int]) -> dict[int, int]:
        """Look where the main thread of each process of a server is."""
        if self._port is None:
            return {}
        return {pid: number for pid in pids if (number := procfs.call(pid)) is not None}

    def _held(self, pids: Iterable[int], at_ns: int) -> Mapping[int, int] | None:
        """Count the connections of each process, if it is time to, and as long as that is cheap."""
        if self._port is None or self._held_due_ns is None or at_ns < self._held_due_ns:
            return None
        began_ns = time.thread_time_ns()
        found = procfs.held(self._port, pids, HELD_MOST)
        used_ns = time.thread_time_ns() - began_ns
        self._held_due_ns = at_ns + max(HELD_PERIOD_NS, HELD_SHARE * used_ns)
        return found

    def usage(self, start_ns: int, end_ns: int) -> Usage | None:
        """Return what the processes used in the window; None with fewer than two samples in it, or nothing to watch."""
        inside = self._inside(start_ns, end_ns)
        if not self._roots or len(inside) < 2:
            return None
        first = inside[0]
        last = inside[-1]
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
            wanted_ns=None if waited is None else whole(last.wanted_ns - first.wanted_ns),
        )

    def queue(self, start_ns: int, end_ns: int) -> Queue | None:
        """Return the accept queue in the window.

        Drops count from the last sample before it.
        """
        seen = [sample.listening for sample in self._inside(start_ns, end_ns) if sample.listening]
        if not seen:
            return None
        before = [sample.listening for sample in self._samples if sample.listening and sample.at_ns < start_ns]
        first = before[-1] if before else seen[0]
        depths = [listening.depth for listening in seen]
        return Queue(
            depth_max=max(depths),
            depth_mean=sum(depths) / len(depths),
            limit=seen[-1].limit,
            drops=max(0, seen[-1].drops - first.drops),
        )

    def series(self, start_ns: int) -> tuple[tuple[float, float, int | None], ...]:
        """Return for each sample: seconds since the window began, cores used since the last sample, accept queue."""
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
        """Return the processes' memory now; None when one of them cannot be read."""
        sizes = [procfs.pss_bytes(pid) for pid in self._pids()] or [None]
        return None if None in sizes else sum(size for size in sizes if size)

    def cpu_by_pid(self, start_ns: int, end_ns: int) -> dict[int, int]:
        """Return the CPU time of each process that was there all the time, in ns, scaled to the whole window."""
        inside = self._inside(start_ns, end_ns)
        if len(inside) < 2:
            return {}
        first = inside[0]
        last = inside[-1]
        scale = (end_ns - start_ns) / (last.at_ns - first.at_ns)
        return {
            pid: round((used - first.cpu_by_pid[pid]) * scale)
            for pid, used in last.cpu_by_pid.items()
            if pid in first.cpu_by_pid
        }

    def workers(self, start_ns: int, end_ns: int) -> tuple[Worker, ...] | None:
        """Return the processes that can accept, with their CPU time: those that still have the listening socket open.

        A parent that holds it for its children's sake is not one of them. None where they are not known.
        """
        listening = self._samples[-1].listening if self._samples else None
        cpu = self.cpu_by_pid(start_ns, end_ns)
        holders = set(procfs.holders(listening.inodes, cpu)) if listening else set()
        parents = {stat.parent for pid in holders if (stat := procfs.stat(pid))}
        looks = [sample.held for sample in self._inside(start_ns, end_ns) if sample.held is not None]
        calls = self.calls(start_ns, end_ns)
        workers = tuple(
            Worker(
                slot=slot,
                cpu_ns=cpu[pid],
                accepted=None,
                requests=None,
                connections=fmean(held.get(pid, 0) for held in looks) if looks else None,
                blocked=_blocked(calls, [pid], loop=False),
            )
            for slot, pid in enumerate(sorted(holders - parents))
        )
        return workers or None

    def calls(self, start_ns: int, end_ns: int) -> dict[int, list[int]]:
        """Return for each process the calls in which its main thread was seen in the window (procfs.call)."""
        found: dict[int, list[int]] = {}
        for sample in self._inside(start_ns, end_ns):
            for pid, number in sample.calls.items():
                found.setdefault(pid, []).append(number)
        return found

    def _pids(self) -> list[int]:
        return list(dict.fromkeys(pid for root in self._roots for pid in procfs.tree(root)))

    def _inside(self, start_ns: int, end_ns: int) -> list[Sample]:
        return [sample for sample in self._samples if start_ns <= sample.at_ns <= end_ns]


def _blocked(calls: Mapping[int, Iterable[int]], pids: Iterable[int], *, loop: bool) -> float | None:
    """Return the part of the looks that found the processes' main threads asleep, and not to wait for clients."""
    looks = [procfs.is_blocked(number, loop=loop) for pid in pids for number in calls.get(pid, ())]
    known = [look for look in looks if look is not None]
    return fmean(known) if known else None


class Machine:
    """Samples how much of these CPUs is used, by whomever, and how much the lab itself uses."""

    def __init__(self, cpus: Collection[int]) -> None:
        self.cpus = cpus
        self._samples: list[tuple[int, int, int]] = []

    def sample(self) -> None:
        """Take a sample."""
        if (busy_ns := procfs.busy_ns(self.cpus)) is not None:
            self._samples.append((time.monotonic_ns(), busy_ns, time.process_time_ns()))

    def others(self, start_ns: int, end_ns: int, sides: Iterable[Usage | None]) -> float | None:
        """Return the cores that others than these sides, and the lab, used in the window; None where unknown.

        The kernel counts CPUs in whole ticks: short windows tell little.
        """
        inside = [sample for sample in self._samples if start_ns <= sample[0] <= end_ns]
        known = [side.cpu_ns / (end_ns - start_ns) for side in sides if side]
        if len(inside) < 2 or not known:
            return None
        (first_ns, *before), (last_ns, *after) = inside[0], inside[-1]
        busy, lab = ((now - then) / (last_ns - first_ns) for then, now in zip(before, after, strict=True))
        return round(max(0.0, busy - lab - sum(known)), 3)


_STATUS_PERIOD_S = 0.5
_LOOKS = 4  # in a window, at least
ANSWER_S = 0.2
_ANSWER_MOST = 1 << 22  # bytes


class StatusError(Exception):
    """The server gave no status, or an invalid one; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The counts of one worker at one moment."""

    slot: int
    accepted: int
    requests: int
    connections: int
    threads: int | None = None
    busy: int | None = None
    loop: bool | None = None  # None: the server does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSample:
    """One answer: the counts of every worker, by pid."""

    at_ns: int
    workers: Mapping[int, Count]


def ask(path: str, within_s: float) -> dict[int, Count]:
    """Ask for the counts of the workers now, by pid. Raises StatusError."""
    try:
        return _read(_answer(path, time.monotonic() + within_s))
    except TimeoutError:
        raise StatusError(f"no answer within {within_s:g} s") from None
    except OSError as error:
        raise StatusError(error.strerror or str(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StatusError("what it answers at {control} is no status") from None


def _answer(path: str, deadline_s: float) -> Any:
    data = bytearray()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(max(0.001, deadline_s - time.monotonic()))
        sock.connect(path)
        sock.sendall(b'{"command": "status"}\n')
        while not data.endswith(b"\n"):
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            chunk = sock.recv(65536)
            if not chunk or len(data) > _ANSWER_MOST:
                break
            data += chunk
    return json.loads(data)


_COUNTED = ("slot", "accepted", "requests", "connections")


def _read(document: Any) -> dict[int, Count]:
    return {int(worker["pid"]): _count(worker) for worker in document["answer"]["workers"]}


def _count(worker: Any) -> Count:
    may = {name: int(worker[name]) for name in ("threads", "busy") if worker.get(name) is not None}
    loop = worker["threads"] is None if "threads" in worker else None
    return Count(**{name: int(worker[name]) for name in _COUNTED}, **may, loop=loop)


class StatusProbe:
    """Samples the server's own counts, if it has a control socket."""

    def __init__(self, path: str | None, window_s: float) -> None:
        self._path = path
        self._period_s = min(_STATUS_PERIOD_S, window_s / _LOOKS)
        self._due_s = 0.0
        self._looks: list[StatusSample] = []
        self._trouble = ""

    def sample(self) -> None:
        """Ask the server, if it is time to."""
        if self._path is None or time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + self._period_s
        try:
            workers = ask(self._path, ANSWER_S)
        except StatusError as error:
            self._trouble = str(error)
            return
        self._looks.append(StatusSample(at_ns=time.monotonic_ns(), workers=workers))

    @property
    def notes(self) -> list[str]:
        """A line that says what went wrong, if anything did."""
        return [f"the server's status is not known at all times: {self._trouble}"] if self._trouble else []

    def workers(
        self, start_ns: int, end_ns: int, cpu_by_pid: Mapping[int, int], calls: Mapping[int, Iterable[int]]
    ) -> tuple[Worker, ...] | None:
        """Return each slot's counts in the window; None with fewer than two answers in it.

        A worker that was replaced and its successor are one: the slot. What the former did after the last look at it
        is lost. `cpu_by_pid` and `calls` are what a Probe saw of the processes.
        """
        inside = [look.workers for look in self._looks if start_ns <= look.at_ns <= end_ns]
        if len(inside) < 2:
            return None
        slots: dict[int, set[int]] = {}
        for workers in inside:
            for pid, count in workers.items():
                slots.setdefault(count.slot, set()).add(pid)
        return tuple(self._worker(slot, pids, inside, cpu_by_pid, calls) for slot, pids in sorted(slots.items()))

    def _worker(
        self,
        slot: int,
        pids: set[int],
        inside: list[Mapping[int, Count]],
        cpu_by_pid: Mapping[int, int],
        calls: Mapping[int, Iterable[int]],
    ) -> Worker:
        looks = [[workers[pid] for pid in pids if pid in workers] for workers in inside]
        last = [count for look in looks for count in look][-1]
        busy = [sum(count.busy or 0 for count in look) for look in looks]
        return Worker(
            slot=slot,
            cpu_ns=sum(cpu_by_pid[pid] for pid in pids) if pids <= cpu_by_pid.keys() else None,
            accepted=sum(_growth(inside, pid, "accepted") for pid in pids),
            requests=sum(_growth(inside, pid, "requests") for pid in pids),
            connections=fmean(sum(count.connections for count in look) for look in looks),
            threads=last.threads,
            busy=None if last.busy is None else fmean(busy),
            loop=last.loop,
            blocked=_blocked(calls, pids, loop=bool(last.loop)),
        )


def _growth(inside: list[Mapping[int, Count]], pid: int, name: str) -> int:
    """Return how far a worker's count rose. A worker that started later started at 0."""
    seen = [getattr(workers[pid], name) for workers in inside if pid in workers]
    return int(seen[-1] - (seen[0] if pid in inside[0] else 0))
