"""Sessions that never ran: rates of rounds in the lab's order, on machines with several kinds of noise."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.analysis.inference import ratio
from loadtest.plan.plan import Load, Plan, Server

if TYPE_CHECKING:
    from loadtest.analysis.inference import Ratio

Pairs = list[tuple[float, float]]
Noise = Callable[[random.Random, int], Iterator[float]]  # of arms in a cycle: the factor of each round
Orders = Callable[[random.Random, list[str], int], list[list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Its noise, each as a part of the rate."""

    noise: float  # of each round, standard deviation
    drift: float = 0.0  # from each round to the next, always in one direction
    wander: float = 0.0  # from each round to the next, in any
    disturbed: float = 0.0  # so many rounds lose 2 to 15 %

    def __call__(self, chance: random.Random, arms: int) -> Iterator[float]:
        level = 1.0
        while True:
            level *= 1 + self.drift + chance.gauss(0, self.wander)
            lost = chance.uniform(0.02, 0.15) if chance.random() < self.disturbed else 0.0
            yield level * (1 + chance.gauss(0, self.noise)) * (1 - lost)


CALM = Machine(noise=0.01)
USUAL = Machine(noise=0.015, wander=0.005, disturbed=0.1)
ROUGH = Machine(noise=0.02, drift=0.005, wander=0.01, disturbed=0.1)


def lognormal(chance: random.Random, arms: int) -> Iterator[float]:
    """Rounds that lose much now and then."""
    while True:
        yield max(0.2, 1 - 0.02 * chance.lognormvariate(0, 0.8))


def heavy(chance: random.Random, arms: int) -> Iterator[float]:
    """Student's t with 2 degrees of freedom: its variance is infinite."""
    while True:
        yield max(0.2, 1 + 0.01 * chance.gauss(0, 1) / math.sqrt(chance.expovariate(1)))


def persistent(chance: random.Random, arms: int) -> Iterator[float]:
    """Noise of 1.5 % that remembers nine tenths of itself from round to round."""
    state = chance.gauss(0, 0.015)
    while True:
        state = 0.9 * state + math.sqrt(1 - 0.81) * chance.gauss(0, 0.015)
        yield 1 + state


def two_modes(chance: random.Random, arms: int) -> Iterator[float]:
    """Each start of a server draws one of two rates, 6 % apart."""
    while True:
        yield chance.choice((1.0, 0.94)) * (1 + chance.gauss(0, 0.01))


def middle(chance: random.Random, arms: int) -> Iterator[float]:
    """The places between the first and the last of a cycle are 1 % better."""
    for place in itertools.cycle(range(arms)):
        yield (1.01 if 0 < place < arms - 1 else 1.0) * (1 + chance.gauss(0, 0.005))


def neighbour(chance: random.Random, arms: int) -> Iterator[float]:
    """Something else runs with the period of a cycle."""
    phase = chance.uniform(0, 2 * math.pi)
    for place in itertools.count():
        yield 1 + 0.02 * math.sin(2 * math.pi * place / arms + phase) + chance.gauss(0, 0.01)


NOISES: dict[str, Noise] = {
    "normal 1.5 %": Machine(noise=0.015),
    "normal 3 %": Machine(noise=0.03),
    "lognormal": lognormal,
    "t with 2 degrees": heavy,
    "AR(1) 0.9": persistent,
    "drift 1 % a round": Machine(noise=0.01, drift=0.01),
    "outliers in 10 %": Machine(noise=0.015, disturbed=0.1),
    "two modes, 6 %": two_modes,
    "neighbour": neighbour,
    "middle 1 % better": middle,
}


def drawn(chance: random.Random, arms: list[str], cycles: int) -> list[list[str]]:
    """The lab's order."""
    servers = tuple(Server(name=name, command="x {port}") for name in arms if name != "A'")
    plan = Plan(
        name="p", servers=servers, loads=(Load(name="l"),), aa="A'" in arms, rounds=cycles, seed=chance.randrange(10**9)
    )
    found: list[list[str]] = [[] for _ in range(cycles)]
    for slot in plan.slots():
        found[slot.cycle].append(slot.configuration)
    return found


def forth_and_back(chance: random.Random, arms: list[str], cycles: int) -> list[list[str]]:
    """A B A', A' B A, ...: the middle is always the same's."""
    return [arms[::-1] if cycle % 2 else arms for cycle in range(cycles)]


def rates(
    chance: random.Random,
    noise: Noise,
    cycles: int,
    *,
    slowdown: float = 0.0,
    candidates: int = 1,
    orders: Orders = drawn,
) -> dict[str, list[float]]:
    """The rate of each arm in each cycle: the baseline A, candidates B0, B1, ..., the baseline again (A')."""
    arms = ["A", *(f"B{number}" for number in range(candidates)), "A'"]
    found: dict[str, list[float]] = {name: [] for name in arms}
    factors = noise(chance, len(arms))
    for order in orders(chance, arms, cycles):
        for name in order:
            found[name].append(1000 * next(factors) * (1 - slowdown * name.startswith("B")))
    return found


def session(
    chance: random.Random, noise: Noise, cycles: int, slowdown: float = 0.0, orders: Orders = drawn
) -> tuple[Pairs, Pairs, Pairs]:
    """The pairs (baseline, candidate), (baseline again, candidate) and (baseline, baseline again)."""
    found = rates(chance, noise, cycles, slowdown=slowdown, orders=orders)
    return tuple(list(zip(found[a], found[b], strict=True)) for a, b in (("A", "B0"), ("A'", "B0"), ("A", "A'")))  # type: ignore[return-value]


def claimed(compared: Pairs, again: Pairs = ()) -> bool:  # type: ignore[assignment]
    """Whether a difference is claimed; without `again`, by the interval alone."""
    found = ratio(compared, again)
    assert found
    return found.differs


def claimed_by_floor(compared: Pairs, both: Pairs) -> bool:
    """The rule that was rejected: the ratio must be further from 1 than the baseline is from itself."""
    found, floor = ratio(compared), ratio(both)
    assert found
    assert floor
    assert floor.reach
    return claimed(compared) and max(found.median, 1 / found.median) > floor.reach


def narrow(pairs: Pairs, until: float) -> bool:
    found: Ratio | None = ratio(pairs)
    return found is not None and found.spread is not None and found.spread <= until
