"""How workers are replaced by others, and how a generation is prepared."""

from __future__ import annotations

import pytest

from prefork.master.roster import Abandoned, Action, Discard, Prepare, Reloaded, Retire, Spawn
from tests.master.world import BOOT_S, World, finish, kinds, prepares, spawns, started

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
    world.policy.template_lost(2, "killed", world.now_s)
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
    delay_s = world.policy.template_lost(1, "SIGKILL", world.now_s)
    assert delay_s == pytest.approx(0.25)
    assert world.look() == []
    assert world.at_wake() == [Prepare(1)]


def test_the_loss_of_the_old_template_does_not_prepare_the_new_one_twice() -> None:
    world = started(2, preload=True)
    world.policy.rollout.reload()
    assert prepares(world.look()) == [2]
    world.policy.template_lost(1, "SIGKILL", world.now_s)
    assert 2 not in prepares(world.look() + world.later(1))


def test_a_reload_does_not_wait_for_the_old_template() -> None:
    world = started(2, preload=True)
    world.policy.template_lost(1, "SIGKILL", world.now_s)
    world.look()
    assert world.at_wake() == [Prepare(1)]
    world.policy.rollout.reload()
    asked = prepares(world.look())
    world.policy.rollout.prepared(1)
    assert prepares([*world.look(), *world.later(1)]) + asked == [2]
    world.policy.rollout.prepared(2)
    assert spawns(world.look()) == [Spawn(0, 2, "reload")]
