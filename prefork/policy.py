"""What the master decides. Pure: events and a clock go in, actions come out, so every case is tested in microseconds.

Rules:
- Each slot 0..workers-1 holds one worker. An empty slot is filled at once, unless workers die barren (without having
  completed a single unit of work since they were ready): each such death in a row delays the next spawn, 0.25 s x1.5
  with jitter up to 30 s. Any work completed by the generation clears the count.
- Until all workers have been ready once, one that dies before it is ready is a boot failure: the server halts with
  one message, not a respawn loop.
- A unit of work older than `timeout_s` is a hang: ask for the Python stacks; with no answer in 250 ms ask faulthandler;
  then kill. After the master itself was suspended it waits one second before it judges anybody.
- A stop retires everybody once; who is left after `graceful_timeout_s` is killed. Workers that are gone before the
  accept queue is empty are replaced by one that drains it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .roster import Hang, Roster, WorkerHandle

BACKOFF_FIRST_S = 0.25
BACKOFF_FACTOR = 1.5
BACKOFF_MOST_S = 30.0
STACKS_WAIT_S = 0.25  # for the Python-level answer, then for faulthandler's
GRACE_MARGIN_S = 1.0  # workers cut their own connections at the graceful timeout; this is for those that cannot
SUSPENDED_S = 1.0  # waking later than this means that the master itself was stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What the scoreboard says of one worker: its oldest unit of work (ns, 0 = none), whose it is, units completed."""

    since_ns: int = 0
    serving: str = ""
    completed: int = 0


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker for the slot."""

    slot: int
    generation: int
    respawn: bool


@dataclass(frozen=True, slots=True)
class Retire:
    """Tell the worker to finish what is in flight and exit."""

    worker: WorkerHandle
    reason: str


@dataclass(frozen=True, slots=True)
class AskStacks:
    """Ask a hung worker for its Python stacks."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class AskFault:
    """It did not answer: ask faulthandler, which needs no GIL."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL."""

    worker: WorkerHandle
    reason: str


Action = Spawn | Retire | AskStacks | AskFault | Kill


@dataclass(slots=True, kw_only=True)
class Backoff:
    """How long to wait before the next spawn after barren deaths."""

    barren: int = 0
    noted_s: float = 0.0
    not_before_s: float = 0.0

    def note(self, now_s: float, jitter: float) -> float:
        """Count a barren death; return the delay in seconds. `jitter` is in 0..1."""
        self.noted_s = now_s
        delay_s = BACKOFF_FIRST_S * BACKOFF_FACTOR ** min(self.barren, 20) * (0.8 + 0.4 * jitter)
        delay_s = min(BACKOFF_MOST_S, delay_s)
        self.barren += 1
        self.not_before_s = now_s + delay_s
        return delay_s

    def clear(self) -> None:
        """Work was completed: the application works."""
        self.barren, self.not_before_s = 0, 0.0


class Policy:
    """MASTER. Turns what is known into what is to be done. `supervise` may be called as often as one likes."""

    def __init__(
        self,
        *,
        workers: int,
        timeout_s: float,
        graceful_timeout_s: float,
        boot_timeout_s: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.workers = workers
        self.generation = 1
        self.stopping = False
        self.booted = False  # all workers have been ready once
        self.backoff = Backoff()
        self._timeout_s = timeout_s
        self._graceful_timeout_s = graceful_timeout_s
        self._boot_timeout_s = boot_timeout_s
        self._jitter = jitter
        self._filled: set[int] = set()  # slots that have had a worker
        self._lenient_until_s = 0.0  # judge nobody before
        self._stopped_s = 0.0
        self._stop_until_s = 0.0  # a stop drains the accept queue no longer

    def ready(self, worker: WorkerHandle, completed: int, now_s: float) -> None:
        """A worker accepts. `completed` is what its generation had completed by now."""
        worker.ready_s, worker.served_at_ready = now_s, completed

    def died(self, worker: WorkerHandle, completed: int, now_s: float) -> float:
        """A worker was reaped; return the delay of its replacement in seconds.

        `completed` is what its generation has completed by now, including the dead.
        """
        if worker.retiring_s is not None or (self.stopping and not worker.pending):
            return 0.0
        if worker.ready_s is not None and completed > worker.served_at_ready:
            self.backoff.clear()
            return 0.0
        if worker.spawned_s <= self.backoff.noted_s:  # of the same round as a death that was counted
            return max(0.0, self.backoff.not_before_s - now_s)
        return self.backoff.note(now_s, self._jitter())

    def fork_refused(self, now_s: float) -> float:
        """fork() failed; return the delay until the next try in seconds."""
        return self.backoff.note(now_s, self._jitter())

    def stop(self, now_s: float) -> None:
        """Retire everybody; spawn nobody, unless the accept queue would be left to no one."""
        self.stopping = True
        self._stopped_s = now_s
        self._stop_until_s = now_s + self._graceful_timeout_s

    def overslept(self, late_s: float, now_s: float) -> bool:
        """Note how late the master woke; True if it was suspended, and hangs are not judged for a moment."""
        if late_s < SUSPENDED_S:
            return False
        self._lenient_until_s = now_s + SUSPENDED_S
        return True

    def supervise(
        self, roster: Roster, units: Mapping[int, Unit], now_s: float, *, queued: bool = False
    ) -> tuple[list[Action], float]:
        """Return what to do now, and the time (monotonic seconds) to ask again if nothing happens before.

        `units` maps the pid of every live worker to its Unit; `queued` says that a stop has connections left to drain.
        """
        actions: list[Action] = []
        wakes = [now_s + self._timeout_s]  # an idle worker may begin a unit this moment
        for worker in roster:
            for check in (self._judge_retiring, self._judge_boot, self._judge_unit):
                action, wake_s = check(worker, units[worker.pid], now_s)
                if action is not None:
                    actions.append(action)
                wakes.append(wake_s)
        if not self.stopping:
            if spawns := self._fill(roster, now_s):
                actions += spawns
                wakes.append(now_s + self._boot_timeout_s)
            if self.backoff.not_before_s > now_s:
                wakes.append(self.backoff.not_before_s)
        elif queued and not roster and self.backoff.not_before_s <= now_s < self._stop_until_s:
            actions.append(Spawn(0, self.generation, respawn=True))  # the workers died, or were told by others to go
        return actions, min(wakes)

    def _judge_retiring(self, worker: WorkerHandle, _unit: Unit, now_s: float) -> tuple[Action | None, float]:
        if worker.killed:
            return None, _NEVER
        if self.stopping and worker.retiring_s is None:
            if worker.pending and worker.spawned_s < self._stopped_s:  # it serves nobody yet
                worker.retiring_s = now_s
                return _kill(worker, "stopped while it booted"), _NEVER
            worker.retiring_s = now_s
            return Retire(worker, "stop"), now_s + self._graceful_timeout_s + GRACE_MARGIN_S
        if worker.retiring_s is None:
            return None, _NEVER
        limit_s = max(worker.retiring_s + self._graceful_timeout_s + GRACE_MARGIN_S, self._lenient_until_s)
        if now_s < limit_s:
            return None, limit_s
        return _kill(worker, f"still busy {now_s - worker.retiring_s:.1f} s after it was told to stop"), _NEVER

    def _judge_boot(self, worker: WorkerHandle, _unit: Unit, now_s: float) -> tuple[Action | None, float]:
        if not worker.pending or worker.killed:
            return None, _NEVER
        limit_s = max(worker.spawned_s + self._boot_timeout_s, self._lenient_until_s)
        if now_s < limit_s:
            return None, limit_s
        return _kill(worker, f"not ready within --boot-timeout {self._boot_timeout_s:g} s"), _NEVER

    def _judge_unit(self, worker: WorkerHandle, unit: Unit, now_s: float) -> tuple[Action | None, float]:
        if worker.killed or worker.pending:
            return None, _NEVER
        if worker.hang is None or worker.hang.since_ns != unit.since_ns:
            worker.hang = None
            if not unit.since_ns:
                return None, _NEVER
            limit_s = max(unit.since_ns / 1e9 + self._timeout_s, self._lenient_until_s)
            if now_s < limit_s:
                return None, limit_s
            worker.hang = Hang(since_ns=unit.since_ns, serving=unit.serving, asked_s=now_s)
            return AskStacks(worker), now_s + STACKS_WAIT_S
        return self._press(worker, worker.hang, now_s)

    def _press(self, worker: WorkerHandle, hang: Hang, now_s: float) -> tuple[Action | None, float]:
        """The worker is hung and has been asked: wait for its answer, ask harder, kill."""
        asked_s = hang.asked_s if hang.fault_s is None else hang.fault_s
        limit_s = max(asked_s + STACKS_WAIT_S, self._lenient_until_s)
        if not hang.answered and now_s < limit_s:
            return None, limit_s
        if not hang.answered and hang.fault_s is None:
            hang.fault_s = now_s
            return AskFault(worker), now_s + STACKS_WAIT_S
        return _kill(worker, f"one unit of work took {now_s - hang.since_ns / 1e9:.1f} s, over --timeout"), _NEVER

    def _fill(self, roster: Roster, now_s: float) -> list[Action]:
        if now_s < self.backoff.not_before_s:
            return []
        spawns: list[Action] = []
        for slot in range(self.workers):
            if not roster.in_slot(slot):
                spawns.append(Spawn(slot, self.generation, respawn=slot in self._filled))
                self._filled.add(slot)
        return spawns


_NEVER = float("inf")


def _kill(worker: WorkerHandle, reason: str) -> Kill:
    worker.killed = reason
    return Kill(worker, reason)
