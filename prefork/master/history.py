"""MASTER. Remembers what has happened to the server, and tells it: as facts for other processes, or in full."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, fields

from prefork.config.config import Config
from prefork.core.log import utc
from prefork.master.observer import Observer
from prefork.master.policy import Policy
from prefork.master.roster import Abandoned, Reloaded, Spawn, WorkerHandle
from prefork.master.workers import Message, Workers
from prefork.runtime.master_link import Kind
from prefork.status.collect import Survey, held_is_busy
from prefork.status.deaths import Obituaries, Obituary
from prefork.status.document import Document, name_of, state
from prefork.status.server_state import Facts, KnownWorker

_KNOWN = [each.name for each in fields(KnownWorker)]


@dataclass(slots=True, kw_only=True)
class Census(Observer):
    """MASTER. `facts` is what nobody else knows, `document` the whole of `status --json`."""

    config: Config
    policy: Policy
    force: Workers
    control: str | None = None  # the path of the socket
    reloads: dict[int, str | None] = field(default_factory=dict)  # how the latest ended: why not, by generation
    _survey: Survey = field(init=False)
    obituaries: Obituaries = field(default_factory=Obituaries)
    _kind: tuple[str | None, str | None] = (None, None)  # of the app, and its engine: workers say it
    _began_s: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.time)  # seconds since the epoch
    _respawns: dict[str, int] = field(default_factory=dict)  # by cause
    _deaths: dict[int, str] = field(default_factory=dict)  # by slot: the cause of the next respawn
    _last_reload: Document | None = None

    def __post_init__(self) -> None:
        self._survey = Survey(config=self.config, board=self.force.board, listeners=self.force.listeners)

    # --- what happened

    def reload_finished(self, outcome: Reloaded | Abandoned) -> None:
        """Note how a reload has ended."""
        self._reloaded(outcome.generation, outcome.reason if isinstance(outcome, Abandoned) else None)

    def worker_spawned(self, order: Spawn) -> None:
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

    def message_received(self, message: Message) -> None:
        """Note what kind of application the workers serve, and how."""
        if message.kind == Kind.READY:
            self._kind = message.fields.get("app_kind"), message.fields.get("engine")

    def worker_exited(self, death: Obituary) -> None:
        """Note a death, and its cause if the slot is to be filled again."""
        worker = death.worker
        if worker.retiring_s is None:
            self._deaths[worker.slot] = death.cause

    def worker_died(self, death: Obituary, respawn_in_s: float | None) -> None:
        """Keep the death for whoever asks for the latest."""
        self.obituaries.keep(death, respawn_in_s)

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
            obituaries=self.obituaries.short(),
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
