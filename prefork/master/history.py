"""MASTER. What has happened to the server: the MasterState for the admin process, and the whole status document."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from prefork.config.config import Config
from prefork.core.log import utc
from prefork.master.observer import Observer
from prefork.master.policy import Policy
from prefork.master.roster import Spawn
from prefork.master.workers import Message, Workers
from prefork.runtime.master_link import Kind
from prefork.status.collect import Collector, held_is_busy
from prefork.status.deaths import DeathRecord, Deaths
from prefork.status.document import Document, name_of, state_of
from prefork.status.server_state import MasterState, WorkerState


@dataclass(slots=True, kw_only=True)
class History(Observer):
    """MASTER. Counts events of workers, and keeps the latest deaths and reload."""

    config: Config
    policy: Policy
    workers: Workers
    control: str | None = None  # the path of the socket
    reloads: dict[int, str | None] = field(default_factory=dict)  # the latest, by generation: why abandoned
    collector: Collector = field(init=False)
    deaths: Deaths = field(default_factory=Deaths)
    _kind: tuple[str | None, str | None] = (None, None)  # of the app, and its engine, as workers report them
    _began_s: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.time)  # seconds since the epoch
    _respawns: dict[str, int] = field(default_factory=dict)  # by cause
    _causes: dict[int, str] = field(default_factory=dict)  # by slot: the cause of the next respawn
    _last_reload: Document | None = None

    def __post_init__(self) -> None:
        self.collector = Collector(config=self.config, board=self.workers.board, listeners=self.workers.listeners)

    # --- what happened

    def worker_spawned(self, order: Spawn) -> None:
        """Note why a worker was replaced, if one was."""
        match order.cause:
            case "respawn":
                cause = self._causes.pop(order.slot, "unknown")
            case "recycle":
                stale = [worker.stale for worker in self.workers.roster.in_slot(order.slot) if worker.stale]
                cause = stale[0] if stale else "unknown"
            case "reload":
                cause = "reload"
            case _:
                return
        self._respawns[cause] = self._respawns.get(cause, 0) + 1

    def reload_finished(self, generation: int, reason: str | None) -> None:
        """Note how a reload has ended. `reason`: why it was abandoned, None if it was not."""
        self.reloads[generation] = reason
        for old in sorted(self.reloads)[:-16]:
            del self.reloads[old]
        self._last_reload = {
            "generation": generation,
            "ok": reason is None,
            "reason": reason,
            "ended": utc(time.time()),
        }

    def message_received(self, message: Message) -> None:
        """Note the kind of the app and its engine."""
        if message.kind == Kind.READY:
            self._kind = message.fields.get("app_kind"), message.fields.get("engine")

    def worker_exited(self, death: DeathRecord) -> None:
        """Note the cause, if the slot is to be filled again."""
        if death.worker.retiring_s is None:
            self._causes[death.worker.slot] = death.cause

    def worker_died(self, death: DeathRecord, respawn_in_s: float | None) -> None:
        """Note an unexpected death. `respawn_in_s`: the delay of its successor, None if it gets none."""
        self.deaths.add(death, respawn_in_s)

    def tick(self, now_s: float) -> float:
        """Note how busy every worker is and who waits, when it is time to; return when to call again (monotonic s)."""
        return self.collector.tick(now_s, self.state)

    # --- what is known

    def state(self) -> MasterState:
        """What only the master knows."""
        return MasterState(
            pid=os.getpid(),
            began=self._began,
            began_s=self._began_s,
            kind=self._kind[0],
            engine=self._kind[1],
            generation=self.policy.rollout.generation,
            wanted=self.policy.workers,
            booted=self.policy.booted,
            reloading=self.policy.booted and self.policy.rollout.replaces,
            stopping=self.policy.ending,
            last_reload=self._last_reload,
            control=self.control,
            workers=tuple(self.workers.roster),
            gone=self.workers.gone,
            latencies=self.workers.latencies,
            waits=self.workers.waits,
            respawns=self._respawns,
            deaths=self.deaths.short(),
        )

    def document(self) -> Document:
        """What `status --json` prints, now."""
        return self.collector.snapshot(self.state()).document

    def activity(self, worker: WorkerState) -> Document:
        """The state of one worker, what it serves, and for how long."""
        reading = self.collector.reading(worker.group)
        busy_s = time.monotonic() - reading.since_ns / 1e9 if reading.since_ns else None
        return {
            **name_of(worker),
            "state": state_of(worker, reading, held_is_busy=held_is_busy(self._kind[1])),
            "serving": reading.serving or None,
            "busy_s": None if busy_s is None else round(busy_s, 3),
        }
