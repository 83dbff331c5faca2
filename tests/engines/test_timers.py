"""Deadlines of many: due exactly when they are, however they moved meanwhile, and forgotten ones hold nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prefork.engines.timers import NEVER, Deadlines

MS = 1_000_000


class Thing:
    """Something with a deadline."""

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None


def move(deadlines: Deadlines[Thing], thing: Thing, deadline_ns: int) -> None:
    """As the engines do: a later deadline needs no call."""
    thing.deadline_ns = deadline_ns
    if deadline_ns < thing.watched_ns:
        deadlines.watch(thing)


def test_who_is_late_comes_up_once_and_nobody_else() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    early, late = Thing(10), Thing(20)
    for thing in (late, early):
        deadlines.watch(thing)
    assert deadlines.next_ns() == 10
    assert deadlines.due(9) == []
    assert deadlines.due(10) == [early]
    assert deadlines.due(19) == []
    assert deadlines.due(1000) == [late]
    assert deadlines.next_ns() == NEVER


def test_a_deadline_that_moved_later_is_looked_at_and_kept() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    thing = Thing(10)
    deadlines.watch(thing)
    move(deadlines, thing, 30)
    assert deadlines.due(10) == []
    assert deadlines.next_ns() == 30
    move(deadlines, thing, 20)
    assert deadlines.due(20) == [thing]


def test_the_forgotten_are_let_go_at_once_and_cleared_away() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    things = [Thing(1000 + number) for number in range(500)]
    for thing in things:
        deadlines.watch(thing)
    kept = things[::100]
    gone = weakref.WeakSet(things[1:2])
    for thing in things:
        if thing not in kept:
            deadlines.forget(thing)
    del thing, things
    gc.collect()
    assert not gone
    assert len(deadlines._heap) < 50
    assert deadlines.due(5000) == kept


def test_one_look_that_comes_too_early_settles_those_that_follow_soon() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    things = [Thing(MS * number) for number in range(1, 3001)]  # ten seconds of keep-alive moved all of them later
    for thing in things:
        deadlines.watch(thing)
        move(deadlines, thing, thing.deadline_ns + 10_000 * MS)
    looks = 0
    while (now_ns := deadlines.next_ns()) < 10_000 * MS:
        assert deadlines.due(now_ns) == []
        looks += 1
    assert looks <= 3
    assert [deadlines.due(thing.deadline_ns) for thing in things] == [[thing] for thing in things]


def test_a_deadline_that_holds_is_not_passed_over_by_one_that_moved() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    moved, holds, last = Thing(1), Thing(2), Thing(3)
    for thing in (moved, holds, last):
        deadlines.watch(thing)
    move(deadlines, moved, 50)
    move(deadlines, last, 40)
    assert deadlines.due(1) == []
    assert deadlines.next_ns() == 2
    assert deadlines.due(2) == [holds]
    assert deadlines.due(45) == [last]
    assert deadlines.due(50) == [moved]


@given(
    st.sampled_from([1, 30 * MS]),  # of steps that are soon, and of some that are not
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["move", "forget", "due"]), st.integers(0, 50)), max_size=60),
)
def test_like_a_plain_list(unit_ns: int, steps: list[tuple[int, str, int]]) -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    things = [Thing(NEVER) for _ in range(5)]
    now_ns = 0
    for number, step, units in steps:
        thing, amount = things[number], units * unit_ns
        if step == "move":
            move(deadlines, thing, now_ns + 1 + amount)
        elif step == "forget":
            deadlines.forget(thing)
        else:
            now_ns += amount
            expected = {id(each) for each in things if each.deadline_ns <= now_ns}
            found = deadlines.due(now_ns)
            assert {id(each) for each in found} == expected
            assert len(found) == len(expected)
            for each in found:
                each.deadline_ns = NEVER
