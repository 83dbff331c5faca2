"""Comparison -> text, GitHub Markdown, JSON or CSV. Renders; computes nothing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from . import figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .compare import Comparison, Configuration, Contrast
    from .plan import Plan
    from .record import Round

FORMATS = ("text", "github", "json", "csv")
SCHEMA = 1
_HEADERS = (
    "configuration",
    "requests/s",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
    "failures",
    "CPU/request",
    "PSS",
    "verdict",
)
_METRICS = (("rate", "requests/s"), ("p50", "p50"), ("p99", "p99"), ("cpu", "CPU/request"))
_BESIDE = ("p50_ns", "p90_ns", "p99_ns")
_TABLES = {"text": "simple", "github": "github"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A comparison with the plan and the rounds that it is about."""

    plan: Plan
    rounds: Sequence[Round]
    comparison: Comparison

    def render(self, form: str) -> str:
        """The report in one of FORMATS, ending in a newline."""
        if form == "json":
            return json.dumps(self.to_json(), indent=1) + "\n"
        if form == "csv":
            return self._csv()
        loads = list(dict.fromkeys(configuration.load for configuration in self.comparison.configurations))
        parts = []
        for load in loads:
            parts += [_title(load, form)] if len(loads) > 1 else []
            parts += [self._table(load, form), self._schedule(load, form), self._ratios(load, form)]
        lines = [("- " if form == "github" else "") + line for line in self._notes()]
        return "\n\n".join([part for part in parts if part] + ["\n".join(lines)]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """As plain data; a figure's unit is in its name, null is "not known"."""
        return {
            "schema": SCHEMA,
            "configurations": [asdict(configuration) for configuration in self.comparison.configurations],
            "baseline": self.comparison.baseline,
            "contrasts": [asdict(contrast) for contrast in self.comparison.contrasts],
            "noise_floor": self.comparison.floors,
            "warnings": self.comparison.warnings,
        }

    def _table(self, load: str, form: str) -> str:
        rows = [self._row(found) for found in self.comparison.configurations if found.load == load]
        headers = [*_HEADERS, f"vs {self.comparison.baseline}"]
        return tabulate(rows, headers, _TABLES[form], disable_numparse=True, colalign=_align(headers))

    def _row(self, found: Configuration) -> list[str]:
        latency, cpu_us = found.latency, found.cpu_per_request_us
        percentiles = (latency.p50_ns, latency.p90_ns, latency.p99_ns, latency.p99_9_ns, latency.max_ns)
        return [
            found.name,
            figures.rate(found.rate_per_s),
            *(figures.duration(value) for value in percentiles),
            figures.UNKNOWN if found.failures is None else f"{sum(found.failures.values()):,}",
            figures.duration(None if cpu_us is None else cpu_us * 1e3),
            figures.size(found.pss_bytes),
            found.verdict,
            self._against(self.comparison.contrast(found), found.load, "rate"),
        ]

    def _schedule(self, load: str, form: str) -> str:
        """The open model: what users feel beside what the server took, and how the schedule was kept."""
        found = [each for each in self.comparison.configurations if each.load == load and each.offered is not None]
        rows = [
            [
                each.name,
                f"{each.offered:,}",
                f"{each.missed:,}",
                figures.duration(each.lag_p99_ns),
                *(figures.duration(getattr(each.latency, name)) for name in _BESIDE),
                *(figures.duration(getattr(each.service_time, name)) for name in _BESIDE),
            ]
            for each in found
        ]
        columns = [f"{clock} {name[:3]}" for clock in ("from due", "from send") for name in _BESIDE]
        headers = ["by schedule", "came due", "missed", "lag p99", *columns]
        return tabulate(rows, headers, _TABLES[form], disable_numparse=True, colalign=_align(headers)) if rows else ""

    def _ratios(self, load: str, form: str) -> str:
        """Every configuration against the baseline, by more than its rate."""
        contrasts = [found for found in self.comparison.contrasts if found.load == load]
        headers = [f"ratio to {self.comparison.baseline}", "rounds", *(title for _, title in _METRICS)]
        rows = []
        for contrast in contrasts:
            rate = contrast.ratios["rate"]
            cells = [self._against(contrast, load, metric) for metric, _ in _METRICS]
            rows.append([contrast.name, str(rate.pairs) if rate else "0", *cells])
        return tabulate(rows, headers, _TABLES[form], disable_numparse=True, colalign=_align(headers)) if rows else ""

    def _against(self, contrast: Contrast | None, load: str, metric: str) -> str:
        if contrast is None:
            return ""
        return figures.comparison(contrast.ratios[metric], self.comparison.floors[load][metric])

    def _notes(self) -> list[str]:
        measured = sum(done.verdict.valid for done in self.rounds)
        yes = f"; pinned {self.plan.pin} (server:load)" if self.plan.pin else ""
        lines = [f"plan {self.plan.name}: {load.describe()}{yes}" for load in self.plan.loads]
        lines.append(
            f"rounds: {measured} measured, {len(self.rounds) - measured} not; interleaved, a fresh server for each"
        )
        floors = [(load, floor["rate"]) for load, floor in self.comparison.floors.items()]
        lines += [
            f"noise floor ({load}): two runs of one server differ by up to {reach - 1:.1%} in requests/s"
            for load, reach in floors
            if reach is not None
        ]
        lines += self._reasons()
        failed = [(found.name, found.failures) for found in self.comparison.configurations if found.failures]
        lines += [
            f"failures of {name}: " + ", ".join(f"{n} {cause}" for cause, n in some.items()) for name, some in failed
        ]
        lines.append("host: " + _host(self.rounds[-1].provenance))
        return lines + [f"warning: {warning}" for warning in self.comparison.warnings]

    def _reasons(self) -> list[str]:
        """For each configuration the number behind its verdict, from its last round with that verdict."""
        lines = []
        for found in self.comparison.configurations:
            same = [done for done in self.rounds if (done.configuration, done.load) == (found.name, found.load)]
            last = [done.verdict for done in same if done.verdict.valid and done.verdict.name == found.verdict][-1:]
            lines += [f"{found.name}: {found.verdict}: {verdict.reason}" for verdict in last]
        return lines

    def _csv(self) -> str:
        """One line a configuration, with the units of the JSON."""
        table = []
        for found in self.comparison.configurations:
            flat = asdict(found)
            for kind in ("latency", "service_time"):
                flat |= {f"{kind}_{name}": value for name, value in flat.pop(kind).items()}
            failures = flat.pop("failures")
            table.append(
                flat | {"failures": None if failures is None else sum(failures.values())} | self._csv_ratio(found)
            )
        output = io.StringIO()
        writer = csv.DictWriter(output, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        return output.getvalue()

    def _csv_ratio(self, found: Configuration) -> dict[str, object]:
        contrast = self.comparison.contrast(found)
        ratio = contrast.ratios["rate"] if contrast else None
        differs = ratio.differs(self.comparison.floors[found.load]["rate"]) if ratio else None
        names = ("rate_ratio", "rate_ratio_low", "rate_ratio_high")
        values = (ratio.median, ratio.low, ratio.high) if ratio else (None, None, None)
        return {**dict(zip(names, values, strict=True)), "rate_differs": differs}


def _align(headers: Sequence[str]) -> list[str]:
    return ["left" if header == "verdict" or number == 0 else "right" for number, header in enumerate(headers)]


def _title(load: str, form: str) -> str:
    return f"### {load}" if form == "github" else f"Load {load}:"


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
