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

A difference is claimed if the candidate differs from the baseline and from the baseline's second run (A'): both
intervals leave out 1, on the same side. What is true of one of two runs of the same server only is no difference. The
interval alone leaves out 1 in 5 of 100 sessions between equal servers, by its nature; both together do so in less than
1 (tests/loadtest/analysis/test_claims.py has a table, for ten kinds of noise). Rejected: to ask for more than A and A'
differ by. That claims as seldom, and finds less, as the reach of an interval of six is nearly their whole range.

A report has many such comparisons. Holm's correction cannot be had: 6 pairs give no p below 0.03. So the report says
how many differences chance alone would show among so many comparisons of equal servers.

`--until 2%` adds whole cycles after the first rounds until every interval is that narrow, or time is up. The interval
of the requests/s ratio to the baseline (with a rate, of the p50 ratio) must be narrow, half of its width as a part of
the ratio, for every configuration that has a pair of valid rounds; for the baseline's second run (NAME') too, since a
difference must show against both. What cannot be measured is not waited for.

Whoever looks again and again, and stops when a difference shows, finds one in the end where none is. Therefore
the width decides, and never the ratio: a run ends as soon whether servers differ or not. A small bias remains, as runs
tend to end where the noise seems smaller than it is. In simulated sessions (tests/loadtest/measure/test_until.py) 5 to
9 of 100 intervals between equal servers then leave out 1, instead of 5; with the baseline's second run, which `until`
measures by itself, the claims stay about 1 in 100.

Pure. Only divisions, roots and sums that every machine rounds alike: the same files say the same everywhere, to the
byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    low: float | None  # 95 % interval; None with too few pairs (below MIN_PAIRS), or where none can be trusted
    high: float | None
    differs: bool  # whether a difference is claimed
    twice: bool  # whether it was asked of the baseline's second run, too

    @property
    def reach(self) -> float | None:
        """The largest distance of the interval from 1, as a factor of at least 1."""
        return None if self.low is None or self.high is None else max(self.high, 1 / self.low, 1.0)

    @property
    def spread(self) -> float | None:
        """Half the interval's width as a part of the median: 0.02 means known to within 2 %."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2 / self.median


def ratio(pairs: Sequence[tuple[float, float]], again: Sequence[tuple[float, float]] = ()) -> Ratio | None:
    """Compute the ratio of (baseline, candidate) figures; None without a pair of positive ones.

    `again` has the candidate's figures beside those of the baseline's second run.
    """
    ratios = sorted(candidate / baseline for baseline, candidate in pairs if baseline > 0 and candidate > 0)
    if not ratios:
        return None
    low, high = _interval(ratios) if len(ratios) >= MIN_PAIRS else (None, None)
    differs = _side(low, high) != 0
    found = Ratio(pairs=len(ratios), median=median(ratios), low=low, high=high, differs=differs, twice=False)
    return confirmed(found, ratio(again) if again else None)


def unpaired(before: Sequence[float], after: Sequence[float]) -> Ratio | None:
    """Compute the ratio after / before of figures that were not measured side by side; None without any.

    The estimate is that of Hodges and Lehmann, the median of all quotients, and its interval that of the test of Mann
    and Whitney.
    """
    before, after = ([value for value in values if value > 0] for values in (before, after))
    quotients = sorted(late / early for early in before for late in after)
    if not quotients:
        return None
    low, high = _rank_interval(quotients, len(before), len(after))
    pairs = min(len(before), len(after))
    differs = _side(low, high) != 0
    return Ratio(pairs=pairs, median=median(quotients), low=low, high=high, differs=differs, twice=False)


def confirmed(found: Ratio, other: Ratio | None) -> Ratio:
    """Return the ratio, with a difference only if the same ratio to a second reference shows it, too."""
    if other is None or other.low is None:
        return found
    same = _side(other.low, other.high) == _side(found.low, found.high)
    return replace(found, differs=found.differs and same, twice=True)


def without_interval(found: Ratio | None) -> Ratio | None:
    """Return the ratio without an interval, so that it claims nothing."""
    return found and replace(found, low=None, high=None, differs=False)


def _rank_interval(ordered: Sequence[float], n: int, m: int) -> tuple[float | None, float | None]:
    """Return the interval of the shift between samples of n and m, given all their n m quotients; None: too few.

    The counts of the rank sum's values are the coefficients of a Gaussian binomial.
    """
    ways = [1] + [0] * (n * m)
    for i in range(1, m + 1):
        for power in range(n * m, n + i - 1, -1):
            ways[power] -= ways[power - n - i]
        for power in range(i, n * m + 1):
            ways[power] += ways[power - i]
    total, outside, d = math.comb(n + m, m), 0, 0
    while 2 * (outside + ways[d]) <= (1 - _LEVEL) * total:
        outside += ways[d]
        d += 1
    return (ordered[d - 1], ordered[-d]) if d else (None, None)


def _side(low: float | None, high: float | None) -> int:
    """Return on which side of 1 an interval lies: -1 below, 1 above, 0 if it has 1 or is not known."""
    if low is None or high is None:
        return 0
    return (low > 1) - (high < 1)


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

    @property
    def leading(self) -> tuple[str, Ratio | None]:
        """The figure that says how much is known, and its ratio: requests/s, and p50 where a rate was given."""
        rate = self.ratios["rate"]
        return ("p50", self.ratios["p50"]) if rate is None and self.ratios["p50"] else ("requests/s", rate)

    @property
    def pairs(self) -> int:
        """Pairs of rounds, of the figure that has most of them."""
        return max((found.pairs for found in self.ratios.values() if found), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """How wide the interval of one configuration's leading ratio is."""

    name: str
    load: str
    pairs: int
    spread: float | None  # as inference.Ratio has it; None with too few pairs for an interval
    metric: str = "requests/s"

    def within(self, until: float) -> bool:
        """Return whether the interval is at most this wide to either side."""
        return self.spread is not None and self.spread <= until

    def describe(self) -> str:
        """Return the width in words."""
        known = "no interval yet" if self.spread is None else f"±{self.spread:.1%} in {self.metric}"
        return f"{known} ({self.name}, {self.load}, n={self.pairs})"


def widest(contrasts: Iterable[Contrast]) -> Width | None:
    """Return the widest interval of all contrasts; None when nothing can be compared, however many rounds follow."""
    leading = [(contrast, *contrast.leading) for contrast in contrasts]
    widths = [
        Width(name=contrast.name, load=contrast.load, pairs=found.pairs, spread=found.spread, metric=metric)
        for contrast, metric, found in leading
        if found and (found.spread is not None or found.pairs < MIN_PAIRS)
    ]
    return max(widths, key=lambda width: (width.spread is None, width.spread or 0.0, -width.pairs), default=None)
