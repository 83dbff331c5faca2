"""What the master decides. Pure: events and a clock go in, actions come out, so every case is tested in microseconds.

Each slot 0..workers-1 holds one worker. An empty slot is filled at once, unless workers die barren (without having
completed a single unit of work since they were ready): then the next spawn waits (Backoff). Until all workers have
been ready once, one that dies before it is ready is a boot failure, and the server halts with one message. Timeouts
finds workers that are late, rollout.py replaces workers (reload, --max-requests, --max-memory, --max-age). A stop
retires everybody; if they are gone before the accept queue is empty, one more worker drains it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prefork.config.config import Config
from prefork.master.rollout import Rollout, settled
from prefork.master.roster import Action, AskFault, AskStacks, Hang, Kill, Retire, Roster, Spawn, Unit, WorkerHandle
from prefork.runtime.orders import GRACE_MARGIN_S

# --- How long to wait before the next spawn, after workers that died without having done any work. Pure.


FIRST_S = 0.25
FACTOR = 1.5
MOST_S = 30.0


@dataclass(slots=True, kw_only=True)
class Backoff:
    """MASTER. Counts barren deaths, one step a round: 0.25 s, x1.5 each, with jitter, at most 30 s."""

    barren: int = 0
    noted_s: float = 0.0
    not_before_s: float = 0.0

    def note(self, now_s: float, jitter: float) -> float:
        """Count a barren death; return the delay in seconds. `jitter` is in 0..1."""
        delay_s = min(MOST_S, FIRST_S * FACTOR ** min(self.barren, 20) * (0.8 + 0.4 * jitter))
        self.barren += 1
        self.noted_s = now_s
        self.not_before_s = now_s + delay_s
        return delay_s

    def wait(self, now_s: float, jitter: float) -> float:
        """Wait for the first delay only: the system refused, and trying again costs it nothing."""
        delay_s = FIRST_S * (0.8 + 0.4 * jitter)
        self.not_before_s = max(self.not_before_s, now_s + delay_s)
        return delay_s

    def clear(self) -> None:
        """Work was completed: spawn without delay again."""
        self.barren = 0
        self.not_before_s = 0.0


# --- Is one worker late, and what is to be done about it? Pure: clocks go in, actions and the next check come out.
#
# - Retiring: it aborts its own connections at the graceful timeout; GRACE_MARGIN_S later it is killed.
# - Booting: ready within the boot timeout, or asked for its stacks as one that hangs, and killed.
# - Working: a unit of work older than the timeout is a hang. Ask for the Python stacks; with no answer in
#   STACKS_WAIT_S ask faulthandler; then kill. A process that has not beaten within the timeout is treated alike, but
#   gets the whole time even if it answers: one that was stopped and beats again goes on. A process that is stopped gets
#   no signal of faulthandler's, which would stay pending, and can crash a process that goes on.
#
# A timeout of 0 judges nobody. After the master itself was suspended, no timeout counts for SUSPENDED_S: the time of
# the workers may have stood still as well.


STACKS_WAIT_S = 0.25
BOOTING_GRACE_S = 0.5  # it may have accepted already, with its `ready` on the way; else it serves nobody
SUSPENDED_S = 1.0
STOPPED = "the process is stopped (SIGSTOP or a debugger)"

_NEVER = float("inf")
_BOOT = -1  # Hang.since_ns of a worker that boots
Verdict = tuple[Action | None, float]  # what to do now, and when to look again (monotonic s)


@dataclass(slots=True, kw_only=True)
class Timeouts:
    """MASTER. The limits, and the moment before which none counts."""

    timeout_s: float  # 0: none
    graceful_timeout_s: float
    boot_timeout_s: float
    grace_until_s: float = 0.0

    @classmethod
    def of(cls, config: Config) -> Timeouts:
        """Make them as they are configured."""
        return cls(
            timeout_s=config.timeout_s,
            graceful_timeout_s=config.graceful_timeout_s,
            boot_timeout_s=config.boot_timeout_s,
        )

    def woke_late(self, late_s: float, now_s: float) -> bool:
        """Note how late the master woke; True if it was suspended."""
        if late_s < SUSPENDED_S:
            return False
        self.grace_until_s = now_s + SUSPENDED_S
        return True

    def silent(self, beat_ns: int, now_s: float) -> tuple[bool, float]:
        """Return whether a process that serves no clients, and beat last at `beat_ns`, is hung; and when to ask again.

        It gets as much time as a worker that was asked for its stacks. `beat_ns` 0: it is not judged.
        """
        if not beat_ns or not self.timeout_s:
            return False, _NEVER
        limit_s = max(beat_ns / 1e9 + self.timeout_s + 2 * STACKS_WAIT_S, self.grace_until_s)
        return now_s >= limit_s, limit_s

    def check(self, worker: WorkerHandle, unit: Unit, now_s: float) -> list[Verdict]:
        """Return what each limit says of the worker."""
        if worker.killed:
            return []
        verdicts = []
        if worker.retiring_s is not None:
            verdicts.append(self._retiring(worker, worker.retiring_s, now_s))
            if isinstance(verdicts[-1][0], Kill):
                return verdicts
        if worker.pending:
            verdicts.append(self._booting(worker, unit, now_s))
        else:
            verdicts.append(self._working(worker, unit, now_s))
        return verdicts

    def _retiring(self, worker: WorkerHandle, since_s: float, now_s: float) -> Verdict:
        limit_s = max(since_s + self.graceful_timeout_s + GRACE_MARGIN_S, self.grace_until_s)
        if now_s < limit_s:
            return None, limit_s
        return kill(worker, f"still busy {now_s - since_s:.1f} s after it was told to stop"), _NEVER

    def _booting(self, worker: WorkerHandle, unit: Unit, now_s: float) -> Verdict:
        if worker.retiring_s is not None:
            limit_s = worker.retiring_s + BOOTING_GRACE_S
            return (None, limit_s) if now_s < limit_s else (kill(worker, "stopped while it booted"), _NEVER)
        limit_s = max(worker.spawned_s + self.boot_timeout_s, self.grace_until_s)
        if now_s < limit_s:
            return None, limit_s
        if worker.hang is not None:
            return self._ask_again(worker, unit, worker.hang, now_s, worker.hang.verdict)
        verdict = f"not ready within --boot-timeout {self.boot_timeout_s:g} s"
        worker.hang = Hang(since_ns=_BOOT, serving="", asked_s=now_s, verdict=verdict)
        return AskStacks(worker), now_s + STACKS_WAIT_S

    def _working(self, worker: WorkerHandle, unit: Unit, now_s: float) -> Verdict:
        if worker.hang is not None and (worker.hang.since_ns, worker.hang.completed) == (unit.since_ns, unit.completed):
            took = f"{now_s - unit.since_ns / 1e9:.1f} s, over --timeout"
            reason = f"its process did not move for {took}" if unit.silent else f"one unit of work took {took}"
            return self._ask_again(worker, unit, worker.hang, now_s, reason)
        worker.hang = None
        if not unit.since_ns or not self.timeout_s:
            return None, _NEVER
        limit_s = max(unit.since_ns / 1e9 + self.timeout_s, self.grace_until_s)
        if now_s < limit_s:
            return None, limit_s
        worker.hang = Hang(since_ns=unit.since_ns, serving=unit.serving, asked_s=now_s, completed=unit.completed)
        return AskStacks(worker), now_s + STACKS_WAIT_S

    def _ask_again(self, worker: WorkerHandle, unit: Unit, hang: Hang, now_s: float, reason: str) -> Verdict:
        """The worker is hung and was asked for its stacks: wait for the answer, ask faulthandler, kill."""
        hang.stopped = hang.stopped or unit.stopped
        if hang.answered and not (unit.silent or hang.stopped):
            return kill(worker, reason), _NEVER
        asks = hang.fault_s is None and not hang.answered and not hang.stopped
        first_s = hang.asked_s + STACKS_WAIT_S
        limit_s = max(first_s if asks else (hang.fault_s or first_s) + STACKS_WAIT_S, self.grace_until_s)
        if now_s < limit_s:
            return None, limit_s
        if asks:
            hang.fault_s = now_s
            return AskFault(worker), now_s + STACKS_WAIT_S
        return kill(worker, f"{reason}: {STOPPED}" if hang.stopped else reason), _NEVER


def kill(worker: WorkerHandle, reason: str) -> Kill:
    """The action, noted on the handle so that it is asked for once."""
    worker.killed = reason
    return Kill(worker, reason)


# --- --max-age: a worker that has served for so long is replaced like any outdated one. Pure.


AGE_SPREAD = 0.1  # how much earlier, of its limit, a worker may be replaced, so that not all are together


@dataclass(slots=True, kw_only=True)
class AgeLimit:
    """MASTER. `limit_s`: 0 is none. It counts from when a worker is ready, so a slow start takes nothing from it."""

    limit_s: float
    jitter: Callable[[], float] = random.random  # in 0..1

    def check(self, roster: Roster, now_s: float) -> float:
        """Mark the workers that are to be replaced; return when to check again (monotonic seconds)."""
        again_s = _NEVER
        for worker in roster if self.limit_s else ():
            if worker.ready_s is None or worker.retiring_s is not None or worker.stale is not None:
                continue
            if not worker.expires_s:
                worker.expires_s = worker.ready_s + self.limit_s * (1 - AGE_SPREAD * self.jitter())
            if now_s >= worker.expires_s:
                worker.stale = "max-age"
            else:
                again_s = min(again_s, worker.expires_s)
        return again_s


class Policy:
    """MASTER. Decides from roster, units of work and clock what to do. `supervise` may be called at any time."""

    def __init__(
        self,
        *,
        workers: int,
        timeouts: Timeouts,
        generation: int = 0,
        max_age_s: float = 0.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.workers = workers
        self.timeouts = timeouts
        self.first = generation + 1  # the generation of the start: after an upgrade the numbers go on
        self.rollout = Rollout(_latest=generation)
        self.backoff = Backoff()
        self.age_limit = AgeLimit(limit_s=max_age_s, jitter=jitter)
        self.stopping = False
        self.at_once = False  # nobody is waited for, and nobody is spawned
        self.stop_at_s = _NEVER  # when the stop is to begin, once it was asked for (--lame-duck)
        self.booted = False  # all workers have been ready once
        self._jitter = jitter
        self._filled: set[int] = set()  # slots that have had a worker
        self._stopped_s = 0.0
        self.rollout.reload()  # the start is the first reload

    # --- what happened

    def ready(self, worker: WorkerHandle, completed: int, now_s: float) -> None:
        """A worker accepts. `completed` is what the others of its generation had completed by now."""
        worker.ready_s = now_s
        worker.served_at_ready = completed

    def died(self, worker: WorkerHandle, completed: int, now_s: float, reason: str = "") -> float:
        """A worker was reaped; return the delay of its replacement in seconds.

        `completed` is what its generation has completed by now, including the dead.
        """
        if worker.retiring_s is not None or (self.stopping and not worker.pending):
            return 0.0
        if worker.pending and self.rollout.died_booting(worker, reason):
            return 0.0
        if worker.ready_s is not None and completed > worker.served_at_ready:
            self.backoff.clear()
            return 0.0
        if worker.spawned_s <= self.backoff.noted_s:  # of the same round as a death that was counted
            return max(0.0, self.backoff.not_before_s - now_s)
        return self.backoff.note(now_s, self._jitter())

    @property
    def ending(self) -> bool:
        """True from when a stop was asked for; until it begins, clients are served as ever."""
        return self.stopping or self.stop_at_s < _NEVER

    def spawn_refused(self, now_s: float) -> float:
        """A worker could not be forked; return the delay until the next try in seconds."""
        return self.backoff.wait(now_s, self._jitter())

    def template_lost(self, generation: int, reason: str, now_s: float) -> float:
        """The template of the generation is gone; return the delay of its successor in seconds, 0 if none is needed."""
        if self.rollout.lost(generation, reason) and not self.stopping:
            return self.backoff.note(now_s, self._jitter())
        return 0.0

    # --- what is wanted

    def scale(self, workers: int) -> None:
        """Want this many workers from now on."""
        self.workers = workers

    def stop(self, now_s: float) -> None:
        """Retire every worker; spawn none, unless connections are left in the accept queue."""
        self.stopping = True
        self._stopped_s = now_s
        self.stop_at_s = _NEVER

    def settled(self, roster: Roster) -> bool:
        """True if as many workers as wanted serve, all of the wanted generation, and no other is alive."""
        return not self.rollout.phase and settled(roster, self.workers, self.rollout.generation)

    # --- what is to be done

    def supervise(
        self, roster: Roster, units: Mapping[int, Unit], now_s: float, *, queued: bool = False
    ) -> tuple[list[Action], float]:
        """Return what to do now, and the time (monotonic seconds) to ask again if nothing happens before.

        `units` maps the pid of every live worker to its Unit; `queued` says that a stop has connections left to drain.
        """
        too_old_s = self.age_limit.check(roster, now_s)
        actions: list[Action] = self._stop(roster, now_s, queued=queued) if self.stopping else self._want(roster, now_s)
        for action in actions:
            if isinstance(action, Retire):
                action.worker.retiring_s = now_s
        wakes = [too_old_s, now_s + (self.timeouts.timeout_s or _NEVER)]  # an idle worker may begin a unit this moment
        if any(isinstance(action, Spawn) for action in actions):
            wakes.append(now_s + self.timeouts.boot_timeout_s)
        if self.backoff.not_before_s > now_s:
            wakes.append(self.backoff.not_before_s)
        if self.rollout.waits_since_s is not None and not self.stopping:
            wakes.append(self.rollout.waits_since_s + self.timeouts.boot_timeout_s)
        for worker in roster:
            for verdict, wake_s in self.timeouts.check(worker, units[worker.pid], now_s):
                if verdict is not None:
                    actions.append(verdict)
                wakes.append(wake_s)
        return actions, min(wakes)

    def _want(self, roster: Roster, now_s: float) -> list[Action]:
        actions: list[Action] = [
            Retire(worker, "scale") for worker in roster if worker.slot >= self.workers and worker.serving
        ]
        if late := self.rollout.overdue(self.timeouts.boot_timeout_s, now_s):
            actions.append(late)
        if now_s < self.backoff.not_before_s:
            return actions
        actions += self.rollout.step(roster, self.workers, now_s)
        return actions + (self._fill(roster) if self.rollout.can_spawn else [])

    def _fill(self, roster: Roster) -> list[Action]:
        spawns: list[Action] = []
        self._filled |= {worker.slot for worker in roster}
        for slot in range(self.workers):
            if not roster.in_slot(slot):
                cause = "respawn" if slot in self._filled else "scale" if self.booted else "start"
                spawns.append(Spawn(slot, self.rollout.generation, cause))
        self._filled.intersection_update(range(self.workers))
        return spawns

    def _stop(self, roster: Roster, now_s: float, *, queued: bool) -> list[Action]:
        actions: list[Action] = [Retire(worker, "stop") for worker in roster if self._serves_on(worker)]
        drain_until_s = self._stopped_s + self.timeouts.graceful_timeout_s
        if queued and not roster and not self.at_once and self.backoff.not_before_s <= now_s < drain_until_s:
            actions.append(Spawn(0, self.rollout.generation, "drain"))  # the workers died, or others told them to go
        return actions

    def _serves_on(self, worker: WorkerHandle) -> bool:
        """True for a worker that the stop has not reached. One that boots to drain the queue goes on."""
        boots_to_drain = worker.pending and worker.spawned_s >= self._stopped_s
        return worker.retiring_s is None and not worker.killed and not boots_to_drain
