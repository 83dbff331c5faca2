"""What only the master knows about the server, in a form that another process can read. Pure.

collect.py adds the rest, which every process can see: what the workers do, and how long the queues are. Nothing here
changes with the clock alone, so two equal texts mean that nothing has happened in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from prefork.status.histogram import Histogram


@dataclass(slots=True, kw_only=True)
class WorkerState:
    """Identity and life cycle of one worker. The master's own record of it (WorkerHandle) is a subclass.

    Times are monotonic seconds; None = not yet.
    """

    pid: int
    slot: int
    generation: int
    group: int  # of rows on the scoreboard
    spawned_s: float
    ready_s: float | None = None
    retiring_s: float | None = None

    @property
    def pending(self) -> bool:
        """Forked, and not ready to accept yet."""
        return self.ready_s is None

    @property
    def serving(self) -> bool:
        """True if the worker accepts connections and was not told to retire."""
        return self.ready_s is not None and self.retiring_s is None

    @property
    def identity(self) -> dict[str, int]:
        """The fields that name the worker in a log line."""
        return {"worker": self.slot, "gen": self.generation, "pid": self.pid}


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterState:
    """The server as its master knows it. `began`: seconds since the epoch; `began_s`: the same moment, monotonic."""

    pid: int
    began: float
    began_s: float
    kind: str | None  # of the app, as workers report it
    engine: str | None
    generation: int
    wanted: int  # workers
    booted: bool  # all workers have been ready once
    reloading: bool
    stopping: bool  # or about to
    last_reload: Mapping[str, Any] | None
    control: str | None  # the path of the socket
    workers: tuple[WorkerState, ...]
    gone: Mapping[int, Mapping[str, int]]  # by slot: counters of the workers that have ended (COUNTERS, and cpu_ns)
    latencies: Histogram  # of the workers that have ended
    waits: Sequence[int]  # of their connections in the kernel's queue (Scoreboard.queue_waits)
    respawns: Mapping[str, int]  # by cause
    deaths: Mapping[str, Any]  # the number, and the last one (Deaths.short)

    @property
    def unready(self) -> str:
        """Why load balancers should send no clients here, as far as the master knows (see Collector.unready)."""
        if self.stopping:
            return "the server is stopping"
        if not self.booted:
            return "the server is starting"
        return "" if any(worker.serving for worker in self.workers) else "no worker serves"

    def to_text(self) -> bytes:
        """JSON that `from_text` reads."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        plain["workers"] = [[getattr(worker, name) for name in _OF_WORKER] for worker in self.workers]
        plain["gone"] = list(self.gone.items())
        plain["latencies"] = self.latencies.to_json()
        return json.dumps(plain).encode()

    @classmethod
    def from_text(cls, text: bytes) -> MasterState:
        """Read what `to_text` wrote."""
        plain = json.loads(text)
        plain["workers"] = tuple(
            WorkerState(**dict(zip(_OF_WORKER, values, strict=True))) for values in plain["workers"]
        )
        plain["gone"] = dict(plain["gone"])
        plain["latencies"] = Histogram.from_json(plain["latencies"])
        return cls(**plain)


_OF_WORKER = [each.name for each in fields(WorkerState)]
_PLAIN = [each.name for each in fields(MasterState) if each.name not in ("workers", "gone", "latencies")]
