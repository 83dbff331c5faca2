"""What the master decides about slots, a stop and scaling; and any history of all that can happen, in random order."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefork.master.roster import Action, AskFault, AskStacks, Kill, Prepare, Reloaded, Retire, Spawn, WorkerHandle
from tests.master.world import GRACEFUL_S, World, finish, kinds, spawns, started
from tests.support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Sequence


# --- slots


def test_at_the_start_every_slot_gets_a_worker() -> None:
    world = World(3)
    assert world.look() == [Prepare(1), *(Spawn(slot, 1, "start") for slot in range(3))]
    assert world.look() == []
    assert not world.policy.settled(world.roster)
    assert world.ready() == [Reloaded(1)]
    assert world.policy.settled(world.roster)
    assert world.look() == []


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


# --- stop


def test_a_stop_tells_everyone_once() -> None:
    world = started(3)
    workers = list(world.roster)
    world.policy.stop(world.now_s)
    assert world.look() == [Retire(worker, "stop") for worker in workers]
    assert world.look() == []
    world.die(workers[0])
    assert world.look() == []


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
        self.world.policy.timeouts.woke_late(70.0, self.world.now_s)
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
