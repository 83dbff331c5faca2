"""Rounds -> comparison: a summary of each configuration, and each against the baseline. Pure: no files, no tables.

INVALID rounds count as such and enter nothing. Percentiles come from the merged histograms of the rounds, never from
averages of percentiles, and only where the number of samples can bear them. Rates, CPU and memory are medians over
rounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from loadtest.analysis.inference import MIN_PAIRS, Contrast, Ratio, ratio, widest
from loadtest.analysis.sharing import sharing
from loadtest.plan.plan import AA_MARK
from prefork.status.histogram import Histogram, estimable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from loadtest.analysis.sharing import Sharing
    from loadtest.data.records import Round
    from loadtest.plan.plan import Plan

    Metric = Callable[[Round], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Percentiles of all samples together, in ns; None where there are too few samples."""

    n: int
    p50_ns: int | None
    p90_ns: int | None
    p99_ns: int | None
    p99_9_ns: int | None
    max_ns: int | None
    mean_ns: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The summary of one configuration under one load, over all its rounds. None is "not known"."""

    name: str
    load: str
    rounds: int  # that entered the figures
    invalid: int  # that did not
    rate_per_s: float | None
    latency: Percentiles
    service_time: Percentiles
    offered: int | None  # the open model: exchanges that came due; None in the closed one
    missed: int | None  # those of them that never started
    lag_p99_ns: int | None  # how late the generator saw 99 of 100 of them at most
    failures: Mapping[str, int] | None  # cause -> exchanges, INVALID rounds too; None when no load was ever put on it
    censored: int | None  # cut off by the end of their round, INVALID rounds too
    retried: int | None  # exchanges of the same rounds that were sent once more
    cpu_per_request_us: float | None
    pss_bytes: float | None
    verdict: str  # the most frequent of its rounds, or INVALID when none is valid
    sharing: Sharing | None  # None: a single process, or its workers are not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is reported about some rounds."""

    baseline: str
    configurations: tuple[Configuration, ...]
    contrasts: tuple[Contrast, ...]
    floors: Mapping[str, Mapping[str, float | None]]  # load -> metric -> noise floor as a factor; None: not measured
    warnings: tuple[str, ...]

    def contrast(self, configuration: Configuration) -> Contrast | None:
        """Return the configuration's contrast; None for the baseline itself."""
        same = (
            found for found in self.contrasts if (found.name, found.load) == (configuration.name, configuration.load)
        )
        return next(same, None)


def cpu_per_request_ns(done: Round) -> float | None:
    """Return the CPU time of the server's processes per exchange that was done in the window, in ns."""
    if done.client is None or not done.client.done or done.signals is None or done.signals.server is None:
        return None
    return done.signals.server.cpu_ns / done.client.done


METRICS: Mapping[str, Metric] = {
    "rate": lambda done: done.client.rate_per_s if done.client else None,
    "p50": lambda done: _quantile(done, 0.5),
    "p99": lambda done: _quantile(done, 0.99),
    "cpu": cpu_per_request_ns,
}


def compare(plan: Plan, rounds: Sequence[Round]) -> Comparison:
    """Summarise the rounds of one run and compare every configuration with the plan's baseline."""
    contrasts = contrast_all(plan, rounds)
    floors = {load.name: dict[str, float | None].fromkeys(METRICS) for load in plan.loads}
    for again in contrasts:
        if again.name == plan.reference + AA_MARK:
            floors[again.load] = {metric: found.reach if found else None for metric, found in again.ratios.items()}
    configurations = [_configuration(name, load, group) for (name, load), group in _groups(rounds).items()]
    return Comparison(
        baseline=plan.reference,
        configurations=tuple(configurations),
        contrasts=tuple(contrasts),
        floors=floors,
        warnings=(*_warnings(plan, rounds, floors, contrasts), *_doubts(configurations)),
    )


def contrast_all(plan: Plan, rounds: Sequence[Round]) -> list[Contrast]:
    """Compare every configuration, the baseline's second run too, with the baseline under the same load."""
    groups = _groups(rounds)
    return [
        Contrast(name=name, load=load.name, ratios=_ratios(groups.get((plan.reference, load.name), []), group))
        for load in plan.loads
        for (name, under), group in groups.items()
        if under == load.name and name != plan.reference
    ]


def across(first: Sequence[Round], second: Sequence[Round], labels: tuple[str, str]) -> Comparison:
    """Compare two runs, configuration by configuration where both have it. The first run is the baseline.

    Their rounds were not measured side by side, so every change of the machine in between counts as a difference; the
    noise floor of the runs' own A/A pairs does not cover that.
    """
    groups = [_groups(first), _groups(second)]
    shared = [key for key in groups[0] if key in groups[1] and not key[0].endswith(AA_MARK)]
    configurations = []
    contrasts = []
    for name, load in shared:
        for label, group in zip(labels, groups, strict=True):
            configurations.append(_configuration(f"{label}: {name}", load, group[name, load]))
        ratios = _ratios(groups[0][name, load], groups[1][name, load])
        contrasts.append(Contrast(name=f"{labels[1]}: {name}", load=load, ratios=ratios))
    warnings = ["the two runs were not interleaved: what changed on the machine in between counts as a difference"]
    for label, rounds in zip(labels, (first, second), strict=True):
        warnings += [f"{label}: {warning}" for warning in _troubles(rounds)]
    if _machine(first) != _machine(second):
        warnings.append("the two runs come from different machines, kernels or Pythons")
    return Comparison(
        baseline=labels[0],
        configurations=tuple(configurations),
        contrasts=tuple(contrasts),
        floors={load: dict.fromkeys(METRICS) for _, load in shared},
        warnings=tuple(warnings),
    )


def _groups(rounds: Iterable[Round]) -> dict[tuple[str, str], list[Round]]:
    """Group rounds by configuration and load, in the order in which these first ran."""
    groups: dict[tuple[str, str], list[Round]] = {}
    for done in rounds:
        groups.setdefault((done.configuration, done.load), []).append(done)
    return groups


def _configuration(name: str, load: str, group: Sequence[Round]) -> Configuration:
    valid = [done for done in group if done.verdict.valid]
    clients = [done.client for done in valid if done.client]
    driven = [done.client for done in group if done.client]
    failures = sum((Counter(client.failures) for client in driven), Counter())
    cpu_ns = _median(cpu_per_request_ns(done) for done in valid)
    verdicts = Counter(done.verdict.name for done in (valid or group))
    arrivals = [client.arrivals for client in clients if client.arrivals]
    lag = _percentiles([found.lag for found in arrivals])
    return Configuration(
        name=name,
        load=load,
        rounds=len(valid),
        invalid=len(group) - len(valid),
        rate_per_s=_median(client.rate_per_s for client in clients),
        latency=_percentiles([client.latency for client in clients]),
        service_time=_percentiles([client.service_time for client in clients]),
        offered=sum(found.offered for found in arrivals) if arrivals else None,
        missed=sum(found.missed for found in arrivals) if arrivals else None,
        lag_p99_ns=lag.p99_ns,
        failures=dict(sorted(failures.items())) if driven else None,
        censored=sum(client.censored for client in driven) if driven else None,
        retried=sum(client.retried for client in driven) if driven else None,
        cpu_per_request_us=None if cpu_ns is None else cpu_ns / 1e3,
        pss_bytes=_median(done.signals.pss_bytes if done.signals else None for done in valid),
        verdict=verdicts.most_common(1)[0][0],
        sharing=sharing(valid),
    )


def _percentiles(histograms: Sequence[Histogram]) -> Percentiles:
    whole = Histogram(histograms[0].digits) if histograms else Histogram()
    for histogram in histograms:
        whole.merge(histogram)

    def at(q: float) -> int | None:
        return whole.quantile(q) if estimable(q, whole.n) else None

    return Percentiles(
        n=whole.n,
        p50_ns=at(0.5),
        p90_ns=at(0.9),
        p99_ns=at(0.99),
        p99_9_ns=at(0.999),
        max_ns=whole.max_ns if whole.n else None,
        mean_ns=whole.mean_ns if whole.n else None,
    )


def _quantile(done: Round, q: float) -> float | None:
    if done.client is None or not estimable(q, done.client.latency.n):
        return None
    return float(done.client.latency.quantile(q))


def _ratios(base: Sequence[Round], group: Sequence[Round]) -> dict[str, Ratio | None]:
    """Divide candidate by baseline for every metric."""
    return {name: _paired(base, group, metric) for name, metric in METRICS.items()}


def _paired(base: Iterable[Round], group: Iterable[Round], metric: Metric) -> Ratio | None:
    """Pair the valid rounds of each cycle; None when no pair has the figure on both sides."""
    left = {done.cycle: metric(done) for done in base if done.verdict.valid}
    right = {done.cycle: metric(done) for done in group if done.verdict.valid}
    pairs = [(left[cycle], right[cycle]) for cycle in sorted(left.keys() & right.keys())]
    return ratio([(a, b) for a, b in pairs if a is not None and b is not None])


def _warnings(
    plan: Plan, rounds: Sequence[Round], floors: Mapping[str, Mapping[str, float | None]], contrasts: Sequence[Contrast]
) -> Iterable[str]:
    yield from _troubles(rounds)
    compared = [found for found in contrasts if found.name != plan.reference + AA_MARK]
    fewest = min((found.pairs for contrast in compared if (found := contrast.ratios["rate"])), default=MIN_PAIRS)
    if fewest < MIN_PAIRS:
        count = "1 round" if fewest == 1 else f"{fewest} rounds"
        yield f"{count} cannot show a difference; from {MIN_PAIRS} on a ratio gets an interval"
    too_early = len(compared) < len(contrasts) and fewest < MIN_PAIRS
    if compared and all(floor["rate"] is None for floor in floors.values()) and not too_early:
        yield "the noise floor was not measured (--aa): a small difference may be the machine's"
    if plan.until and (width := widest(contrasts)) and not width.within(plan.until):
        yield f"the intervals did not become as narrow as ±{100 * plan.until:.3g}%: {width.describe()} at worst"


def _troubles(rounds: Sequence[Round]) -> Iterable[str]:
    """List what happened in the rounds that a reader of the table must know."""
    reasons: dict[tuple[str, str], list[Round]] = {}
    for done in rounds:
        if not done.verdict.valid:
            reasons.setdefault((done.configuration, done.verdict.name), []).append(done)
    for (name, verdict), group in reasons.items():
        which = ", ".join(str(done.number) for done in group)
        yield f"{name}: {verdict} in round {which}: {group[0].verdict.reason}"
    for (name, note), count in Counter((done.configuration, note) for done in rounds for note in done.notes).items():
        yield f"{name}: {note} ({count} rounds)"
    if len(_machine(rounds)) > 1:
        yield "the rounds come from different machines, kernels or Pythons"


def _doubts(configurations: Iterable[Configuration]) -> Iterable[str]:
    """List where client and server count differently, and the verdict does not already say why."""
    for found in configurations:
        if found.sharing and found.sharing.doubt and found.verdict not in ("GENERATOR", "SHARED-CPU"):
            yield f"{found.name} ({found.load}): {found.sharing.doubt}"


def _machine(rounds: Iterable[Round]) -> set[tuple[object, ...]]:
    keys = ("host", "cpu", "cpus", "kernel", "python")
    return {tuple(done.provenance.get(key) for key in keys) for done in rounds}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
