"""How long the next spawn waits after workers that died."""

from __future__ import annotations

import pytest

from prefork.master.policy import FACTOR, FIRST_S, MOST_S
from prefork.master.roster import Spawn
from tests.master.world import World, spawns, started


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
