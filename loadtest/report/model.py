"""The tables and notes of a report, before they are written in any format: a comparison, its plan and its rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from loadtest.data import figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtest.analysis.compare import Comparison, Configuration
    from loadtest.analysis.inference import Contrast, Ratio
    from loadtest.data.records import Round
    from loadtest.plan.plan import Plan

NO_DIFFERENCE = "~"
_COLUMNS = (  # and where in the JSON of a configuration their figures are
    ("configuration", "name"),
    ("requests/s", "rate_per_s"),
    ("p50", "latency.p50_ns"),
    ("p90", "latency.p90_ns"),
    ("p99", "latency.p99_ns"),
    ("p99.9", "latency.p99_9_ns"),
    ("max", "latency.max_ns"),
    ("failures", "failures"),
    ("CPU/request", "cpu_per_request_us"),
    ("PSS", "pss_bytes"),
    ("verdict", "verdict"),
)
_HEADERS = tuple(title for title, _ in _COLUMNS)
_METRICS = (("rate", "requests/s"), ("p50", "p50"), ("p99", "p99"), ("cpu", "CPU/request"))
_ENDS = ("in_flight", "in_workers", "in_queue", "elsewhere")
SHARING = (
    "by worker",
    "workers",
    "shares of",
    "Jain",
    "busiest/least",
    "connections",
    *(name.replace("_", " ") for name in _ENDS),
)
_BESIDE = ("p50_ns", "p90_ns", "p99_ns")


class Cell(NamedTuple):
    """A figure as text, and its place in the JSON, such as `configurations.0.name`; empty without one."""

    text: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table, in any format."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def alignment(self) -> list[str]:
        """Return each column's alignment: names and verdicts on the left, figures on the right."""
        return ["left" if header == "verdict" or number == 0 else "right" for number, header in enumerate(self.headers)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A comparison with the plan and the rounds that it is about."""

    plan: Plan
    rounds: Sequence[Round]
    comparison: Comparison

    @property
    def loads(self) -> list[str]:
        """The names of the loads that something was measured under."""
        return list(dict.fromkeys(configuration.load for configuration in self.comparison.configurations))

    def tables(self, load: str) -> list[Table]:
        """Return the tables about one load that have rows."""
        found = (self._figures(load), self._schedule(load), self._sharing(load), self._ratios(load))
        return [table for table in found if table.rows]

    def _figures(self, load: str) -> Table:
        rows = []
        for at, found in self._under(load):
            places = [f"configurations.{at}.{field}" for _, field in _COLUMNS]
            rows.append(_cells(self._row(found), [*places, self._place(self.comparison.contrast(found), "rate")]))
        return Table(headers=(*_HEADERS, f"vs {self.comparison.baseline}"), rows=tuple(rows))

    def _under(self, load: str) -> list[tuple[int, Configuration]]:
        """Return the configurations under a load, with their numbers in the JSON."""
        return [(at, found) for at, found in enumerate(self.comparison.configurations) if found.load == load]

    def _row(self, found: Configuration) -> list[str]:
        latency = found.latency
        cpu_us = found.cpu_per_request_us
        percentiles = (latency.p50_ns, latency.p90_ns, latency.p99_ns, latency.p99_9_ns, latency.max_ns)
        return [
            found.name,
            figures.rate(found.rate_per_s),
            *(figures.duration(value) for value in percentiles),
            figures.UNKNOWN if found.failures is None else f"{sum(found.failures.values()):,}",
            figures.duration(None if cpu_us is None else cpu_us * 1e3),
            figures.size(found.pss_bytes),
            found.verdict,
            self._against(self.comparison.contrast(found), "rate"),
        ]

    def _schedule(self, load: str) -> Table:
        """Tabulate the open model: latency beside service time, and how the schedule was kept."""
        clocks = [f"{clock}.{name}" for clock in ("latency", "service_time") for name in _BESIDE]
        rows = []
        for at, each in self._under(load):
            if each.offered is None:
                continue
            cells = [
                each.name,
                f"{each.offered:,}",
                f"{each.missed:,}",
                figures.duration(each.lag_p99_ns),
                *(figures.duration(getattr(each.latency, name)) for name in _BESIDE),
                *(figures.duration(getattr(each.service_time, name)) for name in _BESIDE),
            ]
            fields = ("name", "offered", "missed", "lag_p99_ns", *clocks)
            rows.append(_cells(cells, [f"configurations.{at}.{field}" for field in fields]))
        columns = [f"{clock} {name[:3]}" for clock in ("from due", "from send") for name in _BESIDE]
        return Table(headers=("by schedule", "came due", "missed", "lag p99", *columns), rows=tuple(rows))

    def _sharing(self, load: str) -> Table:
        """Tabulate how evenly the workers shared the work, and where the exchanges in flight were."""
        rows = []
        for at, each in self._under(load):
            if not (found := each.sharing):
                continue
            most = found.busiest_to_least
            held = figures.span(found.held_least, found.held_most)
            fair = (figures.index(found.jain), figures.UNKNOWN if most is None else figures.times(most), held)
            ends = [figures.level(getattr(found, name)) for name in _ENDS]
            names = ("workers", "by", "jain", "busiest_to_least", "held_most", *_ENDS)
            places = [f"configurations.{at}.{field}" for field in ("name", *(f"sharing.{name}" for name in names))]
            rows.append(_cells([each.name, str(found.workers), found.by, *fair, *ends], places))
        return Table(headers=SHARING, rows=tuple(rows))

    def _ratios(self, load: str) -> Table:
        """Tabulate every configuration against the baseline, by all metrics."""
        rows = []
        for at, contrast in enumerate(self.comparison.contrasts):
            if contrast.load != load:
                continue
            cells = [contrast.name, str(contrast.pairs)]
            places = [f"contrasts.{at}.name", f"contrasts.{at}.pairs"]
            cells += [self._against(contrast, metric) for metric, _ in _METRICS]
            places += [self._place(contrast, metric) for metric, _ in _METRICS]
            rows.append(_cells(cells, places))
        headers = (f"ratio to {self.comparison.baseline}", "rounds", *(title for _, title in _METRICS))
        return Table(headers=headers, rows=tuple(rows))

    def _place(self, contrast: Contrast | None, metric: str) -> str:
        return f"contrasts.{self.comparison.contrasts.index(contrast)}.ratios.{metric}" if contrast else ""

    def _against(self, contrast: Contrast | None, metric: str) -> str:
        return "" if contrast is None else _ratio(contrast.ratios[metric])

    def notes(self) -> list[str]:
        """Return what a reader needs beside the tables, as lines."""
        measured = sum(done.verdict.valid for done in self.rounds)
        yes = f"; pinned {self.plan.pin} (server:load)" if self.plan.pin else ""
        lines = [f"plan {self.plan.name}: {load.describe()}{yes}" for load in self.plan.loads]
        order = "interleaved" if self.plan.seed is None else f"in random order (seed {self.plan.seed})"
        if self.comparison.baseline != self.plan.reference:
            order = "of two runs"
        fresh = "" if any(server.attach for server in self.plan.servers) else ", a fresh server for each"
        lines.append(f"rounds: {measured} measured, {len(self.rounds) - measured} not; {order}{fresh}")
        family = self.comparison.family
        lines += [f"chance: {family.describe()}"] if family.comparisons else []
        for load, floor in self.comparison.floors.items():
            known = [f"{reach - 1:.1%} in {title}" for name, title in _METRICS if (reach := floor[name]) is not None]
            lines += [f"noise ({load}): two runs of one server differ by up to {', '.join(known)}"] if known else []
        lines += self._reasons()
        for found in self.comparison.configurations:
            name = self._called(found)
            if found.failures:
                causes = ", ".join(f"{count} {cause}" for cause, count in found.failures.items())
                lines.append(f"failures of {name}: {causes}")
            if found.censored:
                lines.append(f"cut off by the end of their rounds, of {name}: {found.censored:,}; in no latency")
            if found.retried:
                lines.append(f"sent once more, of {name}: {found.retried:,}")
        return [*lines, "host: " + _host(self.rounds[-1].provenance)]

    def _called(self, found: Configuration) -> str:
        """Name a configuration, with its load where there are several."""
        return found.name if len(self.loads) == 1 else f"{found.name} ({found.load})"

    def _reasons(self) -> list[str]:
        """Return for each configuration the reason of its verdict, from its last round with that verdict."""
        lines = []
        for found in self.comparison.configurations:
            same = [done for done in self.rounds if (done.configuration, done.load) == (found.name, found.load)]
            last = [done.verdict for done in same if done.verdict.valid and done.verdict.name == found.verdict][-1:]
            lines += [f"{self._called(found)}: {found.verdict}: {verdict.reason}" for verdict in last]
        return lines


def _ratio(ratio: Ratio | None) -> str:
    """Write a ratio with its interval; `~` when no difference was shown; with n when it has no interval."""
    if ratio is None:
        return figures.UNKNOWN
    if ratio.low is None or ratio.high is None:
        return f"{ratio.median:.2f}x (n={ratio.pairs})"
    if not ratio.differs:
        return NO_DIFFERENCE
    return f"{figures.times(ratio.median)} [{figures.times(ratio.low)}, {figures.times(ratio.high)}]"


def _cells(texts: Sequence[str], places: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(Cell(text, place) for text, place in zip(texts, places, strict=True))


def _host(provenance: Mapping[str, Any]) -> str:
    versions = [f"{name} {version}" for name, version in provenance["versions"].items() if version]
    commit = (provenance["commit"] or "")[:10]
    changes = " with changes not committed" if provenance["dirty"] else ""
    return ", ".join(
        [
            f"{provenance['cpus']} CPUs ({provenance['cpu'] or provenance['machine']})",
            f"Linux {provenance['kernel']}",
            f"Python {provenance['python']}",
            *versions,
            *([f"commit {commit}{changes}"] if commit else []),
        ]
    )
