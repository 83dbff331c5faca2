"""`--until 2%`: after the first rounds, whole cycles are added until every interval is that narrow, or time is up.

What must be narrow: the interval of the requests/s ratio to the baseline, half of its width as a part of the ratio, of
every configuration that has a pair of valid rounds; the baseline's second run (NAME') too, since nothing below its
noise floor can be claimed, however narrow the rest is. A configuration that cannot be measured is not waited for.

Whoever looks again and again, and stops when a difference shows, finds one in the end where none is. Therefore
narrowness decides, and never what the ratio is: a run ends as soon whether servers differ or not. A little remains, as
it tends to end where the noise seems smaller than it is. In simulated sessions (tests/loadtest/test_until.py) 5 to 9 of
100 intervals between equal servers then leave out 1, instead of 5; with the noise floor, which `until` measures by
itself, the claims stay below 1 in 100.

Pure: ratios in, what is still too wide out. session.py has the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .compare import Contrast


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """How well the ratio of one configuration is known."""

    name: str
    load: str
    pairs: int
    spread: float | None  # as inference.Ratio has it; None with too few pairs for an interval

    def within(self, until: float) -> bool:
        """Whether that is narrow enough."""
        return self.spread is not None and self.spread <= until

    def describe(self) -> str:
        """The width in words."""
        known = "no interval yet" if self.spread is None else f"±{self.spread:.1%} in requests/s"
        return f"{known} ({self.name}, {self.load}, n={self.pairs})"


def widest(contrasts: Iterable[Contrast]) -> Width | None:
    """The configuration whose ratio is known least; None when nothing can be compared."""
    widths = [
        Width(name=contrast.name, load=contrast.load, pairs=rate.pairs, spread=rate.spread)
        for contrast in contrasts
        if (rate := contrast.ratios["rate"])
    ]
    return max(widths, key=lambda width: (width.spread is None, width.spread or 0.0, -width.pairs), default=None)
