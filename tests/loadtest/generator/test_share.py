"""How users of the fast engine divide connections, rate and turns among themselves, without asking each other."""

from __future__ import annotations

from argparse import Namespace
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from loadtest.generator.account import Share, note, shares


@given(whole=st.integers(0, 10_000), users=st.integers(1, 40))
def test_the_shares_of_a_number_add_up_to_it_and_are_alike(whole: int, users: int) -> None:
    parts = [Share(index=index, of=users).part(whole) for index in range(users)]
    assert sum(parts) == whole
    assert max(parts) - min(parts) <= 1


@given(
    now_s=st.floats(0, 10**8),  # three years of uptime
    apart_s=st.lists(st.floats(0, 3), min_size=1, max_size=8),
    rate_per_s=st.floats(0.1, 100_000),
)
def test_users_that_begin_at_different_times_take_turns_at_the_rate(
    now_s: float, apart_s: list[float], rate_per_s: float
) -> None:
    users, gap_ns = len(apart_s), 1e9 / rate_per_s
    for index, later_s in enumerate(apart_s):
        began_ns = round((now_s + later_s) * 1e9)
        first_ns = Share(index=index, of=users).first_ns(began_ns, rate_per_s)
        assert -0.05 * gap_ns - 1 <= first_ns - began_ns <= (users + 0.05) * gap_ns + 1
        turn = (first_ns / gap_ns - index) / users  # a whole number: every turn is this user's own
        assert users * abs(turn - round(turn)) < 0.05


def test_the_workers_number_their_users_without_a_gap() -> None:
    options = Namespace()
    note(options, users=7, workers=["b", "a", "c"])
    users = [next(shares(options, worker)) for worker in ("b", "a", "c")]
    assert [share.index for share in users] == [0, 1, 2]
    assert [share.index for share in islice(shares(options, "b"), 3)] == [0, 3, 6]
    assert [share.index for share in islice(shares(options, "came late"), 3)] == [0, 3, 6]
    note(options, users=2, workers=[])  # without a master
    assert [share.index for share in islice(shares(options, "local"), 3)] == [0, 1, 0]
