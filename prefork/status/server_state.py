"""What only the master knows of a server, in a form that another process can read. Pure.

The rest, what workers do and how long the queues are, anybody can look at: see survey.py. Nothing here changes by the
mere passing of time, so that equal facts mean that nothing has happened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from prefork.status.histogram import Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWorker:
    """A live worker. Times are monotonic seconds; None = not yet."""

    pid: int
    slot: int
    generation: int
    group: int  # of rows on the scoreboard
    spawned_s: float
    ready_s: float | None
    retiring_s: float | None

    @property
    def serving(self) -> bool:
        """Accepts connections and has not been told to stop."""
        return self.ready_s is not None and self.retiring_s is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The server as its master knows it. `began` is seconds since the epoch, `began_s` the same moment, monotonic."""

    pid: int
    began: float
    began_s: float
    kind: str | None  # of the app; workers say it
    engine: str | None
    generation: int
    wanted: int  # workers
    booted: bool  # all workers have been ready once
    reloading: bool
    stopping: bool  # or about to
    last_reload: Mapping[str, Any] | None
    control: str | None  # the path of the socket
    workers: tuple[KnownWorker, ...]
    gone: Mapping[int, Mapping[str, int]]  # by slot: what its workers that are gone have counted (COUNTERS, and cpu_ns)
    latencies: Histogram  # of workers that are gone
    waits: Sequence[int]  # of their connections to be taken (Scoreboard.queue_waits)
    respawns: Mapping[str, int]  # by cause
    deaths: Mapping[str, Any]  # how many, and the last (Deaths.short)

    @property
    def unready(self) -> str:
        """Why no new clients should be sent here; empty if they should."""
        if self.stopping:
            return "the server is stopping"
        if not self.booted:
            return "the server is starting"
        return "" if any(worker.serving for worker in self.workers) else "no worker serves"

    def to_text(self) -> bytes:
        """For `from_text`."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        plain["workers"] = [asdict(worker) for worker in self.workers]
        plain["gone"] = list(self.gone.items())
        plain["latencies"] = self.latencies.to_json()
        return json.dumps(plain).encode()

    @classmethod
    def from_text(cls, text: bytes) -> Facts:
        """What `to_text` wrote."""
        plain = json.loads(text)
        plain["workers"] = tuple(KnownWorker(**worker) for worker in plain["workers"])
        plain["gone"] = dict(plain["gone"])
        plain["latencies"] = Histogram.from_json(plain["latencies"])
        return cls(**plain)


_PLAIN = [each.name for each in fields(Facts) if each.name not in ("workers", "gone", "latencies")]
