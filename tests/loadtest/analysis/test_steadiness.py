from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from loadtest.analysis.compare import compare
from loadtest.analysis.steadiness import unsteady
from loadtest.data.records import Arrivals, Second
from loadtest.plan.plan import Load, Plan, Server
from prefork.status.histogram import Histogram
from tests.loadtest.records import client, measured

if TYPE_CHECKING:
    from loadtest.data.records import Round

CLIENT = client()
MS = 1_000_000


def round_of(p50_ms: list[float], rates: list[float] | None = None, *, cycle: int = 0, last_s: float = 1.0) -> Round:
    """A round whose seconds had these medians; the rate is what 16 clients do."""
    rates = rates or [16_000 / p50 for p50 in p50_ms]
    seconds = tuple(
        Second(
            t_s=t,
            span_s=1.0 if t < len(p50_ms) - 1 else last_s,
            ended=round(rate),
            completed=round(rate),
            failed=0,
            p50_ns=round(p50 * MS),
            p99_ns=None,
        )
        for t, (p50, rate) in enumerate(zip(p50_ms, rates, strict=True))
    )
    return replace(measured("one", cycle), client=replace(CLIENT, seconds=seconds, raw={**CLIENT.raw, "warmup_s": 1.0}))


def said(*rounds: Round) -> list[str]:
    return list(unsteady(rounds))


LEAK = [25.8, 37.0, 48.0, 58.0, 67.8]
COLD = [11.8, 5.4, 5.5, 5.4, 5.4]
FLAT = [5.4, 5.5, 5.4, 5.3, 5.4]


def test_latency_that_rises_within_the_window_is_said() -> None:
    rose = "not steady: p50 rose from 25.8 ms to 67.8 ms within the window"
    assert said(*[round_of(LEAK)] * 6) == [f"{rose} (6 of 6 rounds)"]
    assert said(round_of(LEAK)) == [f"{rose} (1 of 1 rounds)"]
    slight = [[5.0 + 0.2 * t + wobble for t in range(5)] for wobble in (0.0, 0.1, -0.1, 0.05, 0.0, 0.1)]
    assert len(said(*map(round_of, slight))) == 1  # 12 % in all, in each of six rounds
    assert said(round_of(slight[0])) == []  # one round cannot tell


def test_a_first_second_that_differs_asks_for_a_longer_warm_up() -> None:
    cold = "warm-up too short: p50 was 11.8 ms in the first second and 5.40 ms afterwards"
    assert said(*[round_of(COLD)] * 6) == [f"{cold} (6 of 6 rounds); try --warmup 3s"]
    assert said(round_of(COLD)) == [f"{cold} (1 of 1 rounds); try --warmup 3s"]
    quick = said(*[round_of(COLD[::-1][:1] + [11.8] * 4)] * 6)
    assert quick == ["not steady: p50 was 5.40 ms in the first second and 11.8 ms afterwards (6 of 6 rounds)"]


def test_a_step_in_the_window_is_seen_in_few_rounds_too() -> None:
    step = said(*[round_of([10.6, 10.7, 8.1, 5.4, 5.5])] * 2)
    assert step == [
        "not steady: p50 fell from 10.6 ms to 5.50 ms within the window (2 of 2 rounds); try a longer --warmup"
    ]
    early = said(*[round_of([10.6, 10.7, 5.4, 5.4, 5.5])] * 2)
    assert early[0].startswith("warm-up too short: p50 was 10.6 ms in the first second and 5.45 ms afterwards")


def test_throughput_may_fall_while_the_latency_of_what_is_answered_stays() -> None:
    falling = round_of([5.0] * 5, [3000.0, 2400.0, 1800.0, 1200.0, 600.0])
    assert said(falling) == ["not steady: throughput fell from 3,000/s to 600/s within the window (1 of 1 rounds)"]
    lag = Histogram()
    open_model = Arrivals(offered=1, missed=0, lag=lag)
    assert falling.client
    assert said(replace(falling, client=replace(falling.client, arrivals=open_model))) == []  # it is the schedule's


def test_what_is_steady_too_short_or_too_few_says_nothing() -> None:
    assert said(*[round_of(FLAT)] * 6) == []
    assert said() == []
    assert said(*[round_of([5.0])] * 6) == []
    assert said(*[round_of([5.0, 50.0])] * 6) == []
    assert said(*[round_of([5.0, 5.0, 50.0], last_s=0.3)] * 6) == []  # the window's last part is no second
    lockstep = [round_of([1500.0] * 4, [16.0, 16.0, 32.0, 16.0])] * 6  # 16 clients: one exchange each, or two
    assert said(*lockstep) == []
    invalid = replace(round_of(LEAK), verdict=measured("one", 0, verdict="INVALID").verdict)
    assert said(invalid) == []


def test_a_last_second_that_is_a_little_longer_hides_no_other() -> None:
    assert len(said(round_of(LEAK, last_s=1.05))) == 1


def test_a_long_window_is_looked_at_in_parts() -> None:
    assert len(said(round_of([10 + t / 100 for t in range(3600)]))) == 1


def test_the_report_says_it_of_the_configuration() -> None:
    plan = Plan(name="p", servers=(Server(name="one", command="x {port}"),), loads=(Load(name="nap"),))
    rounds = [round_of(LEAK, cycle=cycle) for cycle in range(6)]
    found = compare(plan, rounds)
    assert found.warnings == (
        "one (nap): not steady: p50 rose from 25.8 ms to 67.8 ms within the window (6 of 6 rounds)",
    )


def noisy(chance: random.Random, seconds: int, deviation: float, memory: float) -> Round:
    """Seconds whose noise keeps this part of itself from one to the next."""
    state, levels = chance.gauss(0, deviation), []
    for _ in range(seconds):
        levels.append(max(0.2, 1 + state))
        state = memory * state + math.sqrt(1 - memory**2) * chance.gauss(0, deviation)
    return round_of([5.0 * level for level in levels])


CASES = [
    (seconds, rounds, deviation, memory)
    for seconds in (3, 5, 10)
    for rounds in (1, 2, 4, 6, 12)
    for deviation in (0.05, 0.1)
    for memory in (0.0, 0.5, 0.9)
]


def false_alarms(chance: random.Random, case: tuple[int, int, float, float], times: int) -> int:
    seconds, rounds, deviation, memory = case
    made = ([noisy(chance, seconds, deviation, memory) for _ in range(rounds)] for _ in range(times))
    return sum(bool(said(*rounds)) for rounds in made)


def test_noise_is_hardly_ever_taken_for_a_trend() -> None:
    """Simulated, seeded: 25 configurations of each kind. The long form has the rate of each kind alone."""
    chance = random.Random(7)
    assert sum(false_alarms(chance, case, 25) for case in CASES) <= 0.005 * 25 * len(CASES)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", [*CASES, (60, 6, 0.1, 0.9)], ids=str)
def test_less_than_1_in_100_configurations_is_called_unsteady_by_noise(case: tuple[int, int, float, float]) -> None:
    assert false_alarms(random.Random(str(case)), case, 1000) < 10
