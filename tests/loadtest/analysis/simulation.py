"""Sessions that never ran: rates of interleaved rounds on a machine that drifts, wanders and is sometimes disturbed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.analysis.inference import ratio

if TYPE_CHECKING:
    from loadtest.analysis.inference import Ratio

Pairs = list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Its noise, each as a part of the rate."""

    noise: float  # of each round, standard deviation
    drift: float = 0.0  # from each round to the next, always in one direction
    wander: float = 0.0  # from each round to the next, in any
    disturbed: float = 0.0  # so many rounds lose 2 to 15 %


CALM = Machine(noise=0.01)
USUAL = Machine(noise=0.015, wander=0.005, disturbed=0.1)
ROUGH = Machine(noise=0.02, drift=0.005, wander=0.01, disturbed=0.1)


def session(chance: random.Random, machine: Machine, cycles: int, slowdown: float = 0.0) -> tuple[Pairs, Pairs]:
    """The pairs (baseline, candidate) and (baseline, baseline again), measured as the lab does: A B A', A' B A."""
    level, compared, again = 1000.0, [], []
    for cycle in range(cycles):
        rates = {}
        for arm in ("A", "B", "A'") if cycle % 2 == 0 else ("A'", "B", "A"):
            level *= 1 + machine.drift + chance.gauss(0, machine.wander)
            rates[arm] = level * (1 + chance.gauss(0, machine.noise))
            if chance.random() < machine.disturbed:
                rates[arm] *= 1 - chance.uniform(0.02, 0.15)
        compared.append((rates["A"], rates["B"] * (1 - slowdown)))
        again.append((rates["A"], rates["A'"]))
    return compared, again


def claimed(compared: Pairs, again: Pairs | None) -> bool:
    """Whether a difference is claimed; without `again`, against no noise floor."""
    found, floor = ratio(compared), ratio(again) if again else None
    assert found
    return found.differs(floor.reach if floor else None)


def narrow(pairs: Pairs, until: float) -> bool:
    found: Ratio | None = ratio(pairs)
    return found is not None and found.spread is not None and found.spread <= until
