"""Replacing workers while others serve. Pure. One mechanism for every cause: a worker is outdated if it is of an older
generation (reload) or was marked stale (max-requests, max-memory, max-age, SIGTERM); its successor starts in the same
slot, and when it serves, the outdated one retires. One at a time: the next begins when the last has exited. So there
are never fewer serving workers than asked, and never more than one extra.

A reload goes prepare -> roll -> done. It is abandoned when its generation cannot be prepared, or when a worker of it
dies before it is ready: then the old generation is the current one again, and stays. A reload that is asked for
during another follows it, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prefork.master.roster import Abandoned, Action, Discard, Prepare, Reloaded, Retire, Roster, Spawn, WorkerHandle

PREPARING, ROLLING = "preparing", "rolling"


@dataclass(slots=True, kw_only=True)
class Rollout:
    """MASTER. `generation` is what slots are filled with; 0 until the first one is prepared."""

    generation: int = 0
    phase: str = ""  # of a reload; "" when there is none
    abandons_starts: bool = False  # a failed start is abandoned like a failed reload, and waits for the next one
    _prepared: set[int] = field(default_factory=set)
    _asked: dict[int, float] = field(default_factory=dict)  # generations that are being prepared, and since when
    _latest: int = 0  # the highest number given out
    _previous: int = 0  # to go back to
    _again: bool = False
    _pending: list[Action] = field(default_factory=list)  # for the next step

    def reload(self) -> int:
        """Begin a new generation, or note that one is wanted after the present reload; return its number."""
        if self.phase:
            self._again = True
            return self._latest + 1
        self._latest += 1
        self.phase = PREPARING
        return self._latest

    @property
    def replaces(self) -> bool:
        """True if a reload is under way. The start, which is done in the same way, is none."""
        return self.phase == PREPARING or (self.phase == ROLLING and self._previous != 0)

    @property
    def _wanted(self) -> int:
        """The generation that is needed next; 0 = none."""
        return self._latest if self.phase == PREPARING else self.generation

    @property
    def waits_since_s(self) -> float | None:
        """When the generation that is needed was asked for; None if it is there."""
        return self._asked.get(self._wanted)

    @property
    def can_spawn(self) -> bool:
        """True if workers of the current generation can be forked."""
        return self.generation in self._prepared

    def prepared(self, generation: int) -> None:
        """Workers of the generation can be forked."""
        self._prepared.add(generation)
        self._asked.pop(generation, None)
        if self.phase == PREPARING and generation == self._latest:
            self._previous = self.generation
            self.generation = generation
            self.phase = ROLLING

    def lost(self, generation: int, reason: str) -> bool:
        """The template of the generation has died or could not be made; True if it is needed again."""
        self._prepared.discard(generation)
        self._asked.pop(generation, None)
        if generation == self._latest and self.phase and not self._is_first_start:
            self.abandon(reason)
            return False
        return generation == self.generation

    @property
    def _is_first_start(self) -> bool:
        """True while the first generation is started: there is none to go back to, so it is tried again."""
        return self.phase == ROLLING and self._previous == 0 and not self.abandons_starts

    def abandon(self, reason: str) -> None:
        """Go back to the generation before."""
        if self.phase == ROLLING:
            self.generation = self._previous
        self.phase = ""
        self._pending.append(Abandoned(self._latest, reason))
        self._follow()

    def died_booting(self, worker: WorkerHandle, reason: str) -> bool:
        """A worker died before it was ready; True if that ended a reload."""
        if self._is_first_start or self.phase != ROLLING or worker.generation != self.generation:
            return False
        self.abandon(reason)
        return True

    def outdated(self, worker: WorkerHandle) -> str | None:
        """Why the worker is to be replaced, if it is."""
        return "reload" if worker.generation < self.generation else worker.stale

    def step(self, roster: Roster, workers: int, now_s: float) -> list[Action]:
        """Return what is to be done next."""
        actions = self._pending
        self._pending = []
        wanted = self._wanted
        if wanted and wanted not in self._prepared and wanted not in self._asked:
            self._asked[wanted] = now_s
            actions.append(Prepare(wanted))
        return actions + self._replace(roster, workers) + self._finish(roster, workers)

    def overdue(self, limit_s: float, now_s: float) -> Discard | None:
        """The generation has been in preparation for longer than `limit_s`."""
        if self.waits_since_s is None or now_s < self.waits_since_s + limit_s:
            return None
        self._asked[self._wanted] = now_s  # asked for once; its end is told by lost()
        return Discard(self._wanted, f"not prepared within --boot-timeout {limit_s:g} s")

    def _replace(self, roster: Roster, workers: int) -> list[Action]:
        extra = any(worker.pending or worker.retiring_s is not None for worker in roster)
        actions: list[Action] = []
        waiting: list[tuple[WorkerHandle, str]] = []
        for worker in roster:
            reason = self.outdated(worker)
            if reason is None or worker.retiring_s is not None or worker.pending or worker.slot >= workers:
                continue
            mates = roster.in_slot(worker.slot)
            successors = mates[mates.index(worker) + 1 :]
            if any(other.serving for other in successors):
                actions.append(Retire(worker, reason))
                extra = True
            elif not successors:
                waiting.append((worker, reason))
        if waiting and not extra and self.can_spawn:
            worker, reason = waiting[0]
            actions.append(Spawn(worker.slot, self.generation, "reload" if reason == "reload" else "recycle"))
        return actions

    def _finish(self, roster: Roster, workers: int) -> list[Action]:
        if self.phase != ROLLING or not settled(roster, workers, self.generation):
            return []
        self.phase = ""
        self._follow()
        return [Reloaded(self.generation)]

    def _follow(self) -> None:
        """Begin the reload that was asked for during the one that has ended."""
        if self._again:
            self._again = False
            self.reload()


def settled(roster: Roster, workers: int, generation: int) -> bool:
    """True if each slot holds one serving worker of the generation and no other worker is alive."""
    slots = sorted(worker.slot for worker in roster if worker.serving and worker.generation >= generation)
    return slots == list(range(workers)) and len(roster) == workers
