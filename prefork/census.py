"""MASTER. Collects what `status` shows: asks the scoreboard, the listeners and /proc, and remembers what has happened.

`busy_ratio` is of the last BUSY_S to 2 * BUSY_S, so that it tells how busy a worker is, not how busy it has been on
average since it began: `tick` notes every worker's busy time once in BUSY_S.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from . import __version__
from .actions import Abandoned, Action, Reloaded, Spawn
from .config import Config
from .histogram import ARRAY_DIGITS, Histogram
from .listener import Listener
from .log import utc
from .memory import PssCache, cpu_s
from .obituary import Obituary
from .option import OPTIONS
from .policy import Policy
from .roster import WorkerHandle
from .scoreboard import BUSY_NS, SINCE
from .status import Document, WorkerFacts, name_of, state, totals
from .workforce import Message, Workforce

BUSY_S = 10.0


@dataclass(slots=True, kw_only=True)
class Census:
    """MASTER. `document` is the whole of `status --json`."""

    config: Config
    policy: Policy
    force: Workforce
    control: str | None = None  # the path of the socket
    reloads: dict[int, str | None] = field(default_factory=dict)  # how the latest ended: why not, by generation
    _kind: tuple[str | None, str | None] = (None, None)  # of the app, and its engine: workers say it
    _began_s: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.time)  # seconds since the epoch
    _pss: PssCache = field(default_factory=PssCache)
    _respawns: dict[str, int] = field(default_factory=dict)  # by cause
    _deaths: dict[int, str] = field(default_factory=dict)  # by slot: the cause of the next respawn
    _marks: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by pid: the last two (clock, busy) in ns
    _tick_s: float = 0.0
    _last_reload: Document | None = None

    # --- what happened

    def acted(self, action: Action) -> None:
        """Note how a reload has ended."""
        match action:
            case Reloaded(generation) if generation > self.policy.first:
                self._reloaded(generation, None)
            case Abandoned(generation, reason):
                self._reloaded(generation, reason)

    def spawned(self, order: Spawn) -> None:
        """Note why a worker was replaced, if one was."""
        match order.cause:
            case "respawn":
                cause = self._deaths.pop(order.slot, "unknown")
            case "recycle":
                stale = [worker.stale for worker in self.force.roster.in_slot(order.slot) if worker.stale]
                cause = stale[0] if stale else "unknown"
            case "reload":
                cause = "reload"
            case _:
                return
        self._respawns[cause] = self._respawns.get(cause, 0) + 1

    def _reloaded(self, generation: int, reason: str | None) -> None:
        self.reloads[generation] = reason
        for old in sorted(self.reloads)[:-16]:
            del self.reloads[old]
        self._last_reload = {
            "generation": generation,
            "ok": reason is None,
            "reason": reason,
            "ended": utc(time.time()),
        }

    def heard(self, message: Message) -> None:
        """Note what a worker said."""
        if message.kind == "ready":
            self._kind = message.fields.get("app_kind"), message.fields.get("engine")

    def buried(self, obituary: Obituary) -> None:
        """Note a death, and its cause if the slot is to be filled again."""
        worker = obituary.worker
        self._marks.pop(worker.pid, None)
        if worker.retiring_s is None:
            cause = "timeout" if worker.hang else "boot-timeout" if worker.pending else "killed"
            self._deaths[worker.slot] = cause if worker.killed else str(obituary.exit)

    def tick(self, now_s: float) -> float:
        """Note how busy everybody was, when it is time to; return when to come again."""
        if now_s >= self._tick_s:
            self._tick_s = now_s + BUSY_S
            for worker in self.force.roster:
                marks = self._marks.setdefault(worker.pid, [])
                self._marks[worker.pid] = [*marks[-1:], self._busy(worker)]
        return self._tick_s

    # --- what is so

    def document(self) -> Document:
        """Everything, now."""
        now_s = time.monotonic()
        workers = self._workers()
        latencies = Histogram(ARRAY_DIGITS)
        latencies.merge(self.force.latencies)
        for facts in workers:
            latencies.merge(facts.latencies)
        return {
            "server": self._server(now_s),
            "listeners": [_listener(listener) for listener in self.force.listeners],
            "workers": [facts.document(timeout_s=self.config.timeout_s, now_s=now_s) for facts in workers],
            "totals": totals(
                self.force.counters(),
                latencies,
                connections=sum(facts.reading.held for facts in workers),
                respawns=self._respawns,
            ),
        }

    def activity(self, worker: WorkerHandle) -> Document:
        """What one worker is doing: its state, whom it serves, and for how long."""
        reading = self.force.board.read(worker.group)
        busy_s = time.monotonic() - reading.since_ns / 1e9 if reading.since_ns else None
        return {
            **name_of(worker),
            "state": state(worker, reading, held_is_busy=self._held_is_busy),
            "serving": reading.serving or None,
            "busy_s": None if busy_s is None else round(busy_s, 3),
        }

    @property
    def _held_is_busy(self) -> bool:
        return self._kind[1] == "blocking"

    def _server(self, now_s: float) -> Document:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": utc(self._began),
            "uptime_s": round(now_s - self._began_s, 3),
            "app": self.config.app,
            "kind": self._kind[0],
            "engine": self._kind[1],
            "accept": self.config.accept,
            "generation": self.policy.rollout.generation,
            "workers": self.policy.workers,
            "ready": self.policy.booted and not self.policy.stopping,
            "reloading": bool(self.policy.booted and self.policy.rollout.phase),
            "stopping": self.policy.stopping,
            "last_reload": self._last_reload,
            "control": self.control,
            "config": {option.name: _plain(getattr(self.config, option.field)) for option in OPTIONS},
        }

    def _workers(self) -> list[WorkerFacts]:
        handles = sorted(self.force.roster, key=lambda worker: (worker.slot, worker.generation, worker.spawned_s))
        pss = self._pss.read(worker.pid for worker in handles)
        return [
            WorkerFacts(
                handle=worker,
                reading=self.force.board.read(worker.group),
                latencies=self.force.board.histogram(worker.group),
                busy_ratio=self._busy_ratio(worker),
                cpu_s=cpu_s(worker.pid),
                pss_bytes=pss[worker.pid],
                held_is_busy=self._held_is_busy,
            )
            for worker in handles
        ]

    def _busy(self, worker: WorkerHandle) -> tuple[int, int]:
        """The clock, and how long the worker's threads have been busy in all, units in progress included (ns)."""
        now_ns = time.monotonic_ns()
        busy_ns = 0
        for thread in range(self.config.threads):
            cells = self.force.board.row(worker.group, thread).cells
            busy_ns += cells[BUSY_NS] + (max(0, now_ns - since) if (since := cells[SINCE]) else 0)
        return now_ns, busy_ns

    def _busy_ratio(self, worker: WorkerHandle) -> float:
        now_ns, busy_ns = self._busy(worker)
        if worker.ready_s is None:
            return 0.0
        then_ns, before_ns = self._marks.get(worker.pid, [(round(worker.ready_s * 1e9), 0)])[0]
        spent_ns = max(1, now_ns - then_ns) * self.config.threads
        return min(1.0, max(0.0, (busy_ns - before_ns) / spent_ns))


def _listener(listener: Listener) -> Document:
    queue, limit = listener.queue() or (None, None)
    return {"address": listener.address, "queue": queue, "limit": limit, "drops": listener.drops()}


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
