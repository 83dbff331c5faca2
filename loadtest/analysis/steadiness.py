"""Rounds of one configuration -> warnings where latency or throughput changes within the measured window.

A figure of a whole window is worth something only if it would be much the same for any other part of it. Two things are
looked for, second by second: a trend (a leak, a queue that grows, a cache that still fills), and a first second that
differs from the rest (the warm-up was too short).

Seconds follow each other, so their noise does, too, and no test that takes them as independent is sound. Hence each
round gives one number: the change that its trend (the median of all slopes between two seconds, Theil 1950 and Sen
1968) makes from the first to the last second, or how far the first second lies from the median of the rest, each as a
part of that median. Rounds are independent. From four on, a warning needs a mean that is clearly not zero by the
spread between rounds, a median of at least 10 % (trend) or 15 % (first second), and one sign in nearly all of them.
Fewer rounds cannot tell noise from a trend by themselves: then each must change by 50 %, and the seconds must nearly
all be in order, as the rank correlation of Kendall and Mann says, or their halves lie apart, or the first second lies
far outside the others.

The first second takes no part in the trend. What is shorter than three seconds says nothing. tests/loadtest/analysis/
test_steadiness.py simulates it: 5 to 10 % of noise from second to second, independent or not, give a warning in fewer
than 1 of 100 configurations.

Pure.
"""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, NamedTuple

from loadtest.data import figures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadtest.data.records import Client, Round, Second

_WHOLE = 0.99  # of a second, or of the first part: what is shorter is the window's last part
_FEW = 4  # rounds; with fewer, only what is obvious within each of them counts
_TREND, _FIRST, _OBVIOUS = 0.1, 0.15, 0.5  # parts of the median
_ORDERED = 0.8  # Kendall's tau
_STEP = 0.25  # part of the median
_PARTS = 60  # all pairs of these are looked at
_FAR = 3  # times the range of the other seconds


class _Series(NamedTuple):
    """One figure of one round, second by second."""

    values: list[float]
    quantum: float  # a change below it may come from counting whole exchanges

    @property
    def rest(self) -> list[float]:
        """The seconds after the first; of a long window the medians of at most _PARTS parts."""
        rest = self.values[1:]
        size = math.ceil(len(rest) / _PARTS)
        return [median(rest[at : at + size]) for at in range(0, len(rest), size)]

    def trend(self) -> float:
        """Return the change over the window without its first second, as a part of the median."""
        rest = self.rest
        slope = median((rest[j] - rest[i]) / (j - i) for i, j in combinations(range(len(rest)), 2))
        return self._part(slope * (len(rest) - 1))

    def first(self) -> float:
        """Return how far the first second lies from the median of the rest, as a part of it."""
        return self._part(self.values[0] - median(self.rest))

    def _part(self, change: float) -> float:
        return change / median(self.rest) if abs(change) > self.quantum else 0.0

    def ordered(self) -> bool:
        """Return whether nearly all pairs of seconds are in the same order, or there is a step between two halves."""
        rest = self.rest
        pairs = list(combinations(rest, 2))
        if abs(sum((b > a) - (b < a) for a, b in pairs)) >= _ORDERED * len(pairs):
            return True
        early, late = rest[: len(rest) // 2], rest[-(len(rest) // 2) :]
        return max(min(early) - max(late), min(late) - max(early)) > _STEP * median(rest)

    def apart(self) -> bool:
        """Return whether the first second lies far outside the later half of the others."""
        late = self.rest[-(len(self.rest) // 2) :]
        return abs(self.values[0] - median(self.rest)) > _FAR * (max(late) - min(late))


def unsteady(rounds: Sequence[Round]) -> Iterator[str]:
    """Say how the valid rounds of one configuration change within their window: at most one line."""
    clients = [done.client for done in rounds if done.verdict.valid and done.client]
    for title, write, series in (
        ("p50", figures.duration, [found for client in clients if (found := _latency(client))]),
        ("throughput", _per_second, [found for client in clients if (found := _throughput(client))]),
    ):
        known = [each for each in series if len(each.rest) >= 3]
        changes = [each.trend() for each in known]
        if _shown(changes, _TREND, [each.ordered() for each in known]):
            before, after = (write(median(each.values[at] for each in known)) for at in (0, -1))
            verb = "rose" if median(changes) > 0 else "fell"
            said = f"{title} {verb} from {before} to {after} within the window ({_agreeing(changes)} rounds)"
            better = (median(changes) < 0) == (title == "p50")
            yield f"not steady: {said}{'; try a longer --warmup' if better else ''}"
            return
        differences = [each.first() for each in series]
        if _shown(differences, _FIRST, [len(each.rest) >= 3 and each.apart() for each in series]):
            first = write(median(each.values[0] for each in series))
            part_s = max(client.seconds[0].span_s for client in clients if client.seconds)
            part = "second" if part_s < 2 else f"{part_s:g} s"
            rest = write(median(median(each.rest) for each in series))
            said = f"{title} was {first} in the first {part} and {rest} afterwards ({_agreeing(differences)} rounds)"
            worse = (median(differences) > 0) == (title == "p50")
            yield (
                f"warm-up too short: {said}; try --warmup {_longer(clients, part_s)}"
                if worse
                else f"not steady: {said}"
            )
            return


def _shown(changes: Sequence[float], least: float, obvious: Sequence[bool]) -> bool:
    """Return whether the rounds change, and agree about it."""
    n = len(changes)
    if not n:
        return False
    if n < _FEW:
        together = min(changes) > _OBVIOUS or max(changes) < -_OBVIOUS
        return together and all(obvious)
    spread = stdev(changes) / math.sqrt(n)
    agreeing = sum((change > 0) == (median(changes) > 0) for change in changes)
    enough = abs(median(changes)) >= least and agreeing >= n - n // 6
    return enough and abs(fmean(changes)) > (3 + 13 / (n - 1)) * spread  # beyond Student's t of 0.5 %


def _agreeing(changes: Sequence[float]) -> str:
    same = sum((change > 0) == (median(changes) > 0) for change in changes)
    return f"{same} of {len(changes)}"


def _latency(client: Client) -> _Series | None:
    values = [second.p50_ns for second in _whole(client)]
    known = [float(value) for value in values if value is not None]
    return _Series(known, 0.0) if len(known) == len(values) >= 3 and all(known) else None


def _throughput(client: Client) -> _Series | None:
    """Return the exchanges that ended per second; in the open model they are the schedule's."""
    values = [second.ended / second.span_s for second in _whole(client)]
    if client.arrivals or len(values) < 3 or not all(values):
        return None
    return _Series(values, client.connections / client.seconds[0].span_s)


def _whole(client: Client) -> list[Second]:
    """Return the seconds; of a window with many of them its parts, which are alike but for the last.

    That may be shorter, and is left out then, or up to a tenth longer.
    """
    least_s = _WHOLE * max(1.0, client.seconds[0].span_s) if client.seconds else 0.0
    return [second for second in client.seconds if second.span_s >= least_s]


def _per_second(count: float) -> str:
    return f"{figures.rate(count)}/s"


def _longer(clients: Sequence[Client], part_s: float) -> str:
    """Return a warm-up that would have covered the first second or part, and one more."""
    was_s = max(client.raw.get("warmup_s", 0.0) for client in clients)
    return f"{math.ceil(was_s + 2 * part_s)}s"
