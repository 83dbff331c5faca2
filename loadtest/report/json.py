"""The report as JSON: every figure with its unit in its name; null is "not known"."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtest.analysis.inference import Contrast
    from loadtest.report.model import Report

SCHEMA = 2


def render(report: Report) -> str:
    """Return the document as text."""
    return json.dumps(document(report), indent=1) + "\n"


def document(report: Report) -> dict[str, Any]:
    """Return the document as plain data. The cells of the tables name their places in it."""
    comparison = report.comparison
    return {
        "schema": SCHEMA,
        "configurations": [asdict(configuration) for configuration in comparison.configurations],
        "baseline": comparison.baseline,
        "contrasts": [_contrast(contrast) for contrast in comparison.contrasts],
        "noise_floor": comparison.floors,
        "family": asdict(comparison.family),
        "warnings": comparison.warnings,
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return asdict(contrast) | {"pairs": contrast.pairs}
