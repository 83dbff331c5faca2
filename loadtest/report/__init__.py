"""A comparison as people and programs read it: one model, and a module for each format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.report import csv, json, text
from loadtest.report.html import page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadtest.report.model import Report

FORMATS: Mapping[str, Callable[[Report], str]] = {
    "text": text.text,
    "github": text.github,
    "json": json.render,
    "csv": csv.render,
    "html": page.render,
}


def render(report: Report, form: str) -> str:
    """Return the report in one of FORMATS, ending in a newline."""
    return FORMATS[form](report)
