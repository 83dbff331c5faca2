"""Which worker is late, and what is done about it, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.master.policy import STACKS_WAIT_S, STOPPED, SUSPENDED_S
from prefork.master.roster import AskFault, AskStacks, Kill, Retire, WorkerHandle
from prefork.runtime.orders import GRACE_MARGIN_S
from tests.master.world import BOOT_S, GRACEFUL_S, TIMEOUT_S, World, kinds, started

if TYPE_CHECKING:
    from collections.abc import Callable


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


# --- a process that stands still outside any unit of work


def test_a_process_that_does_not_beat_is_killed_like_a_hung_one() -> None:
    world = started()
    silent = world.slot(0)
    world.beat(silent)
    assert world.look() == []
    assert world.at_wake() == [AskStacks(silent)]
    assert world.at_wake() == [AskFault(silent)]
    assert world.at_wake() == [Kill(silent, "its process did not move for 30.5 s, over --timeout")]
    assert world.later(100) == []


@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_that_answers_and_beats_again_is_let_live(stopped: bool) -> None:
    world = started()
    worker = world.slot(0)
    world.beat(worker, stopped=stopped)
    assert world.later(TIMEOUT_S) == [AskStacks(worker)]
    world.answer(worker)
    assert world.later(2 * STACKS_WAIT_S - 0.01) == []
    world.beat(worker)
    assert world.later(1.0) == []
    assert (worker.hang, worker.killed) == (None, None)


def test_a_loop_that_completes_units_in_a_long_turn_moves() -> None:
    world = started()
    worker = world.slot(0)
    world.beat(worker)
    assert world.later(TIMEOUT_S) == [AskStacks(worker)]
    world.answer(worker)
    world.completed(worker, 7)
    assert world.later(2 * STACKS_WAIT_S) == [AskStacks(worker)]
    world.beat(worker)
    assert world.later(1.0) == []
    assert worker.killed is None


def test_a_process_that_answers_and_does_not_beat_is_killed() -> None:
    world = started()
    worker = world.slot(0)
    world.beat(worker)
    world.later(TIMEOUT_S)
    world.answer(worker)
    assert world.later(STACKS_WAIT_S) == []
    assert world.at_wake() == [Kill(worker, "its process did not move for 30.5 s, over --timeout")]


def test_a_stopped_process_gets_no_signal_that_could_crash_it_when_it_goes_on() -> None:
    world = started()
    worker = world.slot(0)
    world.beat(worker, stopped=True)
    world.later(TIMEOUT_S)
    assert world.later(STACKS_WAIT_S) == []
    assert world.at_wake() == [Kill(worker, f"its process did not move for 30.5 s, over --timeout: {STOPPED}")]


def test_a_retiring_worker_is_judged_while_it_serves() -> None:
    world = started()
    worker = world.slot(0)
    world.policy.stop(world.now_s)
    world.look()
    worker.retiring_s = world.now_s + 1000  # not the graceful timeout
    world.beat(worker)
    assert AskStacks(worker) in world.later(TIMEOUT_S)


def test_a_timeout_of_zero_judges_nobody() -> None:
    world = started(timeout_s=0)
    world.beat(world.slot(0))
    world.begin(world.slot(1))
    assert world.later(1000) == []
    assert world.policy.timeouts.silent(1, 1e9) == (False, float("inf"))


def test_a_process_that_serves_no_clients_has_as_much_time() -> None:
    timeouts = started().policy.timeouts
    beat_ns, limit_s = round(100e9), 100 + TIMEOUT_S + 2 * STACKS_WAIT_S
    assert timeouts.silent(0, 1e9) == (False, float("inf"))
    assert timeouts.silent(beat_ns, limit_s - 0.01) == (False, limit_s)
    assert timeouts.silent(beat_ns, limit_s) == (True, limit_s)
    timeouts.woke_late(50.0, limit_s)
    assert timeouts.silent(beat_ns, limit_s) == (False, limit_s + SUSPENDED_S)


# --- retiring


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


# --- the master itself was suspended


def test_how_late_is_suspended() -> None:
    timeouts = started().policy.timeouts
    assert not timeouts.woke_late(0.5, 2000.0)
    assert timeouts.woke_late(SUSPENDED_S, 2000.0)


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
    assert world.policy.timeouts.woke_late(470.0, world.now_s)
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
    world.policy.timeouts.woke_late(500.0, world.now_s)
    assert world.look() == []
    assert kinds(world.later(SUSPENDED_S)) == ["Kill"]
    assert hung.killed
    assert world.later(1) + world.later(1) == []
