"""`--fail-if "p99>5ms"`: conditions on the figures of a report, for a script that has to decide.

    [CONFIGURATION:] METRIC OP VALUE[UNIT]        "p99>5ms"   "errors>0"   "four (nap): ratio<0.95"

CONFIGURATION is written as everywhere: `name`, `name (load)`, or `(load)` for all under a load. Without it a condition
is about every configuration but the baseline's second run (NAME'); of two runs that are compared, about those of the
second: what is, not what was. `ratio` is about those that are compared with something.

The figure is the one that the report shows, and the limit is taken by the letter: a ratio of 0.94 is below 0.95 also
where no difference is shown, which the line then says. A figure that is not known counts as failed: who sets a limit
to p99 wants to know it.

Pure: a comparison in, lines out.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.analysis.inference import MIN_PAIRS
from loadtest.data import figures
from loadtest.plan.plan import AA_MARK
from loadtest.plan.values import near

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from loadtest.analysis.compare import Comparison, Configuration

    Key = tuple[str, str]  # a configuration's name and its load's
    Figure = Callable[[Configuration, Comparison], float | None]  # in the metric's smallest unit

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_FORM = re.compile(r"(?:(.+):)?\s*([\w.]+)\s*([<>]=?)\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zµ/%]*)\s*", re.IGNORECASE)
_TIME = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_SIZE = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
_RATE = {"": 1.0, "/s": 1.0}
_FACTOR = {"": 1.0, "x": 1.0}
_COUNT = {"": 1.0}


class ConditionError(Exception):
    """A condition names a configuration that does not exist; the message lists those that do."""


def _errors(found: Configuration, _: Comparison) -> float | None:
    return None if found.failures is None else sum(found.failures.values())


def _ratio(found: Configuration, comparison: Comparison) -> float | None:
    contrast = comparison.contrast(found)
    rate = contrast.ratios["rate"] if contrast else None
    return rate.median if rate else None


METRICS: Mapping[str, tuple[Mapping[str, float], Figure]] = {
    "rate": (_RATE, lambda found, _: found.rate_per_s),
    "ratio": (_FACTOR, _ratio),
    "p50": (_TIME, lambda found, _: found.latency.p50_ns),
    "p90": (_TIME, lambda found, _: found.latency.p90_ns),
    "p99": (_TIME, lambda found, _: found.latency.p99_ns),
    "p99.9": (_TIME, lambda found, _: found.latency.p99_9_ns),
    "max": (_TIME, lambda found, _: found.latency.max_ns),
    "mean": (_TIME, lambda found, _: found.latency.mean_ns),
    "errors": (_COUNT, _errors),
    "missed": (_COUNT, lambda found, _: found.missed),
    "lag": (_TIME, lambda found, _: found.lag_p99_ns),
    "cpu": (_TIME, lambda found, _: None if found.cpu_per_request_us is None else found.cpu_per_request_us * 1e3),
    "pss": (_SIZE, lambda found, _: found.pss_bytes),
    "invalid": (_COUNT, lambda found, _: found.invalid),
}
"""Name -> its units with their factors, and where its figure is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition; `limit` and `unit` are as the user wrote them."""

    text: str
    where: str  # a configuration, a load or both; empty: everywhere
    metric: str
    sign: str
    limit: float
    unit: str

    def about(self, keys: Iterable[Key], baseline: str) -> list[Key]:
        """Return the configurations that the condition applies to. Raises ConditionError when there is none."""
        known = list(keys)
        chosen = [key for key in known if self._meant(*key)]
        if not chosen:
            names = [_called(*key) for key in known]
            hint = f"{near(self.where, names)}; there are {', '.join(names)}"
            raise ConditionError(f"{self.text!r}: nothing is called {self.where!r}{hint}")
        if self.metric == "ratio":
            chosen = [(name, load) for name, load in chosen if name != baseline]
            if not chosen:
                raise ConditionError(
                    f"{self.text!r}: nothing is compared with {baseline}: a ratio needs a second server"
                )
        return chosen

    def _meant(self, name: str, load: str) -> bool:
        if self.where in ("", f"({load})"):
            return not name.endswith(AA_MARK)
        return self.where in (name, _called(name, load))

    def verdict(self, found: Configuration, comparison: Comparison) -> str:
        """Say what is wrong; empty when nothing is."""
        units, figure = METRICS[self.metric]
        value = figure(found, comparison)
        if value is None:
            return f"{self.metric} is not known: {_why(self.metric, found)}"
        factor = units[self.unit]
        if not _OPERATORS[self.sign](value, self.limit * factor):
            return ""
        shown = f"{value:,.0f}" if units is _COUNT else figures.digits(value / factor, 4)
        evidence = _evidence(found, comparison) if self.metric == "ratio" else ""
        gap = " " if units in (_TIME, _SIZE) else ""
        return f"{self.metric} is {shown}{gap}{self.unit}{evidence}"


def parse(text: str) -> Condition:
    """Read a condition. Raises ValueError saying what is wrong with it and what to write."""
    match = _FORM.fullmatch(text)
    if match is None:
        shell = ", in quotes, as the shell takes > and < for itself" if not set(text) & set("<>") else ""
        raise ValueError(f'{text!r} is not a condition; write METRIC OP VALUE, such as "p99>5ms" or "errors>0"{shell}')
    where, metric, sign, number, unit = match.groups()
    metric = metric.lower()
    if metric not in METRICS:
        raise ValueError(f"{text!r}: {metric!r} is not a figure{near(metric, METRICS)}; there are {', '.join(METRICS)}")
    units = METRICS[metric][0]
    if unit not in units:
        wanted = ", ".join(name for name in units if name) or "none"
        kind = f"{unit!r} is no unit of {metric}{near(unit, units)}" if unit else f"{metric} needs a unit"
        raise ValueError(f"{text!r}: {kind}; units are {wanted}")
    return Condition(
        text=text.strip(), where=(where or "").strip(), metric=metric, sign=sign, limit=float(number), unit=unit
    )


def broken(conditions: Iterable[Condition], comparison: Comparison) -> Iterator[str]:
    """Yield a line for each configuration that meets a `--fail-if` condition. Raises ConditionError."""
    found = {(each.name, each.load): each for each in comparison.configurations}
    of_one_run = any(name == comparison.baseline for name, _ in found)
    second = [(contrast.name, contrast.load) for contrast in comparison.contrasts]
    for condition in conditions:
        keys = found if condition.where or of_one_run else second
        for name, load in condition.about(keys, comparison.baseline):
            if wrong := condition.verdict(found[name, load], comparison):
                yield f'--fail-if "{condition.text}": {_called(name, load)}: {wrong}'


def _called(name: str, load: str) -> str:
    return f"{name} ({load})"


def _why(metric: str, found: Configuration) -> str:
    """Say why a figure is not known."""
    if not found.rounds:
        return f"no round could be measured ({found.verdict})"
    match metric:
        case "ratio" if found.offered is not None:
            return "a rate was given, so requests/s are the same for all; write a condition on p50, p99 or cpu"
        case "ratio":
            return "no round has one of the baseline beside it"
        case "missed" | "lag":
            return "without a rate there is no schedule"
        case "cpu" | "pss":
            return "the server's processes could not be seen"
        case _:
            return f"{found.latency.n:,} exchanges are too few for it"


def _evidence(found: Configuration, comparison: Comparison) -> str:
    """Say how sure a ratio is."""
    contrast = comparison.contrast(found)
    ratio = contrast.ratios["rate"] if contrast else None
    if ratio is None or ratio.low is None or ratio.high is None:
        few = "too few rounds for an interval"
        pairs = ratio.pairs if ratio else 0
        return f" (n={pairs}: {few if pairs < MIN_PAIRS else 'no interval, so no difference is shown'})"
    shown = "" if ratio.differs else "; no difference is shown"
    return f" [{figures.times(ratio.low)}, {figures.times(ratio.high)}]{shown}"
