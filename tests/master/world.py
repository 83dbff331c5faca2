"""A master and its workers, with fake pids and a fake clock.

`World` asks the policy as the master does, until nothing is left to do, and carries out what it is told.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefork.master.policy import Policy, Timeouts
from prefork.master.roster import Action, Prepare, Roster, Spawn, Unit, WorkerHandle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMEOUT_S, GRACEFUL_S, BOOT_S = 30.0, 20.0, 60.0
MOST_ROUNDS = 50  # of asking again because something was to be done


class World:
    """A master with its workers. Time passes only by `later`; `wake_s` is when the policy wants to be asked again."""

    def __init__(
        self,
        workers: int = 2,
        *,
        preload: bool = False,
        timeout_s: float = TIMEOUT_S,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> None:
        timeouts = Timeouts(timeout_s=timeout_s, graceful_timeout_s=GRACEFUL_S, boot_timeout_s=BOOT_S)
        self.policy = Policy(workers=workers, timeouts=timeouts, jitter=jitter)
        self.roster = Roster()
        self.preload = preload
        self.now_s = 1000.0
        self.wake_s = 0.0
        self.queued = False  # a stop has connections left to drain
        self.refuse = False  # the system forks no more
        self._units: dict[int, Unit] = {}
        self._completed: dict[int, int] = {}  # by generation
        self._pids = itertools.count(1001)

    # --- what the master does

    def look(self) -> list[Action]:
        """Ask, and do what is said, until nothing is left to do; return all of it in order."""
        done: list[Action] = []
        for _round in range(MOST_ROUNDS):
            not_before_s = self.policy.backoff.not_before_s
            actions, self.wake_s = self.policy.supervise(self.roster, self._all_units(), self.now_s, queued=self.queued)
            if not actions:
                assert self.wake_s > self.now_s, "the master would spin"
                return done
            assert self.now_s >= not_before_s or not spawns(actions)
            for action in actions:
                self._act(action)
            done += actions
        raise AssertionError(f"no end of actions: {done}")

    def _all_units(self) -> dict[int, Unit]:
        return {worker.pid: self._units.get(worker.pid, Unit()) for worker in self.roster}

    def _act(self, action: Action) -> None:
        if isinstance(action, Spawn):
            if self.refuse:
                self.policy.spawn_refused(self.now_s)
                return
            pid = next(self._pids)
            self.roster.add(
                WorkerHandle(pid=pid, slot=action.slot, generation=action.generation, group=pid, spawned_s=self.now_s)
            )
        elif isinstance(action, Prepare) and not self.preload:
            self.policy.rollout.prepared(action.generation)

    # --- what happens

    def later(self, seconds: float) -> list[Action]:
        """Let time pass, then look."""
        self.now_s += seconds
        return self.look()

    def at_wake(self) -> list[Action]:
        """Look when the policy asked for it."""
        self.now_s = self.wake_s
        return self.look()

    def ready(self, *workers: WorkerHandle) -> list[Action]:
        """Workers accept (all that boot, if none is named); as the master, note when all of them do."""
        for worker in workers or [worker for worker in self.roster if worker.pending]:
            self.policy.ready(worker, self._completed.get(worker.generation, 0), self.now_s)
        if self.roster.serving() == self.policy.workers:
            self.policy.booted = True
        return self.look()

    def die(self, *workers: WorkerHandle, served: int = 0, reason: str = "SIGSEGV") -> list[float]:
        """Workers are reaped, after `served` more units each; return the delays. The caller looks."""
        delays = []
        for worker in workers:
            assert self.roster.remove(worker.pid) is worker
            completed = self._completed[worker.generation] = self._completed.get(worker.generation, 0) + served
            delays.append(self.policy.died(worker, completed, self.now_s, reason))
        return delays

    def retired(self) -> list[Action]:
        """Everyone who was told to go has gone."""
        self.die(*(worker for worker in self.roster if worker.retiring_s is not None or worker.killed))
        return self.look()

    def begin(self, worker: WorkerHandle, peer: str = "10.0.0.1:40312") -> None:
        """The worker takes up a unit of work."""
        self._units[worker.pid] = Unit(since_ns=round(self.now_s * 1e9), serving=peer)

    def end(self, worker: WorkerHandle) -> None:
        """The worker has completed its unit."""
        self._units.pop(worker.pid, None)
        self._completed[worker.generation] = self._completed.get(worker.generation, 0) + 1

    def beat(self, worker: WorkerHandle, *, stopped: bool = False) -> None:
        """The worker beats; without a unit of work this is what it is judged by. `stopped`: it was stopped then."""
        self._units[worker.pid] = Unit(since_ns=round(self.now_s * 1e9), silent=True, stopped=stopped)

    def completed(self, worker: WorkerHandle, count: int) -> None:
        """The worker has completed so many units in all."""
        self._units[worker.pid] = replace(self._units[worker.pid], completed=count)

    def answer(self, worker: WorkerHandle) -> None:
        """The worker's stacks have come."""
        assert worker.hang is not None
        worker.hang.answered = True

    # --- what is so

    def slot(self, number: int) -> WorkerHandle:
        """The one worker of a slot that is not retiring."""
        (worker,) = self.roster.in_slot(number)
        return worker

    def generations(self) -> list[tuple[int, int]]:
        """(slot, generation) of every live worker."""
        return sorted((worker.slot, worker.generation) for worker in self.roster)


def started(workers: int = 2, **options: Any) -> World:
    """A world whose workers all serve."""
    world = World(workers, **options)
    world.look()
    if world.preload:
        world.policy.rollout.prepared(1)
        world.look()
    world.ready()
    assert world.policy.booted
    return world


def spawns(actions: Sequence[Action]) -> list[Spawn]:
    return [action for action in actions if isinstance(action, Spawn)]


def kinds(actions: Sequence[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def finish(world: World) -> list[Action]:
    """Let every worker get ready, leave, and come back as it is told, until nothing more is to be done."""
    done = world.look()
    for _round in range(100):
        for generation in prepares(done):
            world.policy.rollout.prepared(generation)
        new = world.ready() + world.retired()
        if not new and not any(worker.pending for worker in world.roster):
            if world.policy.backoff.not_before_s <= world.now_s:
                return done
            new = world.at_wake()
        done += new
    raise AssertionError(f"no end: {done[-10:]}")


def prepares(actions: Sequence[Action]) -> list[int]:
    return [action.generation for action in actions if isinstance(action, Prepare)]
