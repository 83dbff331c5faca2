"""What the master decides, with fake pids and a fake clock: events go in, and what is returned is compared as data.

`World` stands for the master and its workers: it asks the policy as the master does, until nothing is left to do, and
carries out what it is told. Every test, and every random history at the end, goes through it.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefork.master.policy import FACTOR, FIRST_S, GRACE_MARGIN_S, MOST_S, STACKS_WAIT_S, SUSPENDED_S, Policy, Timeouts
from prefork.master.roster import (
    Abandoned,
    Action,
    AskFault,
    AskStacks,
    Discard,
    Kill,
    Prepare,
    Reloaded,
    Retire,
    Roster,
    Spawn,
    Unit,
    WorkerHandle,
)
from tests.support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMEOUT_S, GRACEFUL_S, BOOT_S = 30.0, 20.0, 60.0
MOST_ROUNDS = 50  # of asking again because something was to be done


class World:
    """A master with its workers. Time passes only by `later`; `wake_s` is when the policy wants to be asked again."""

    def __init__(self, workers: int = 2, *, preload: bool = False, jitter: Callable[[], float] = lambda: 0.5) -> None:
        timeouts = Timeouts(timeout_s=TIMEOUT_S, graceful_timeout_s=GRACEFUL_S, boot_timeout_s=BOOT_S)
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


# --- slots


def test_at_the_start_every_slot_gets_a_worker() -> None:
    world = World(3)
    assert world.look() == [Prepare(1), *(Spawn(slot, 1, "start") for slot in range(3))]
    assert world.look() == []
    assert not world.policy.settled(world.roster)
    assert world.ready() == [Reloaded(1)]
    assert world.policy.settled(world.roster)
    assert world.look() == []


def test_a_dead_worker_that_had_worked_is_replaced_at_once() -> None:
    world = started()
    assert world.die(world.slot(1), served=1) == [0.0]
    assert world.look() == [Spawn(1, 1, "respawn")]
    assert not world.policy.settled(world.roster)
    assert world.ready() == []
    assert world.policy.settled(world.roster)


def test_work_of_any_worker_of_the_generation_counts() -> None:
    world = started()
    world.end(world.slot(0))
    assert world.die(world.slot(1)) == [0.0]


def test_work_from_before_a_worker_was_ready_does_not_count() -> None:
    world = started()
    world.die(world.slot(1), served=1000)
    world.look()
    world.ready()
    (delay_s,) = world.die(world.slot(1))
    assert delay_s > 0


def test_a_worker_that_dies_the_moment_it_was_ready_does_not_undo_the_start() -> None:
    """Both were read in one turn, so the policy never saw the start complete."""
    world = World(1)
    world.look()
    first = world.slot(0)
    world.policy.ready(first, 0, world.now_s)
    world.policy.booted = True
    world.die(first)
    for _ in range(3):
        world.look()
        assert spawns(world.at_wake()) == [Spawn(0, 1, "respawn")]
        world.later(0.1)
        world.die(world.slot(0))


# --- barren deaths


def barren_round(world: World) -> float:
    """Slot 0's worker gets ready and dies without having worked; return the delay, and wait for the next."""
    (delay_s,) = world.die(world.slot(0))
    assert spawns(world.look()) == []
    world.now_s += delay_s * 0.99
    assert spawns(world.look()) == []
    assert world.wake_s == pytest.approx(world.now_s + delay_s * 0.01)
    assert spawns(world.at_wake()) == [Spawn(0, 1, "respawn")]
    world.later(0.1)
    world.ready()
    return delay_s


def test_barren_deaths_delay_the_next_spawn_ever_longer() -> None:
    world = started()
    delays = [barren_round(world) for _ in range(20)]
    expected = [min(MOST_S, FIRST_S * FACTOR**number) for number in range(20)]
    assert (FIRST_S, FACTOR, MOST_S) == (0.25, 1.5, 30.0)
    assert delays == pytest.approx(expected)
    world.end(world.slot(1))
    assert world.die(world.slot(0)) == [0.0]  # work clears the count
    world.look()
    world.ready()
    assert barren_round(world) == pytest.approx(0.25)


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_jitter_is_a_fifth_and_the_ceiling_holds(jitter: float) -> None:
    world = started(jitter=lambda: jitter)
    delays = [barren_round(world) for _ in range(20)]
    assert delays[0] == pytest.approx(0.25 * (0.8 + 0.4 * jitter))
    assert max(delays) <= MOST_S
    assert min(delays[15:]) >= 0.8 * MOST_S


def test_a_crash_loop_may_last_for_weeks() -> None:
    world = started()
    assert [barren_round(world) for _ in range(3000)][-1] == pytest.approx(MOST_S)


def test_workers_that_die_together_are_one_step() -> None:
    world = started(12)
    world.later(5)
    delays = world.die(*world.roster)
    assert delays == pytest.approx([0.25] * 12)
    world.look()
    assert len(spawns(world.at_wake())) == 12


def test_a_later_death_of_the_same_round_waits_no_longer() -> None:
    world = started(2)
    world.later(5)
    world.die(world.slot(0))
    world.now_s += 0.1
    assert world.die(world.slot(1)) == [pytest.approx(0.15)]


def test_a_refused_fork_is_tried_again_at_an_even_pace() -> None:
    world = started()
    world.refuse = True
    world.die(world.slot(0), served=1)
    waits = []
    for _ in range(4):
        assert spawns(world.look()) == [Spawn(0, 1, "respawn")]
        waits.append(world.wake_s - world.now_s)
        world.now_s = world.wake_s
    assert waits == pytest.approx([0.25] * 4)
    world.refuse = False
    assert spawns(world.look()) == [Spawn(0, 1, "respawn")]


# --- booting


def test_a_worker_that_does_not_get_ready_is_killed_once() -> None:
    world = started()
    world.die(world.slot(0), served=1)
    world.look()
    slow = world.slot(0)
    assert world.later(BOOT_S - 0.5) == []
    assert world.wake_s == slow.spawned_s + BOOT_S
    assert world.at_wake() == [AskStacks(slow)]
    assert world.at_wake() == [AskFault(slow)]
    assert world.at_wake() == [Kill(slow, "not ready within --boot-timeout 60 s")]
    assert slow.killed == "not ready within --boot-timeout 60 s"
    assert world.later(100) == []


def test_a_worker_that_gets_ready_in_the_last_moment_is_let_live() -> None:
    world = started()
    world.die(world.slot(0), served=1)
    world.look()
    slow = world.slot(0)
    assert world.later(BOOT_S) == [AskStacks(slow)]
    world.ready(slow)
    assert world.later(100) == []
    assert (slow.killed, slow.hang) == (None, None)


def test_a_worker_that_boots_is_not_judged_by_its_rows() -> None:
    world = World(1)
    world.look()
    world.begin(world.slot(0))
    assert world.later(TIMEOUT_S * 1.5) == []


# --- hangs


def test_the_ladder_of_a_hung_worker_that_does_not_answer() -> None:
    world = started()
    hung = world.slot(1)
    world.begin(hung)
    began_s = world.now_s
    assert world.look() == []
    assert world.wake_s == began_s + TIMEOUT_S
    assert world.at_wake() == [AskStacks(hung)]
    assert world.later(STACKS_WAIT_S / 2) == []
    assert world.at_wake() == [AskFault(hung)]
    assert world.later(STACKS_WAIT_S / 2) == []
    assert world.at_wake() == [Kill(hung, "one unit of work took 30.5 s, over --timeout")]
    assert world.now_s == pytest.approx(began_s + TIMEOUT_S + 0.5)
    assert world.later(100) == []
    assert world.die(hung, served=0) != []


def test_a_worker_that_answers_is_killed_without_the_second_question() -> None:
    world = started()
    hung = world.slot(0)
    world.begin(hung, peer="10.0.0.1:40312")
    world.later(TIMEOUT_S)
    assert hung.hang is not None
    assert hung.hang.serving == "10.0.0.1:40312"
    world.answer(hung)
    assert world.look() == [Kill(hung, "one unit of work took 30.0 s, over --timeout")]


def test_an_idle_worker_is_never_late() -> None:
    world = started()
    for _ in range(10):
        assert world.later(1000) == []
        assert world.wake_s <= world.now_s + TIMEOUT_S  # it may begin a unit this moment


def test_a_unit_that_ends_in_time_is_forgotten_even_after_the_question() -> None:
    world = started()
    worker = world.slot(0)
    world.begin(worker)
    world.later(TIMEOUT_S)
    world.end(worker)
    assert world.later(10) == []
    assert worker.hang is None
    world.begin(worker)
    assert world.later(TIMEOUT_S - 0.1) == []
    assert world.later(0.2) == [AskStacks(worker)]


def test_the_next_unit_is_judged_by_its_own_time() -> None:
    world = started()
    worker = world.slot(0)
    world.begin(worker)
    world.later(TIMEOUT_S)
    world.end(worker)
    world.begin(worker)
    assert world.look() == []
    assert world.wake_s == pytest.approx(world.now_s + TIMEOUT_S)


@given(
    looks=st.lists(st.floats(0.001, 3.0), max_size=10),
    answer_after=st.none() | st.integers(0, 10),
)
def test_a_hang_always_ends_in_exactly_one_kill(looks: list[float], answer_after: int | None) -> None:
    """However often one looks, and whenever the answer comes."""
    world = started()
    hung = world.slot(0)
    world.begin(hung)
    actions = world.later(TIMEOUT_S)
    asked_s = world.now_s
    for number, wait_s in enumerate([*looks, 1.0, 1.0, 1.0]):
        if number == answer_after and not hung.killed:
            world.answer(hung)
        new = world.later(wait_s)
        if AskFault(hung) in new:
            assert world.now_s >= asked_s + STACKS_WAIT_S
        actions += new
    assert kinds(actions) in (["AskStacks", "Kill"], ["AskStacks", "AskFault", "Kill"])
    if answer_after == 0:
        assert "AskFault" not in kinds(actions)


# --- the master itself was suspended


def test_how_late_is_suspended() -> None:
    timeouts = started().policy.timeouts
    assert not timeouts.overslept(0.5, 2000.0)
    assert timeouts.overslept(SUSPENDED_S, 2000.0)


def slow_boot(world: World) -> WorkerHandle:
    world.die(world.slot(0), served=1)
    world.look()
    return world.slot(0)


def slow_unit(world: World) -> WorkerHandle:
    world.begin(world.slot(0))
    return world.slot(0)


def slow_answer(world: World) -> WorkerHandle:
    world.begin(world.slot(0))
    world.later(TIMEOUT_S)
    return world.slot(0)


def slow_stop(world: World) -> WorkerHandle:
    worker = world.slot(0)
    world.policy.stop(world.now_s)
    world.look()
    return worker


@pytest.mark.parametrize("slow", [slow_boot, slow_unit, slow_answer, slow_stop])
def test_after_it_was_suspended_nobody_is_judged_for_a_second(slow: Callable[[World], WorkerHandle]) -> None:
    world = started()
    worker = slow(world)
    world.now_s += 500
    assert world.policy.timeouts.overslept(470.0, world.now_s)
    assert [action for action in world.look() if getattr(action, "worker", None) is worker] == []
    assert world.wake_s <= world.now_s + SUSPENDED_S
    assert [action for action in world.later(SUSPENDED_S) if getattr(action, "worker", None) is worker]


def test_two_clocks_that_run_out_together_kill_once() -> None:
    """A worker that hangs while it retires, after the master was suspended."""
    world = started(1)
    hung = slow_answer(world)
    world.policy.stop(world.now_s)
    world.look()
    world.now_s += 500
    world.policy.timeouts.overslept(500.0, world.now_s)
    assert world.look() == []
    assert kinds(world.later(SUSPENDED_S)) == ["Kill"]
    assert hung.killed
    assert world.later(1) + world.later(1) == []


# --- stop


def test_a_stop_tells_everyone_once() -> None:
    world = started(3)
    workers = list(world.roster)
    world.policy.stop(world.now_s)
    assert world.look() == [Retire(worker, "stop") for worker in workers]
    assert world.look() == []
    world.die(workers[0])
    assert world.look() == []


def test_who_is_left_after_the_graceful_timeout_is_killed() -> None:
    world = started()
    stays, leaves = world.slot(0), world.slot(1)
    world.policy.stop(world.now_s)
    world.look()
    world.die(leaves)
    assert world.later(1) == []
    assert world.wake_s == pytest.approx(world.now_s - 1 + GRACEFUL_S + GRACE_MARGIN_S)
    assert world.at_wake() == [Kill(stays, "still busy 21.0 s after it was told to stop")]
    assert world.later(100) == []


def test_a_worker_that_boots_is_told_by_a_stop_and_killed_once() -> None:
    world = started()
    world.die(world.slot(0), served=1)
    world.look()
    boots, serves = world.slot(0), world.slot(1)
    world.now_s += 1
    world.policy.stop(world.now_s)
    assert sorted(world.look(), key=repr) == sorted([Retire(boots, "stop"), Retire(serves, "stop")], key=repr)
    assert world.later(0.4) == []  # it may serve already, with its `ready` on the way
    assert world.later(0.2) == [Kill(boots, "stopped while it booted")]
    for _ in range(3):
        assert world.later(0.1) == []


def test_a_queue_that_nobody_is_left_to_drain_gets_a_worker() -> None:
    """The workers were told by others to go, or died."""
    world = started()
    world.policy.stop(world.now_s)
    world.look()
    world.queued = True
    world.die(next(iter(world.roster)))
    assert world.look() == []  # one is left, and drains
    world.die(*world.roster)
    assert world.look() == [Spawn(0, 1, "drain")]
    drains = world.slot(0)
    assert world.look() == []
    assert world.ready() == [Retire(drains, "stop")]
    world.queued = False
    world.die(drains, served=3)
    assert world.look() == []


def test_a_drain_ends_with_the_graceful_timeout() -> None:
    world = started()
    world.policy.stop(world.now_s)
    world.look()
    world.queued = True
    world.die(*world.roster)
    assert world.later(GRACEFUL_S) == []


def test_a_worker_that_cannot_drain_is_not_forked_in_a_loop() -> None:
    world = started(1)
    world.policy.stop(world.now_s)
    world.look()
    world.queued = True
    world.die(*world.roster)
    count, until_s = 0, world.now_s + GRACEFUL_S
    while world.now_s < until_s and count < 1000:
        if spawns(world.look()):
            count += 1
            world.now_s += 0.01
            world.die(world.slot(0))
        else:
            world.now_s = world.wake_s
    assert count < 20


# --- scaling


def test_scaling_up_and_down() -> None:
    world = started(2)
    world.policy.scale(4)
    assert world.look() == [Spawn(2, 1, "scale"), Spawn(3, 1, "scale")]
    assert world.ready() == []
    last = [world.slot(3), world.slot(2), world.slot(1)]
    world.policy.scale(1)
    assert sorted(world.look(), key=repr) == sorted((Retire(worker, "scale") for worker in last), key=repr)
    assert not world.policy.settled(world.roster)
    assert world.retired() == []
    assert world.policy.settled(world.roster)
    world.policy.scale(0)
    assert kinds(world.look()) == ["Retire"]
    world.retired()
    assert world.policy.settled(world.roster)


def test_a_slot_that_is_wanted_again_is_filled_while_its_last_worker_leaves() -> None:
    world = started(2)
    world.policy.scale(1)
    world.look()
    world.policy.scale(2)
    assert [(spawn.slot, spawn.generation) for spawn in spawns(world.look())] == [(1, 1)]


def test_a_worker_that_boots_in_a_slot_no_longer_wanted_leaves_once_it_is_ready() -> None:
    world = started(1)
    world.policy.scale(2)
    world.look()
    late = world.slot(1)
    world.policy.scale(1)
    assert world.look() == []
    assert world.ready() == [Retire(late, "scale")]


# --- reload


def test_a_reload_replaces_one_worker_after_the_other() -> None:
    world = started(2)
    old = [world.slot(0), world.slot(1)]
    assert not world.policy.rollout.replaces
    world.policy.rollout.reload()
    assert world.look() == [Prepare(2), Spawn(0, 2, "reload")]
    assert world.policy.rollout.replaces
    assert world.ready() == [Retire(old[0], "reload")]
    assert world.look() == []  # the next begins when the last has exited
    assert world.retired() == [Spawn(1, 2, "reload")]
    assert world.ready() == [Retire(old[1], "reload")]
    assert world.retired() == [Reloaded(2)]
    assert not world.policy.rollout.replaces
    assert world.generations() == [(0, 2), (1, 2)]
    assert world.policy.settled(world.roster)
    assert world.look() == []


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


def test_two_reloads_during_a_reload_are_one_more() -> None:
    world = started(2)
    for _ in range(4):
        world.policy.rollout.reload()
    done = finish(world)
    assert [action for action in done if isinstance(action, Reloaded)] == [Reloaded(2), Reloaded(3)]
    assert world.generations() == [(0, 3), (1, 3)]


def abandoned(world: World, reason: str = "exit code 1") -> list[Action]:
    """The first worker of a reload dies while it boots."""
    (boots,) = (worker for worker in world.roster if worker.pending)
    world.later(0.1)
    assert world.die(boots, reason=reason) == [0.0]
    return world.look()


def test_a_reload_whose_worker_does_not_get_ready_is_abandoned() -> None:
    world = started(2)
    world.policy.rollout.reload()
    world.look()
    assert abandoned(world) == [Abandoned(2, "exit code 1")]
    assert world.generations() == [(0, 1), (1, 1)]
    assert world.policy.settled(world.roster)
    world.die(world.slot(0), served=1)
    assert spawns(world.look()) == [Spawn(0, 1, "respawn")]  # the old generation stays


def test_the_reload_after_an_abandoned_one_gets_a_number_of_its_own() -> None:
    world = started(2)
    world.policy.rollout.reload()
    world.look()
    abandoned(world)
    world.policy.rollout.reload()
    done = finish(world)
    assert prepares(done) == [3]
    assert done[-1] == Reloaded(3)


def test_a_reload_that_was_asked_for_during_an_abandoned_one_follows_it_once() -> None:
    """It may be the repaired version."""
    world = started(2)
    world.policy.rollout.reload()
    world.look()
    world.policy.rollout.reload()
    done = abandoned(world) + finish(world)
    assert [kind for kind in kinds(done) if kind in ("Abandoned", "Reloaded")] == ["Abandoned", "Reloaded"]
    assert world.generations() == [(0, 3), (1, 3)]


def test_a_worker_that_dies_during_a_reload_comes_back_in_the_new_generation() -> None:
    world = started(3)
    world.policy.rollout.reload()
    world.look()
    world.die(world.slot(2), served=1)
    assert spawns(world.look()) == [Spawn(2, 2, "respawn")]
    finish(world)
    assert world.generations() == [(0, 2), (1, 2), (2, 2)]


# --- recycling


def test_a_stale_worker_is_replaced_without_a_gap() -> None:
    world = started(2)
    stale = world.slot(1)
    stale.stale = "max-requests"
    assert world.look() == [Spawn(1, 1, "recycle")]
    assert world.ready() == [Retire(stale, "max-requests")]
    assert world.retired() == []
    assert world.policy.settled(world.roster)


def test_stale_workers_are_replaced_one_after_the_other() -> None:
    world = started(4)
    for worker in world.roster:
        worker.stale = "max-memory"
    new = world.look()
    for _round in range(4):
        assert len(spawns(new)) == 1
        assert kinds(world.ready()) == ["Retire"]
        assert len(world.roster) == 5
        new = world.retired()
    assert new == []
    assert world.policy.settled(world.roster)


def test_a_worker_that_gets_stale_while_another_is_replaced_waits_its_turn() -> None:
    """Both are told in the same moment: the successor of one is ready, and the other has had enough."""
    world = started(2)
    world.die(world.slot(0), served=1)
    world.look()
    world.ready()  # so that slot 1's worker is the older one
    world.slot(0).stale = "max-requests"
    world.look()
    (successor,) = (worker for worker in world.roster if worker.pending)
    next(worker for worker in world.roster if worker.slot == 1).stale = "max-requests"
    world.ready(successor)
    assert len(world.roster) == 3  # never more than one extra


# --- preparing, as with --preload


def test_nobody_is_forked_before_the_generation_is_prepared() -> None:
    world = World(2, preload=True)
    assert world.look() == [Prepare(1)]
    assert world.look() == []
    world.policy.rollout.prepared(1)
    assert spawns(world.look()) == [Spawn(0, 1, "start"), Spawn(1, 1, "start")]


def test_preparing_for_too_long_is_ended_and_abandoned() -> None:
    world = started(2, preload=True)
    world.policy.rollout.reload()
    assert world.look() == [Prepare(2)]
    assert world.wake_s <= world.now_s + BOOT_S
    assert world.later(BOOT_S) == [Discard(2, "not prepared within --boot-timeout 60 s")]
    world.policy.origin_lost(2, "killed", world.now_s)
    assert world.look() == [Abandoned(2, "killed")]
    assert world.policy.settled(world.roster)


def test_a_stop_while_a_generation_is_prepared_does_not_spin() -> None:
    world = started(2, preload=True)
    world.policy.rollout.reload()
    world.look()
    world.now_s += BOOT_S - 1
    world.policy.stop(world.now_s)
    world.look()
    world.later(5)  # past the boot timeout; `look` sees to it that the next wake is in the future


def test_a_template_that_dies_is_prepared_again_after_a_delay() -> None:
    world = started(2, preload=True)
    delay_s = world.policy.origin_lost(1, "SIGKILL", world.now_s)
    assert delay_s == pytest.approx(0.25)
    assert world.look() == []
    assert world.at_wake() == [Prepare(1)]


def test_the_loss_of_the_old_template_does_not_prepare_the_new_one_twice() -> None:
    world = started(2, preload=True)
    world.policy.rollout.reload()
    assert prepares(world.look()) == [2]
    world.policy.origin_lost(1, "SIGKILL", world.now_s)
    assert 2 not in prepares(world.look() + world.later(1))


def test_a_reload_does_not_wait_for_the_old_template() -> None:
    world = started(2, preload=True)
    world.policy.origin_lost(1, "SIGKILL", world.now_s)
    world.look()
    assert world.at_wake() == [Prepare(1)]
    world.policy.rollout.reload()
    asked = prepares(world.look())
    world.policy.rollout.prepared(1)
    assert prepares([*world.look(), *world.later(1)]) + asked == [2]
    world.policy.rollout.prepared(2)
    assert spawns(world.look()) == [Spawn(0, 2, "reload")]


# --- any history


class History(RuleBasedStateMachine):
    """Random events in a random order. After each, the master looks; what it was told must always make sense."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2)
        self.killed: list[int] = []
        self.reloads_only = True  # nobody has scaled yet

    @initialize(workers=st.integers(1, 4), seed=st.integers(0, 9))
    def begin(self, workers: int, seed: int) -> None:
        self.world = World(workers, jitter=random.Random(seed).random)
        self.judge(self.world.look())
        self.judge(self.world.ready())

    def judge(self, actions: Sequence[Action]) -> None:
        policy = self.world.policy
        for action in actions:
            if isinstance(action, Spawn):
                assert not policy.stopping or action.cause == "drain"
            if isinstance(action, Retire) and action.reason not in ("stop", "scale"):
                assert any(mate.serving for mate in self.world.roster.in_slot(action.worker.slot))  # no gap
            if isinstance(action, Kill | AskStacks | AskFault):
                assert action.worker.pid not in self.killed
            if isinstance(action, Kill):
                self.killed.append(action.worker.pid)

    def pick(self, index: int) -> WorkerHandle:
        workers = list(self.world.roster)
        return workers[index % len(workers)]

    def anybody(self) -> bool:
        return len(self.world.roster) > 0

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 10.0, 31.0, 61.0]), look=st.booleans())
    def time_passes(self, seconds: float, look: bool) -> None:
        self.world.now_s += seconds
        if look:
            self.judge(self.world.look())

    @rule()
    def the_deadline_comes(self) -> None:
        self.judge(self.world.look())
        self.judge(self.world.at_wake())

    @rule(index=st.integers(0, 9), look=st.booleans())
    @precondition(lambda self: any(worker.pending and not worker.killed for worker in self.world.roster))
    def one_gets_ready(self, index: int, look: bool) -> None:
        boots = [worker for worker in self.world.roster if worker.pending and not worker.killed]
        worker = boots[index % len(boots)]
        self.world.policy.ready(worker, 0, self.world.now_s)
        if look:
            self.judge(self.world.look())

    @rule(index=st.integers(0, 9), served=st.integers(0, 1), look=st.booleans())
    @precondition(anybody)
    def one_dies(self, index: int, served: int, look: bool) -> None:
        worker = self.pick(index)
        (delay_s,) = self.world.die(worker, served=served)
        assert delay_s >= 0
        if look:
            self.judge(self.world.look())

    @rule(index=st.integers(0, 9))
    @precondition(anybody)
    def one_takes_up_work(self, index: int) -> None:
        self.world.begin(self.pick(index))
        self.judge(self.world.look())

    @rule(index=st.integers(0, 9))
    @precondition(anybody)
    def one_completes_its_work(self, index: int) -> None:
        self.world.end(self.pick(index))

    @rule(index=st.integers(0, 9))
    @precondition(anybody)
    def one_answers(self, index: int) -> None:
        if self.pick(index).hang is not None:
            self.world.answer(self.pick(index))

    @rule(index=st.integers(0, 9), look=st.booleans())
    @precondition(anybody)
    def one_gets_stale(self, index: int, look: bool) -> None:
        if not self.pick(index).pending:
            self.pick(index).stale = "max-requests"
        if look:
            self.judge(self.world.look())

    @rule()
    @precondition(lambda self: not self.world.policy.stopping)
    def a_reload_is_asked_for(self) -> None:
        self.world.policy.rollout.reload()

    @rule(workers=st.integers(0, 5))
    @precondition(lambda self: not self.world.policy.stopping)
    def another_number_is_asked_for(self, workers: int) -> None:
        self.reloads_only = False
        self.world.policy.scale(workers)

    @rule()
    def the_master_is_suspended(self) -> None:
        self.world.now_s += 100
        self.world.policy.timeouts.overslept(70.0, self.world.now_s)
        self.judge(self.world.look())

    @rule()
    def forks_are_refused_for_a_while(self) -> None:
        self.world.refuse = True
        self.judge(self.world.look())
        self.world.refuse = False

    @rule(queued=st.booleans())
    @precondition(lambda self: not self.world.policy.stopping)
    def it_stops(self, queued: bool) -> None:
        self.world.policy.stop(self.world.now_s)
        self.world.queued = queued
        self.judge(self.world.look())

    @invariant()
    def a_slot_has_one_worker_and_at_most_one_successor(self) -> None:
        for slot in range(9):
            workers = self.world.roster.in_slot(slot)
            current = [worker for worker in workers if not self.world.policy.rollout.outdated(worker)]
            assert len(workers) <= 2
            assert len(current) <= 1 or self.world.policy.rollout.phase != "rolling"

    @invariant()
    def there_is_at_most_one_extra(self) -> None:
        if self.reloads_only:
            staying = [worker for worker in self.world.roster if worker.retiring_s is None]
            assert len(staying) <= self.world.policy.workers + 1

    def teardown(self) -> None:
        """From here on all goes well: then what was wanted comes about."""
        world = self.world
        if world.policy.stopping:
            world.queued = False
            world.look()
            world.die(*world.roster)
            assert spawns(world.look()) == []
            return
        for worker in world.roster:
            world.end(worker)
        finish(world)
        assert world.policy.settled(world.roster), world.generations()


History.TestCase.settings = settings(
    examples(100),
    stateful_step_count=30,
    report_multiple_bugs=False,
)
TestAnyHistory = History.TestCase
