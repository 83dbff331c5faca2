"""What can be seen of a server from outside its workers: scoreboard, listeners and /proc. Master and admin both look.

`picture` adds that to the facts that only the master knows. `busy_ratio` is of the last BUSY_S to 2 * BUSY_S, so that
it tells how busy a worker is, not how busy it has been on average since it began: `tick` notes every worker's busy time
once in BUSY_S.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefork._version import __version__
from prefork.config.config import Config
from prefork.config.options import OPTIONS
from prefork.core.listener import Listener
from prefork.core.log import utc
from prefork.core.proc import PssCache, cpu_s
from prefork.status.document import Document, WorkerFacts, slow_document, totals
from prefork.status.histogram import ARRAY_DIGITS, Histogram
from prefork.status.scoreboard import BEAT, BUSY_NS, COUNTERS, SINCE, Reading, Scoreboard, beat_s, stuck_ns
from prefork.status.server_state import Facts, KnownWorker

BUSY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The server at one moment: `document` is the whole of `status --json`.

    `slots`: what the workers of each slot have counted in all, the living and the dead; it never falls.
    """

    facts: Facts
    document: Document
    latencies: Histogram
    slots: Mapping[int, Mapping[str, int]]
    waits: Sequence[int]  # to be taken, of all connections that ever were (waits.py)


@dataclass(slots=True, kw_only=True)
class Survey:
    """Looks at one server, and remembers what has to be compared with later."""

    config: Config
    board: Scoreboard
    listeners: Sequence[Listener]
    _pss: PssCache = field(default_factory=PssCache)
    _marks: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by pid: the last two (clock, busy) in ns
    _cpu_s: dict[int, float | None] = field(default_factory=dict)  # by pid, as seen last
    _tick_s: float = 0.0

    def tick(self, now_s: float, workers: Iterable[KnownWorker]) -> float:
        """Note how busy everybody is, when it is time to; return when to come again."""
        if now_s >= self._tick_s:
            self._tick_s = now_s + BUSY_S
            self._marks = {each.pid: [*self._marks.get(each.pid, [])[-1:], self._busy(each)] for each in workers}
        return self._tick_s

    def picture(self, facts: Facts) -> Picture:
        """Look at everything, now."""
        now_s = time.monotonic()
        workers = self._workers(facts)
        latencies = Histogram(ARRAY_DIGITS)
        latencies.merge(facts.latencies)
        for each in workers:
            latencies.merge(each.latencies)
        slots = _slots(facts, workers)
        waits = [sum(counts) for counts in zip(facts.waits, *(each.waits for each in workers), strict=True)]
        document = {
            "server": self._server(facts, now_s),
            "listeners": [_listener(listener) for listener in self.listeners],
            "workers": [each.document(timeout_s=self.config.timeout_s, now_s=now_s) for each in workers],
            "totals": totals(
                {name: sum(counted[name] for counted in slots.values()) for name in COUNTERS},
                latencies,
                connections=sum(each.reading.held for each in workers),
                respawns=facts.respawns,
                waits=waits,
            ),
            "deaths": facts.deaths,
        }
        return Picture(facts=facts, document=document, latencies=latencies, slots=slots, waits=waits)

    def reading(self, group: int) -> Reading:
        """What a group says now. A loop that is stuck is at work, also where nobody can tell for whom."""
        reading = self.board.read(group)
        stuck = 0 if reading.since_ns else self._stuck_ns(reading.beat_ns, time.monotonic_ns())
        return replace(reading, since_ns=stuck) if stuck else reading

    def _stuck_ns(self, beat_ns: int, now_ns: int) -> int:
        return stuck_ns(beat_ns, now_ns, beat_s(self.config.timeout_s, self.config.slow_s))

    def _server(self, facts: Facts, now_s: float) -> Document:
        return {
            "version": __version__,
            "pid": facts.pid,
            "started": utc(facts.began),
            "uptime_s": round(now_s - facts.began_s, 3),
            "app": self.config.app,
            "kind": facts.kind,
            "engine": facts.engine,
            "accept": self.config.accept,
            "generation": facts.generation,
            "workers": facts.wanted,
            "ready": facts.booted and not facts.stopping,
            "reloading": facts.reloading,
            "stopping": facts.stopping,
            "last_reload": facts.last_reload,
            "control": facts.control,
            "config": {option.name: _plain(getattr(self.config, option.field)) for option in OPTIONS},
        }

    def _workers(self, facts: Facts) -> list[WorkerFacts]:
        known = sorted(facts.workers, key=lambda worker: (worker.slot, worker.generation, worker.spawned_s))
        pss = self._pss.read(worker.pid for worker in known)
        # Of one that was reaped a moment ago, /proc knows no more; its rusage comes with the master's next facts.
        used_s = {worker.pid: cpu_s(worker.pid) for worker in known}
        self._cpu_s = {pid: self._cpu_s.get(pid) if used is None else used for pid, used in used_s.items()}
        return [
            WorkerFacts(
                handle=worker,
                reading=self.reading(worker.group),
                latencies=self.board.histogram(worker.group),
                busy_ratio=self._busy_ratio(worker),
                cpu_s=self._cpu_s[worker.pid],
                pss_bytes=pss[worker.pid],
                held_is_busy=held_is_busy(facts.engine),
                waits=self.board.queue_waits(worker.group),
                work=self.board.work(worker.group),
                slow=[slow_document(each) for each in self.board.slow(worker.group)],
            )
            for worker in known
        ]

    def _busy(self, worker: KnownWorker) -> tuple[int, int]:
        """The clock, and how long the worker's threads have been busy in all, units in progress included (ns).

        Not those of a loop, which may wait for whatever they like; it is busy beyond what it tells while it is stuck.
        """
        now_ns = time.monotonic_ns()
        busy_ns = 0
        for thread in range(self.config.threads):
            cells = self.board.row(worker.group, thread).cells
            since_ns = self._stuck_ns(beat_ns, now_ns) if (beat_ns := cells[BEAT]) else cells[SINCE]
            busy_ns += cells[BUSY_NS] + (max(0, now_ns - since_ns) if since_ns else 0)
        return now_ns, busy_ns

    def _busy_ratio(self, worker: KnownWorker) -> float:
        now_ns, busy_ns = self._busy(worker)
        if worker.ready_s is None:
            return 0.0
        marks = self._marks.get(worker.pid)
        then_ns, before_ns = marks[0] if marks else (round(worker.ready_s * 1e9), 0)
        spent_ns = max(1, now_ns - then_ns) * self.config.threads
        return min(1.0, max(0.0, (busy_ns - before_ns) / spent_ns))


def held_is_busy(engine: str | None) -> bool:
    """Whether each connection occupies a thread of its own."""
    return engine == "blocking"


def _slots(facts: Facts, workers: Iterable[WorkerFacts]) -> dict[int, dict[str, int]]:
    slots = {slot: dict(counted) for slot, counted in facts.gone.items()}
    for each in workers:
        counted = slots.setdefault(each.handle.slot, dict.fromkeys((*COUNTERS, "cpu_ns"), 0))
        for name, value in each.reading.counters.items():
            counted[name] += value
        counted["cpu_ns"] += round((each.cpu_s or 0) * 1e9)
    return dict(sorted(slots.items()))


def _listener(listener: Listener) -> Document:
    queue, limit = listener.queue() or (None, None)
    return {"address": listener.address, "queue": queue, "limit": limit, "drops": listener.drops()}


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
