"""Collects what every process of a server can see: the scoreboard, the listeners and /proc. Used by master and admin.

`snapshot` adds that to the MasterState. `busy_ratio` covers the last BUSY_S to 2 * BUSY_S, so that it is how busy a
worker is now, not its average since it started: `tick` notes the busy time of every worker once in BUSY_S.

`unready` is the one answer to whether clients should come here. Beyond what the master knows it is no while clients
wait in an accept queue and no worker of that queue has accepted one for UNSERVED_S, or for --timeout if that is less:
`tick` follows the queues and the number of connections accepted, once in FOLLOW_S.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefork._version import __version__
from prefork.config.config import Config
from prefork.config.options import OPTIONS
from prefork.core.listener import Listener
from prefork.core.log import utc
from prefork.core.proc import PssCache, cpu_s
from prefork.status.document import Document, WorkerSnapshot, slow_document, totals
from prefork.status.histogram import ARRAY_DIGITS, Histogram
from prefork.status.scoreboard import (
    ACCEPTED,
    BUSY_NS,
    COUNTERS,
    HEARTBEAT,
    SINCE,
    Reading,
    Scoreboard,
    heartbeat_s,
    stuck_ns,
)
from prefork.status.server_state import MasterState, WorkerState

BUSY_S = 10.0
FOLLOW_S = 1.0
UNSERVED_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSnapshot:
    """The server at one moment: `document` is what `status --json` prints.

    `unready`: why clients should not come, empty if they should. `slots`: the counters of each slot, of all its workers
    since the server started; they never fall.
    """

    state: MasterState
    unready: str
    document: Document
    latencies: Histogram
    slots: Mapping[int, Mapping[str, int]]
    waits: Sequence[int]  # of all connections in the kernel's queue (Scoreboard.queue_waits)


@dataclass(slots=True, kw_only=True)
class Collector:
    """Collects snapshots of one server, and keeps what later ones are compared with."""

    config: Config
    board: Scoreboard
    listeners: Sequence[Listener]
    _pss: PssCache = field(default_factory=PssCache)
    _marks: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by pid: the last two (clock, busy) in ns
    _cpu_s: dict[int, float | None] = field(default_factory=dict)  # by pid, as seen last
    _most: dict[int, dict[str, int]] = field(default_factory=dict)  # by slot: the highest that its counters have been
    _tick_s: float = 0.0
    _follow_s: float = 0.0
    # By listener: the connections accepted by all who may, and when one was, or no client waited; as seen last.
    _served: dict[int, tuple[int, float]] = field(default_factory=dict)

    def tick(self, now_s: float, state: Callable[[], MasterState]) -> float:
        """Note how busy every worker is and who waits, when it is time to; return when to call again (monotonic s)."""
        if now_s >= self._tick_s:
            self._tick_s = now_s + BUSY_S
            workers = state().workers
            self._marks = {each.pid: [*self._marks.get(each.pid, [])[-1:], self._busy(each)] for each in workers}
        if now_s >= self._follow_s:
            self._follow_s = now_s + FOLLOW_S
            self._follow(state(), now_s)
        return min(self._tick_s, self._follow_s)

    def unready(self, state: MasterState) -> str:
        """Why load balancers should send no clients here, now; empty if they should."""
        now_s = time.monotonic()
        self._follow(state, now_s)
        unserved_s = now_s - min((since_s for _, since_s in self._served.values()), default=now_s)
        if state.unready or unserved_s < min(UNSERVED_S, self.config.timeout_s or UNSERVED_S):
            return state.unready
        return f"clients wait and nobody has accepted for {unserved_s:.1f} s"

    def _follow(self, state: MasterState, now_s: float) -> None:
        """Note whether clients wait, and whether one was accepted since the last look."""
        by_slot = {slot: counted.get("accepted", 0) for slot, counted in state.gone.items()}
        for worker in state.workers:
            rows = (self.board.row(worker.group, thread) for thread in range(self.config.threads))
            by_slot[worker.slot] = by_slot.get(worker.slot, 0) + sum(row.cells[ACCEPTED] for row in rows)
        in_all = sum(by_slot.values())
        for place, listener in enumerate(self.listeners):
            accepted = in_all if listener.slot is None else by_slot.get(listener.slot, 0)
            queue = listener.queue()
            if not (queue and queue[0]) or accepted != self._served.get(place, (-1, 0.0))[0]:
                self._served[place] = accepted, now_s

    def snapshot(self, state: MasterState) -> ServerSnapshot:
        """Collect everything, now."""
        now_s = time.monotonic()
        unready = self.unready(state)
        workers = self._workers(state)
        latencies = Histogram(ARRAY_DIGITS)
        latencies.merge(state.latencies)
        for each in workers:
            latencies.merge(each.latencies)
        slots = self._slots(state, workers)
        waits = [sum(counts) for counts in zip(state.waits, *(each.waits for each in workers), strict=True)]
        document = {
            "server": self._server(state, unready, now_s),
            "listeners": [_listener(listener) for listener in self.listeners],
            "workers": [each.document(timeout_s=self.config.timeout_s, now_s=now_s) for each in workers],
            "totals": totals(
                {name: sum(counted[name] for counted in slots.values()) for name in COUNTERS},
                latencies,
                connections=sum(each.reading.held for each in workers),
                respawns=state.respawns,
                waits=waits,
            ),
            "deaths": state.deaths,
        }
        return ServerSnapshot(
            state=state, unready=unready, document=document, latencies=latencies, slots=slots, waits=waits
        )

    def reading(self, group: int) -> Reading:
        """What the rows of a group say now. A process that is stuck counts as busy, for whomever."""
        reading = self.board.read(group)
        stuck = 0 if reading.since_ns else self._stuck_ns(reading.moved_ns, time.monotonic_ns())
        return replace(reading, since_ns=stuck) if stuck else reading

    @property
    def beat_s(self) -> float:
        """The time between two heartbeats of a process of this server."""
        return heartbeat_s(self.config.timeout_s, self.config.slow_s)

    def _stuck_ns(self, heartbeat_ns: int, now_ns: int) -> int:
        return stuck_ns(heartbeat_ns, now_ns, self.beat_s)

    def _server(self, state: MasterState, unready: str, now_s: float) -> Document:
        return {
            "version": __version__,
            "pid": state.pid,
            "started": utc(state.began),
            "uptime_s": round(now_s - state.began_s, 3),
            "app": self.config.app,
            "kind": state.kind,
            "engine": state.engine,
            "accept": self.config.accept,
            "generation": state.generation,
            "workers": state.wanted,
            "ready": not unready,
            "unready": unready or None,
            "reloading": state.reloading,
            "stopping": state.stopping,
            "last_reload": state.last_reload,
            "control": state.control,
            "config": {option.name: _plain(getattr(self.config, option.field)) for option in OPTIONS},
        }

    def _workers(self, state: MasterState) -> list[WorkerSnapshot]:
        known = sorted(state.workers, key=lambda worker: (worker.slot, worker.generation, worker.spawned_s))
        pss = self._pss.read(worker.pid for worker in known)
        # A worker that was reaped a moment ago is not in /proc any more; its rusage is in the next state of the master.
        used_s = {worker.pid: cpu_s(worker.pid) for worker in known}
        self._cpu_s = {pid: self._cpu_s.get(pid) if used is None else used for pid, used in used_s.items()}
        return [
            WorkerSnapshot(
                worker=worker,
                reading=self.reading(worker.group),
                latencies=self.board.histogram(worker.group),
                busy_ratio=self._busy_ratio(worker),
                cpu_s=self._cpu_s[worker.pid],
                pss_bytes=pss[worker.pid],
                held_is_busy=held_is_busy(state.engine),
                threads=None if state.engine == "aio" else self.config.threads,
                waits=self.board.queue_waits(worker.group),
                work=self.board.work(worker.group),
                slow=[slow_document(each) for each in self.board.slow(worker.group)],
            )
            for worker in known
        ]

    def _busy(self, worker: WorkerState) -> tuple[int, int]:
        """The clock, and for how long the worker's threads have been busy in all, units in progress included (ns).

        What an event loop serves is not counted, as it may wait for anything; a loop that is stuck is busy.
        """
        now_ns = time.monotonic_ns()
        busy_ns = 0
        for thread in range(self.config.threads):
            cells = self.board.row(worker.group, thread).cells
            since_ns = cells[SINCE] or self._stuck_ns(cells[HEARTBEAT], now_ns)
            busy_ns += cells[BUSY_NS] + (max(0, now_ns - since_ns) if since_ns else 0)
        return now_ns, busy_ns

    def _busy_ratio(self, worker: WorkerState) -> float:
        now_ns, busy_ns = self._busy(worker)
        if worker.ready_s is None:
            return 0.0
        marks = self._marks.get(worker.pid)
        then_ns, before_ns = marks[0] if marks else (round(worker.ready_s * 1e9), 0)
        spent_ns = max(1, now_ns - then_ns) * self.config.threads
        return min(1.0, max(0.0, (busy_ns - before_ns) / spent_ns))

    def _slots(self, state: MasterState, workers: Iterable[WorkerSnapshot]) -> dict[int, dict[str, int]]:
        """The counters of each slot. They never fall, though a worker may have spoiled the rows of a live one."""
        slots = {slot: dict(counted) for slot, counted in state.gone.items()}
        for each in workers:
            counted = slots.setdefault(each.worker.slot, dict.fromkeys((*COUNTERS, "cpu_ns"), 0))
            for name, value in each.reading.counters.items():
                counted[name] += value
            counted["cpu_ns"] += round((each.cpu_s or 0) * 1e9)
        for slot, counted in slots.items():
            most = self._most.setdefault(slot, {})
            most.update({name: max(value, most.get(name, 0)) for name, value in counted.items()})
        return {slot: dict(self._most[slot]) for slot in sorted(slots)}


def held_is_busy(engine: str | None) -> bool:
    """True if each connection occupies a thread."""
    return engine == "blocking"


def _listener(listener: Listener) -> Document:
    queue, limit = listener.queue() or (None, None)
    return {"address": listener.address, "queue": queue, "limit": limit, "drops": listener.drops()}


def _plain(value: Any) -> Any:
    """The value as JSON knows it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
