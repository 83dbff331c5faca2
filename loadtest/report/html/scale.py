"""From values to coordinates, and the values at which an axis is marked.

Pure: arithmetic only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps low..high to start..end, evenly or by orders of magnitude."""

    low: float
    high: float  # above low
    ticks: tuple[float, ...]
    log: bool = False
    start: float = 0.0  # coordinates; end may be the smaller one
    end: float = 1.0

    def __call__(self, value: float) -> float:
        """The coordinate of a value; one beyond an end is drawn at that end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def between(self, start: float, end: float) -> Scale:
        """The same scale on other coordinates."""
        return replace(self, start=start, end=end)


def linear(high: float, most: int, *, least_step: float = 0.0) -> Scale:
    """From 0 to a round value that is not below `high`, with at most so many steps."""
    high = high if high > 0 else 1.0
    step = max(least_step, _round_up(high / most))
    count = math.ceil(high / step - 1e-9)
    return Scale(low=0.0, high=step * count, ticks=tuple(step * number for number in range(count + 1)))


def logarithmic(low: float, high: float, most: int) -> Scale:
    """From a round value below `low` (> 0) to one above `high`, marked at 1, 2, 5 or at powers of ten only."""
    low, high = _round_down(low), _round_up(high)
    high = high if high > low else low * 10
    decades = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    ticks = [10.0**decade * step for decade in decades for step in _STEPS]
    ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    if len(ticks) > most:
        powers = [10.0**decade for decade in decades if low * (1 - 1e-9) <= 10.0**decade <= high * (1 + 1e-9)]
        ticks = powers[:: math.ceil(len(powers) / most)]
    return Scale(low=low, high=high, ticks=tuple(ticks), log=True)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (*_STEPS, 10) if power * step >= value * (1 - 1e-9))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (5, 2, 1, 0.5) if power * step <= value * (1 + 1e-9))
