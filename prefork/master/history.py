"""MASTER. Remembers what has happened to the server, and tells it: as facts for other processes, or in full."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, fields

from prefork.config.config import Config
from prefork.core.log import utc
from prefork.master.policy import Policy
from prefork.master.roster import Abandoned, Action, Reloaded, Spawn, WorkerHandle
from prefork.master.workers import Message, Workforce
from prefork.status.collect import Survey, held_is_busy
from prefork.status.deaths import DeathRecord, Deaths
from prefork.status.document import Document, name_of, state
from prefork.status.server_state import Facts, KnownWorker

_KNOWN = [each.name for each in fields(KnownWorker)]


@dataclass(slots=True, kw_only=True)
class Census:
    """MASTER. `facts` is what nobody else knows, `document` the whole of `status --json`."""

    config: Config
    policy: Policy
    force: Workforce
    control: str | None = None  # the path of the socket
    reloads: dict[int, str | None] = field(default_factory=dict)  # how the latest ended: why not, by generation
    _survey: Survey = field(init=False)
    deaths: Deaths = field(default_factory=Deaths)
    _kind: tuple[str | None, str | None] = (None, None)  # of the app, and its engine: workers say it
    _began_s: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.time)  # seconds since the epoch
    _respawns: dict[str, int] = field(default_factory=dict)  # by cause
    _causes: dict[int, str] = field(default_factory=dict)  # by slot: the cause of the next respawn
    _last_reload: Document | None = None

    def __post_init__(self) -> None:
        self._survey = Survey(config=self.config, board=self.force.board, listeners=self.force.listeners)

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
                cause = self._causes.pop(order.slot, "unknown")
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

    def buried(self, death: DeathRecord) -> None:
        """Note a death, and its cause if the slot is to be filled again."""
        worker = death.worker
        if worker.retiring_s is None:
            self._causes[worker.slot] = death.cause

    def tick(self, now_s: float) -> float:
        """Note how busy everybody was, when it is time to; return when to come again."""
        return self._survey.tick(now_s, map(_known, self.force.roster))

    # --- what is so

    def facts(self) -> Facts:
        """What nobody else knows."""
        return Facts(
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
            workers=tuple(map(_known, self.force.roster)),
            gone=self.force.gone,
            latencies=self.force.latencies,
            waits=self.force.waits,
            respawns=self._respawns,
            deaths=self.deaths.short(),
        )

    def document(self) -> Document:
        """Everything, now."""
        return self._survey.picture(self.facts()).document

    def activity(self, worker: WorkerHandle) -> Document:
        """What one worker is doing: its state, whom it serves, and for how long."""
        reading = self._survey.reading(worker.group)
        busy_s = time.monotonic() - reading.since_ns / 1e9 if reading.since_ns else None
        return {
            **name_of(worker),
            "state": state(worker, reading, held_is_busy=held_is_busy(self._kind[1])),
            "serving": reading.serving or None,
            "busy_s": None if busy_s is None else round(busy_s, 3),
        }


def _known(worker: WorkerHandle) -> KnownWorker:
    return KnownWorker(**{name: getattr(worker, name) for name in _KNOWN})
