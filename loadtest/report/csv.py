"""The report as CSV: one line for each configuration, with the units of the JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from loadtest.analysis.sharing import Sharing

if TYPE_CHECKING:
    from loadtest.analysis.compare import Comparison, Configuration
    from loadtest.report.model import Report


def render(report: Report) -> str:
    """Return the lines as text, with a heading."""
    table = [_row(report.comparison, found) for found in report.comparison.configurations]
    output = io.StringIO()
    writer = csv.DictWriter(output, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return output.getvalue()


def _row(comparison: Comparison, found: Configuration) -> dict[str, object]:
    flat = asdict(found)
    for kind in ("latency", "service_time"):
        flat |= {f"{kind}_{name}": value for name, value in flat.pop(kind).items()}
    shared = flat.pop("sharing") or {}
    flat |= {f"sharing_{field.name}": shared.get(field.name) for field in fields(Sharing)}
    failures = flat.pop("failures")
    flat["failures"] = None if failures is None else sum(failures.values())
    return flat | _ratio(comparison, found)


def _ratio(comparison: Comparison, found: Configuration) -> dict[str, object]:
    contrast = comparison.contrast(found)
    ratio = contrast.ratios["rate"] if contrast else None
    return {
        "rate_ratio": ratio.median if ratio else None,
        "rate_ratio_low": ratio.low if ratio else None,
        "rate_ratio_high": ratio.high if ratio else None,
        "rate_differs": ratio.differs if ratio else None,
    }
