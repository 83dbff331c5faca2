"""What a server says of its own workers: asked over a Unix socket while the load is on, and cut to the window later.

The socket is the one whose path stands for {control} in the server's command. On it the server answers the line

    {"command": "status"}

with one line of JSON, then it closes:

    {"ok": true, "answer": {"workers": [{"slot": 0, "pid": 4242, "accepted": 17, "requests": 17, "connections": 1}]}}

That is what prefork's control socket does, and little enough for any server to do. Other keys are not read. The numbers
are running counts, but for `connections`, which are those open now.

The command `prefork status --json` would say the same for a quarter of a second of CPU; asking the socket costs the
server 1-2 ms. So it is asked every 0.5 s, which is below half a percent of a core, and more often only in windows so
short that this would be too seldom. A server that does not answer costs the watch ANSWER_S each time, and is noted.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..data.records import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

PERIOD_S = 0.5
_LOOKS = 4  # in a window, at least
ANSWER_S = 0.2
_ANSWER_MOST = 1 << 22  # bytes


class StatusError(Exception):
    """No answer, or one of another shape; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One worker at one moment."""

    slot: int
    accepted: int
    requests: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One answer: every worker by its pid."""

    at_ns: int
    workers: Mapping[int, Count]


def ask(path: str, within_s: float) -> dict[int, Count]:
    """The workers now, by pid. Raises StatusError."""
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


def _read(document: Any) -> dict[int, Count]:
    return {
        int(worker["pid"]): Count(**{name: int(worker[name]) for name in Count.__slots__})
        for worker in document["answer"]["workers"]
    }


class StatusProbe:
    """Watches a server's own counts, if it has a socket to ask at."""

    def __init__(self, path: str | None, window_s: float) -> None:
        self._path = path
        self._period_s = min(PERIOD_S, window_s / _LOOKS)
        self._due_s = 0.0
        self._looks: list[Look] = []
        self._trouble = ""

    def sample(self) -> None:
        """Ask, if it is time to."""
        if self._path is None or time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + self._period_s
        try:
            workers = ask(self._path, ANSWER_S)
        except StatusError as error:
            self._trouble = str(error)
            return
        self._looks.append(Look(at_ns=time.monotonic_ns(), workers=workers))

    @property
    def notes(self) -> list[str]:
        """What went wrong."""
        return [f"the server's status is not known at all times: {self._trouble}"] if self._trouble else []

    def workers(self, start_ns: int, end_ns: int, cpu_by_pid: Mapping[int, int]) -> tuple[Worker, ...] | None:
        """Each slot's counts in the window; None when too few answers fell into it.

        A worker that was replaced and its successor are one: the slot. What the former did after the last look at it
        is lost.
        """
        inside = [look.workers for look in self._looks if start_ns <= look.at_ns <= end_ns]
        if len(inside) < 2:
            return None
        slots: dict[int, set[int]] = {}
        for workers in inside:
            for pid, count in workers.items():
                slots.setdefault(count.slot, set()).add(pid)
        return tuple(
            Worker(
                slot=slot,
                cpu_ns=sum(cpu_by_pid[pid] for pid in pids) if pids <= cpu_by_pid.keys() else None,
                accepted=sum(_growth(inside, pid, "accepted") for pid in pids),
                requests=sum(_growth(inside, pid, "requests") for pid in pids),
                connections=fmean(
                    sum(workers[pid].connections for pid in pids if pid in workers) for workers in inside
                ),
            )
            for slot, pids in sorted(slots.items())
        )


def _growth(inside: list[Mapping[int, Count]], pid: int, name: str) -> int:
    """How far a count rose. A worker that began later began at nought."""
    seen = [getattr(workers[pid], name) for workers in inside if pid in workers]
    return int(seen[-1] - (seen[0] if pid in inside[0] else 0))
