"""What several rounds say together: the ratio of two configurations, whether it is a difference, and how sure that is.

The sample is the round: requests within one round share its luck, so thousands of them say little more than one round
does. Rounds of the same cycle are pairs, measured within seconds of each other; their ratio is free of the machine's
slower drift.

The figure is the median of the ratios. Its 95 % interval is that of the sign test: two of the sorted ratios, between
which the median lies with a chance that the binomial distribution gives, whatever the noise looks like. Few ratios
offer only steps (of 6 the first and the last hold 96.9 %, the next two 78 %), hence the ends are interpolated between
the two pairs around 95 %, as Hettmansperger and Sheather showed how (1986). Rejected, after 2,000 simulated sessions
each with drift and disturbed rounds (tests/loadtest/analysis/test_inference.py has them):
- the bootstrap of the median: with 6 to 9 pairs it leaves 1 out in 6 to 10 of 100 sessions where nothing differs;
- the steps alone: never too often, but 8 rounds then find less than 6;
- the signed-rank interval: as good on calm machines, worse where single rounds are disturbed.

Two configurations differ when the interval leaves out 1 and their ratio is further from 1 than what two runs of the
same server differed by (A/A). The interval alone leaves 1 out in 5 of 100 sessions by its nature; with the floor a
difference that is none is claimed in less than 1 of 100.

`--until 2%` adds whole cycles after the first rounds until every interval is that narrow, or time is up. The interval
of the requests/s ratio to the baseline must be narrow, half of its width as a part of the ratio, for every
configuration that has a pair of valid rounds; for the baseline's second run (NAME') too, since nothing below its noise
floor can be claimed, however narrow the rest is. A configuration that cannot be measured is not waited for.

Whoever looks again and again, and stops when a difference shows, finds one in the end where none is. Therefore
the width decides, and never the ratio: a run ends as soon whether servers differ or not. A small bias remains, as runs
tend to end where the noise seems smaller than it is. In simulated sessions (tests/loadtest/measure/test_until.py) 5 to
9 of 100 intervals between equal servers then leave out 1, instead of 5; with the noise floor, which `until` measures by
itself, the claims stay below 1 in 100.

Pure. Only divisions, roots and sums that every machine rounds alike: the same files say the same everywhere, to the
byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


MIN_PAIRS = 6  # below, even the whole range of the ratios is no 95 % interval for their median: 2 / 2^5 > 0.05
_LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The ratio candidate / baseline of one metric, over the pairs of rounds."""

    pairs: int
    median: float
    low: float | None  # 95 % interval; None with fewer than MIN_PAIRS pairs
    high: float | None

    @property
    def reach(self) -> float | None:
        """The largest distance of the interval from 1, as a factor of at least 1.

        Of an A/A pair this is the noise floor.
        """
        return None if self.low is None or self.high is None else max(self.high, 1 / self.low, 1.0)

    @property
    def spread(self) -> float | None:
        """Half the interval's width as a part of the median: 0.02 means known to within 2 %."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2 / self.median

    def differs(self, floor: float | None) -> bool:
        """Return whether a difference is shown, given the noise floor as a factor (None: not measured)."""
        if self.low is None or self.high is None or self.low <= 1 <= self.high:
            return False
        return max(self.median, 1 / self.median) > (floor or 1.0)


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """Compute the ratio of (baseline, candidate) figures; None without a pair of positive ones."""
    ratios = sorted(candidate / baseline for baseline, candidate in pairs if baseline > 0 and candidate > 0)
    if not ratios:
        return None
    low, high = _interval(ratios) if len(ratios) >= MIN_PAIRS else (None, None)
    return Ratio(pairs=len(ratios), median=median(ratios), low=low, high=high)


def _interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Compute the interval of the median of at least MIN_PAIRS sorted values."""
    n = len(ordered)
    d = 1  # the interval's ends lie between the d-th and the next value from either side
    outer = _coverage(n, 1)
    while (inner := _coverage(n, d + 1)) >= _LEVEL:
        d += 1
        outer = inner
    part = (outer - _LEVEL) / (outer - inner)
    weight = (n - d) * part / (d + (n - 2 * d) * part)  # of the inner value: the coverage is not linear in between
    low = ordered[d - 1] + weight * (ordered[d] - ordered[d - 1])
    high = ordered[n - d] - weight * (ordered[n - d] - ordered[n - d - 1])
    return low, high


def _coverage(n: int, d: int) -> float:
    """Return the probability that the median lies between the d-th lowest and the d-th highest of n values."""
    outside: int = 2 * sum(math.comb(n, k) for k in range(d))
    return float(1 - outside / (1 << n))


def jain(shares: Iterable[float]) -> float | None:
    """Return Jain's index of fairness: 1 when all shares are equal, 1/n when one of n has all; None when all are 0."""
    values = list(shares)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def busiest_to_least(shares: Iterable[float]) -> float | None:
    """Return the largest share divided by the smallest; infinite when the smallest is 0, None when all are 0."""
    values = list(shares)
    most = max(values, default=0)
    if not most:
        return None
    return most / min(values) if min(values) else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A configuration compared with the baseline under the same load: metric -> ratio (None: no pairs)."""

    name: str
    load: str
    ratios: Mapping[str, Ratio | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """How wide the interval of one configuration's requests/s ratio is."""

    name: str
    load: str
    pairs: int
    spread: float | None  # as inference.Ratio has it; None with too few pairs for an interval

    def within(self, until: float) -> bool:
        """Return whether the interval is at most this wide to either side."""
        return self.spread is not None and self.spread <= until

    def describe(self) -> str:
        """Return the width in words."""
        known = "no interval yet" if self.spread is None else f"±{self.spread:.1%} in requests/s"
        return f"{known} ({self.name}, {self.load}, n={self.pairs})"


def widest(contrasts: Iterable[Contrast]) -> Width | None:
    """Return the widest interval of all contrasts; None when nothing can be compared."""
    widths = [
        Width(name=contrast.name, load=contrast.load, pairs=rate.pairs, spread=rate.spread)
        for contrast in contrasts
        if (rate := contrast.ratios["rate"])
    ]
    return max(widths, key=lambda width: (width.spread is None, width.spread or 0.0, -width.pairs), default=None)
