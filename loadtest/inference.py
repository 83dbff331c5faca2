"""What several rounds say together: the ratio of two configurations, and whether it is a difference at all.

The sample is the round: requests within one round share its luck, so that thousands of them say little more than one
round does. Rounds of the same cycle are pairs, measured within seconds of each other; their ratio is free of the
machine's slower drift. The interval is a bootstrap over pairs with a fixed seed, so that the same files always say
the same. Two configurations differ when the interval leaves out 1 and their ratio is further from 1 than what two
runs of the same server differed by (A/A).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_PAIRS = 6  # below, even the whole range of the ratios is no 95 % interval for their median: 2 / 2^5 > 0.05
_RESAMPLES = 4000
_SEED = 1935


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Candidate over baseline."""

    pairs: int
    median: float
    low: float | None  # 95 % interval; None with fewer than MIN_PAIRS pairs
    high: float | None

    @property
    def reach(self) -> float | None:
        """How far from 1 the interval reaches, as a factor of at least 1; of an A/A pair this is the noise floor."""
        return None if self.low is None or self.high is None else max(self.high, 1 / self.low, 1.0)

    def differs(self, floor: float | None) -> bool:
        """Whether the two are shown to differ, given the noise floor (None: not measured)."""
        if self.low is None or self.high is None or self.low <= 1 <= self.high:
            return False
        return max(self.median, 1 / self.median) > (floor or 1.0)


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """The ratio of (baseline, candidate) figures; None without a pair of positive ones."""
    logs = [math.log(candidate / baseline) for baseline, candidate in pairs if baseline > 0 and candidate > 0]
    if not logs:
        return None
    middle = math.exp(median(logs))
    if len(logs) < MIN_PAIRS:
        return Ratio(pairs=len(logs), median=middle, low=None, high=None)
    low, high = _bootstrap(logs)
    return Ratio(pairs=len(logs), median=middle, low=math.exp(low), high=math.exp(high))


def _bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of the median."""
    chance = random.Random(_SEED)  # noqa: S311  # not for secrets, and the same every time
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(_RESAMPLES * 0.025)], medians[int(_RESAMPLES * 0.975)]
