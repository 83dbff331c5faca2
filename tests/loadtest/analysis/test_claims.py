"""What is claimed between equal servers, and found where one is 5 % slower: in simulated sessions, by kind of noise.

`python -m tests.loadtest.analysis.test_claims [SESSIONS]` prints the table.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

import pytest

from loadtest.analysis.inference import MIN_PAIRS, ratio, unpaired
from tests.loadtest.analysis.simulation import (
    NOISES,
    Machine,
    Noise,
    Orders,
    claimed,
    claimed_by_floor,
    drawn,
    forth_and_back,
    middle,
    neighbour,
    rates,
    session,
)

CYCLES = (6, 12, 20)
FIGURES = 4  # that a report compares
ORDERS: dict[str, Orders] = {"A B A', A' B A": forth_and_back, "drawn": drawn}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Parts of the sessions, in percent."""

    covers: float  # the interval has the true ratio 1
    floor: float  # between equal servers claimed by the rule of the noise floor
    rule: float  # by the lab's
    found_floor: float  # a slow-down of 5 % is found, by either
    found: float


def simulated(noise: Noise, cycles: int, sessions: int, orders: Orders = drawn) -> Outcome:
    chance = random.Random(1935 + cycles)
    counts = dict.fromkeys(Outcome.__slots__, 0)
    for _ in range(sessions):
        compared, again, both = session(chance, noise, cycles, orders=orders)
        found = ratio(compared)
        assert found
        assert found.low is not None
        assert found.high is not None
        counts["covers"] += found.low <= 1 <= found.high
        counts["floor"] += claimed_by_floor(compared, both)
        counts["rule"] += claimed(compared, again)
        compared, again, both = session(chance, noise, cycles, 0.05, orders)
        counts["found_floor"] += claimed_by_floor(compared, both)
        counts["found"] += claimed(compared, again)
    return Outcome(**{name: 100 * count / sessions for name, count in counts.items()})


def claims_of_a_run(chance: random.Random, noise: Noise, candidates: int, *, twice: bool = True) -> int:
    """How many differences a run with so many equal candidates claims, in all its figures, taken as independent."""
    claims = 0
    for _ in range(FIGURES):
        found = rates(chance, noise, 6, candidates=candidates)
        for name in (name for name in found if name.startswith("B")):
            again = list(zip(found["A'"], found[name], strict=True)) if twice else []
            claims += claimed(list(zip(found["A"], found[name], strict=True)), again)
    return claims


def test_equal_servers_are_hardly_ever_told_apart() -> None:
    """Under each noise, the old order's two traps included."""
    for name, noise in NOISES.items():
        found = simulated(noise, 6, 150)
        assert found.rule <= 2, (name, found)
        assert found.covers >= 90, (name, found)


@pytest.mark.parametrize("noise", [middle, neighbour], ids=["middle", "neighbour"])
def test_what_depends_on_the_place_in_a_cycle_is_no_difference_any_more(noise: Noise) -> None:
    assert simulated(noise, 6, 150, forth_and_back).rule > 30
    assert simulated(noise, 6, 150).rule < 1


def test_the_rule_finds_more_than_the_noise_floor_did() -> None:
    for deviation, more in ((0.015, 2), (0.03, 8)):
        found = simulated(Machine(noise=deviation), 6, 300)
        assert found.found > found.found_floor + more


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cycles", CYCLES)
@pytest.mark.parametrize("noise", NOISES)
def test_claims_and_coverage_at_length(noise: str, cycles: int) -> None:
    found = simulated(NOISES[noise], cycles, 2000)
    assert found.rule <= 1.5
    assert found.covers >= 93
    assert found.found >= found.found_floor - 0.5


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("candidates", [1, 3, 7, 15])
def test_the_word_about_the_family_promises_enough(candidates: int) -> None:
    """At most 1 in 100 comparisons with the baseline's second run, about 5 without."""
    chance = random.Random(candidates)
    claims = [claims_of_a_run(chance, Machine(noise=0.015), candidates) for _ in range(500)]
    assert sum(claims) <= 0.01 * 500 * candidates * FIGURES
    alone = [claims_of_a_run(chance, Machine(noise=0.015), candidates, twice=False) for _ in range(100)]
    assert sum(alone) == pytest.approx(0.05 * 100 * candidates * FIGURES, rel=0.4)


def two_visits(chance: random.Random, state: float, slowdown: float, *, anchored: bool) -> bool:
    """Whether two runs of the same server differ, if the machine's state varies from visit to visit."""
    visits = []
    for factor in (1.0, 1 - slowdown):
        level = 1 + chance.gauss(0, state)
        found = rates(chance, Machine(noise=0.01), MIN_PAIRS)
        base = found["A"] if anchored else [1000.0] * MIN_PAIRS
        visits.append(
            [level * factor * b / (level * a if anchored else a) for a, b in zip(base, found["B0"], strict=True)]
        )
    compared = unpaired(*visits)
    assert compared
    return compared.differs


def test_with_an_anchor_two_visits_to_one_machine_claim_what_they_promise() -> None:
    chance = random.Random(8)
    assert sum(two_visits(chance, 0.02, 0.0, anchored=False) for _ in range(200)) > 60  # hence: no claim without one
    assert sum(two_visits(chance, 0.02, 0.0, anchored=True) for _ in range(200)) <= 20
    assert sum(two_visits(chance, 0.02, 0.05, anchored=True) for _ in range(200)) >= 180


def main(sessions: int) -> None:
    print("| noise, cycles | covers | claimed: floor, rule | 5 % found: floor, rule | the same in the old order |")
    print("| --- | --- | --- | --- | --- |")
    for cycles in CYCLES:
        for name, noise in NOISES.items():
            new, old = simulated(noise, cycles, sessions), simulated(noise, cycles, sessions, forth_and_back)
            print(
                f"| {name}, {cycles} | {new.covers:.1f} | {new.floor:.1f}, {new.rule:.1f} | {new.found_floor:.0f}, "
                f"{new.found:.0f} | covers {old.covers:.1f}; {old.floor:.1f}, {old.rule:.1f}; {old.found_floor:.0f}, "
                f"{old.found:.0f} |",
                flush=True,
            )
    for candidates in (1, 3, 7, 15):
        chance = random.Random(candidates)
        for twice in (True, False):
            claims = [claims_of_a_run(chance, NOISES["normal 1.5 %"], candidates, twice=twice) for _ in range(sessions)]
            runs = sum(map(bool, claims))
            print(
                f"{candidates} equal candidates, {FIGURES} figures, {'A and A' + chr(39) if twice else 'A only'}: "
                f"{sum(claims) / sessions:.3f} claims a run, in {100 * runs / sessions:.1f} % of the runs one or more"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
