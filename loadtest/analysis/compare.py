"""Rounds -> comparison: a summary of each configuration, and each against the baseline. Pure: no files, no tables.

INVALID rounds count as such and enter nothing. GENERATOR rounds measured the generator: CPU/request alone is compared,
and requests/s if only the faster server was limited, since it is at least as much faster. With a rate requests/s are
what was asked for, and are not compared. Percentiles come from the merged histograms of the rounds, never from averages
of percentiles, and only where the number of samples can bear them. Rates, CPU and memory are medians over rounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from loadtest.analysis.inference import MIN_PAIRS, Contrast, Ratio, confirmed, ratio, unpaired, widest, without_interval
from loadtest.analysis.sharing import sharing
from loadtest.analysis.steadiness import unsteady
from loadtest.analysis.verdict import FAILED_SHARE
from loadtest.plan.plan import AA_MARK
from prefork.status.histogram import Histogram, estimable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from loadtest.analysis.sharing import Sharing
    from loadtest.data.records import Round
    from loadtest.plan.plan import Plan

    Metric = Callable[[Round], float | None]

SLEEPS = 0.2  # a request, by which configurations may differ before their CPU/request does
LOAD_BUSY = 0.7  # of a core: a load that can hardly do more
OTHERS = 0.1  # of the server's CPUs, that other processes may use before it is said


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
    sleeps_per_request: float | None  # how often a thread of the server went to sleep, per exchange
    load_busy: float | None  # of a core, the busiest process of the load
    verdict: str  # the most frequent of its rounds, or INVALID when none is valid
    sharing: Sharing | None  # None: a single process, or its workers are not known


_BY_CHANCE = 0.01  # of the comparisons of equal servers show a difference; simulated: 0 to 0.009
_BY_CHANCE_ALONE = 0.05  # the same without the baseline's second run


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The comparisons of a report, each of which may show a difference by chance."""

    comparisons: int
    single: int  # of them without the baseline's second run
    by_chance: float  # differences that as many comparisons of equal servers would show

    @classmethod
    def of(cls, contrasts: Iterable[Contrast]) -> Family:
        """Count the ratios that have an interval."""
        ratios = [found for contrast in contrasts for found in contrast.ratios.values() if found]
        known = [found for found in ratios if found.low is not None]
        by_chance = sum(_BY_CHANCE if found.twice else _BY_CHANCE_ALONE for found in known)
        return cls(
            comparisons=len(known), by_chance=round(by_chance, 2), single=sum(not found.twice for found in known)
        )

    def describe(self) -> str:
        """Say what chance alone would show."""
        most = f"{self.by_chance:.1g}" if self.by_chance < 1 else f"{self.by_chance:.2g}"
        return (
            f"of {self.comparisons} comparisons of equal servers at most about {most} would show a difference by chance"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is reported about some rounds."""

    baseline: str
    configurations: tuple[Configuration, ...]
    contrasts: tuple[Contrast, ...]
    floors: Mapping[str, Mapping[str, float | None]]  # load -> metric -> how far the baseline's two runs are apart at
    # most, as a factor; None: not measured
    family: Family
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


def _sleeps_per_request(done: Round) -> float | None:
    """Return how often the server's threads gave up a CPU by themselves, per exchange."""
    if done.client is None or not done.client.done or done.signals is None or done.signals.server is None:
        return None
    return done.signals.server.switches_voluntary / done.client.done


def _load_busy(done: Round) -> float | None:
    """Return how much of a core the busiest process of the load used."""
    if done.client is None or done.signals is None or done.signals.generator is None:
        return None
    return done.signals.generator.busiest_ns / (done.client.duration_s * 1e9)


METRICS: Mapping[str, Metric] = {
    "rate": lambda done: done.client.rate_per_s if done.client and not done.client.arrivals else None,
    "p50": lambda done: _quantile(done, 0.5),
    "p99": lambda done: _quantile(done, 0.99),
    "cpu": cpu_per_request_ns,
}


def compare(plan: Plan, rounds: Sequence[Round]) -> Comparison:
    """Summarise the rounds of one run and compare every configuration with the plan's baseline."""
    rounds = by_plan(plan, rounds)
    contrasts = contrast_all(plan, rounds)
    floors = {load.name: dict[str, float | None].fromkeys(METRICS) for load in plan.loads}
    compared = []
    for each in contrasts:
        if each.name == plan.reference + AA_MARK:
            floors[each.load] = {metric: found.reach if found else None for metric, found in each.ratios.items()}
        else:
            compared.append(each)
    family = Family.of(compared)
    configurations = [_configuration(name, load, group) for (name, load), group in _groups(rounds).items()]
    warnings = [*_troubles(rounds), *_warnings(plan, contrasts, family), *_doubts(configurations)]
    warnings += _sleepy_cpu(configurations)
    return Comparison(
        baseline=plan.reference,
        configurations=tuple(configurations),
        contrasts=tuple(contrasts),
        floors=floors,
        family=family,
        warnings=tuple(warnings),
    )


def by_plan(plan: Plan, rounds: Iterable[Round]) -> list[Round]:
    """Return the rounds in the order in which the plan names loads and servers, and not in which they ran by chance."""
    names = [server.name for server in plan.servers]
    places = {name: place for place, name in enumerate([*names, plan.reference + AA_MARK])}
    loads = {load.name: place for place, load in enumerate(plan.loads)}
    last = len(places) + len(loads)
    return sorted(rounds, key=lambda done: (loads.get(done.load, last), places.get(done.configuration, last)))


def contrast_all(plan: Plan, rounds: Sequence[Round]) -> list[Contrast]:
    """Compare every configuration, the baseline's second run too, with the baseline under the same load."""
    groups = _groups(rounds)
    found = []
    for load in plan.loads:
        base, again = (groups.get((name, load.name), []) for name in (plan.reference, plan.reference + AA_MARK))
        for (name, under), group in groups.items():
            if under == load.name and name != plan.reference:
                ratios = {metric: _ratio(metric, base, group, again) for metric in METRICS}
                found.append(Contrast(name=name, load=load.name, ratios=ratios))
    return found


def across(first: Sequence[Round], second: Sequence[Round], labels: tuple[str, str], anchor: str = "") -> Comparison:
    """Compare two runs, configuration by configuration where both have it. The first run is the baseline.

    Their rounds were not measured side by side, so what changed on the machine in between is in every quotient, and no
    difference is claimed. With an `anchor`, a configuration that is the same server in both, the others are compared by
    their ratios to it, which know nothing of such changes as far as these meet both alike.
    """
    groups = [_groups(first), _groups(second)]
    shared = [key for key in groups[0] if key in groups[1] and not key[0].endswith(AA_MARK)]
    configurations = []
    contrasts = []
    for name, load in shared:
        for label, group in zip(labels, groups, strict=True):
            configurations.append(_configuration(f"{label}: {name}", load, group[name, load]))
        ratios = {metric: _anchored(metric, groups, name, load, anchor) for metric in METRICS}
        contrasts.append(Contrast(name=f"{labels[1]}: {name}", load=load, ratios=ratios))
    warnings = [_NOT_SIDE_BY_SIDE + (_BY_ANCHOR.format(anchor) if anchor else _NO_ANCHOR)]
    for label, rounds in zip(labels, (first, second), strict=True):
        warnings += [f"{label}: {warning}" for warning in _troubles(rounds)]
    if _machine(first) != _machine(second):
        warnings.append("the two runs come from different machines, kernels or Pythons")
    return Comparison(
        baseline=labels[0],
        configurations=tuple(configurations),
        contrasts=tuple(contrasts),
        floors={load: dict.fromkeys(METRICS) for _, load in shared},
        family=Family.of(contrasts),
        warnings=tuple(warnings),
    )


_NOT_SIDE_BY_SIDE = "the two runs were not interleaved, and the machine may have changed in between: "
_NO_ANCHOR = "no difference is claimed; that needs one baseline in both runs, beside other servers"
_BY_ANCHOR = "ratios are those of the ratios to {0}, which both runs have; of {0} itself no difference is claimed"


def _anchored(
    metric: str, groups: Sequence[Mapping[tuple[str, str], list[Round]]], name: str, load: str, anchor: str
) -> Ratio | None:
    """Divide a configuration's figures in the second run by those in the first; relative to the anchor's if it can."""
    measure = METRICS[metric]

    def relative(reference: str) -> list[list[float]]:
        runs = [(group.get((reference, load), []), group[name, load]) for group in groups]
        if metric != "cpu":
            runs = [(_of_the_server(base), _of_the_server(each)) for base, each in runs]
        return [[b / a for a, b in _pairs(base, each, measure) if a > 0] for base, each in runs]

    if anchor and name != anchor:
        before, after = relative(anchor)
        if found := unpaired(before, after):
            return confirmed(found, unpaired(*relative(anchor + AA_MARK)))
    plain = [[measure(done) for done in group[name, load] if done.verdict.valid] for group in groups]
    return without_interval(unpaired(*([value for value in values if value is not None] for values in plain)))


def _groups(rounds: Iterable[Round]) -> dict[tuple[str, str], list[Round]]:
    """Group rounds by configuration and load, in the order in which these first appear."""
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
        sleeps_per_request=_median(_sleeps_per_request(done) for done in valid),
        load_busy=_median(_load_busy(done) for done in valid),
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


def _ratio(metric: str, base: Sequence[Round], group: Sequence[Round], again: Sequence[Round]) -> Ratio | None:
    """Divide candidate by baseline, and ask the baseline's second run; None when no pair has both figures."""
    measure = METRICS[metric]
    if metric == "cpu":
        return ratio(_pairs(base, group, measure), _pairs(again, group, measure))
    left, right, second = map(_of_the_server, (base, group, again))
    found = ratio(_pairs(left, right, measure), _pairs(second, right, measure))
    if metric != "rate" or (found and found.low is not None):
        return found
    every = ratio(_pairs(base, group, measure), _pairs(again, group, measure))
    if every is None or not every.differs:
        return without_interval(every)
    # What limits the faster one makes the difference smaller, so one that shows is there; the slower one is not known.
    slower = group if every.median < 1 else [*base, *again]
    return every if len(_of_the_server(slower)) == len(slower) else without_interval(every)


def _of_the_server(rounds: Iterable[Round]) -> list[Round]:
    """Leave out the rounds whose latency and requests/s are the generator's."""
    return [done for done in rounds if done.verdict.name != "GENERATOR"]


def _pairs(base: Iterable[Round], group: Iterable[Round], metric: Metric) -> list[tuple[float, float]]:
    """Pair the figures of the valid rounds of each cycle."""
    left = {done.cycle: metric(done) for done in base if done.verdict.valid}
    right = {done.cycle: metric(done) for done in group if done.verdict.valid}
    pairs = [(left[cycle], right[cycle]) for cycle in sorted(left.keys() & right.keys())]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _warnings(plan: Plan, contrasts: Sequence[Contrast], family: Family) -> Iterable[str]:
    compared = [found for found in contrasts if found.name != plan.reference + AA_MARK]
    fewest = min((found.pairs for found in compared if found.pairs), default=MIN_PAIRS)
    if fewest < MIN_PAIRS:
        count = "1 round" if fewest == 1 else f"{fewest} rounds"
        yield f"{count} cannot show a difference; from {MIN_PAIRS} on a ratio gets an interval"
    if family.single:
        # Without --aa, or because too few rounds of the second run are valid.
        once = f"{family.single} ratios did not have to differ from a second run of the baseline (--aa)"
        yield f"{once}: {family.describe()}"
    if plan.until and (width := widest(contrasts)) and not width.within(plan.until):
        yield f"the intervals did not become as narrow as ±{100 * plan.until:.3g}%: {width.describe()} at worst"


def _troubles(rounds: Sequence[Round]) -> Iterable[str]:
    """List what happened in the rounds that a reader of the table must know."""
    again = {done.again: done.number for done in rounds if done.again is not None}
    reasons: dict[tuple[str, str], list[Round]] = {}
    for done in rounds:
        if not done.verdict.valid:
            reasons.setdefault((done.configuration, done.verdict.name), []).append(done)
    for (name, verdict), group in reasons.items():
        which = ", ".join(_numbered(done.number, again.get(done.number)) for done in group)
        yield f"{name}: {verdict} in round {which}: {group[0].verdict.reason}"
    limited: dict[str, list[str]] = {}
    for (name, load), group in _groups(rounds).items():
        yield from (f"{name} ({load}): {warning}" for warning in _losses(group))
        yield from (f"{name} ({load}): {warning}" for warning in unsteady(group))
        if hit := sum(done.verdict.name == "GENERATOR" for done in group):
            limited.setdefault(load, []).append(f"{name} {hit} of {len(group)}")
    for load, names in limited.items():
        which = f"{load}: the generator was the limit in rounds of {', '.join(names)}"
        yield f"{which}; no latency of these is compared, and no requests/s of the slower of two servers"
    total = Counter(done.configuration for done in rounds)
    for (name, note), count in Counter((done.configuration, note) for done in rounds for note in done.notes).items():
        yield f"{name}: {note} ({count} of {total[name]} rounds)"
    yield from _others(rounds)
    if len(_machine(rounds)) > 1:
        yield "the rounds come from different machines, kernels or Pythons"


def _numbered(number: int, again: int | None) -> str:
    return str(number) if again is None else f"{number} (measured again as round {again})"


def _losses(group: Sequence[Round]) -> Iterable[str]:
    """Say what the rounds of one configuration that are not used mean for those that are."""
    invalid = sum(done.verdict.name == "INVALID" for done in group)
    valid = sum(done.verdict.valid for done in group)
    if valid and 3 * invalid > len(group):
        yield f"{invalid} of {len(group)} rounds are INVALID: what the others say is not what this server usually does"


def _others(rounds: Sequence[Round]) -> Iterable[str]:
    """Say that other processes used the machine, if they did in some rounds."""
    seen = [(done.signals.others_cores or 0.0, done.signals.cpus) for done in rounds if done.signals]
    much = [(cores, cpus) for cores, cpus in seen if cpus and cores > OTHERS * cpus]
    if much:
        cores, cpus = max(much)
        of = "1 core" if cpus == 1 else f"{cpus} cores"
        yield f"other processes used up to {cores:.1f} of {of}, in {len(much)} of {len(seen)} rounds"


def _sleepy_cpu(configurations: Sequence[Configuration]) -> Iterable[str]:
    """List whose CPU/request has more sleeps in it than another's, because the load could not keep the server awake.

    A server that is faster than the load waits for it, and is charged for going to sleep and being woken. With a rate
    all wait, as they should.
    """
    for found in configurations:
        if found.offered is not None:
            continue
        others = [each.sleeps_per_request for each in configurations if each.load == found.load]
        fewest = min((sleeps for sleeps in others if sleeps is not None), default=0.0)
        sleeps = found.sleeps_per_request
        at_limit = found.verdict == "GENERATOR" or (found.load_busy or 0.0) >= LOAD_BUSY
        if sleeps is not None and sleeps > fewest + SLEEPS and at_limit:
            yield (
                f"{found.name} ({found.load}): CPU/request includes {sleeps:.1f} sleeps a request, another's "
                f"{fewest:.1f}: the load was the limit; more --generators saturate it"
            )


def _doubts(configurations: Sequence[Configuration]) -> Iterable[str]:
    """List where client and server count differently, or connections are unevenly held, and no verdict says so."""
    for found in configurations:
        if found.retried and found.retried > FAILED_SHARE * found.latency.n:
            yield (
                f"{found.name} ({found.load}): {found.retried:,} requests were sent once more, as their kept "
                "connection ended before any byte of the answer; a POST would be lost. --no-retry counts them as failed"
            )
        if found.sharing and found.sharing.uneven and found.verdict != "UNEVEN":
            yield f"{found.name} ({found.load}): {found.sharing.uneven}"
        if found.sharing and found.sharing.doubt and found.verdict not in ("GENERATOR", "SHARED-CPU"):
            yield f"{found.name} ({found.load}): {found.sharing.doubt}"


def _machine(rounds: Iterable[Round]) -> set[tuple[object, ...]]:
    keys = ("host", "cpu", "cpus", "kernel", "python")
    return {tuple(done.provenance.get(key) for key in keys) for done in rounds}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
