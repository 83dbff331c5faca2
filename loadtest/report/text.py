"""The report as text for a terminal, or as Markdown for a page on GitHub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from loadtest.report.model import Report, Table


def text(report: Report) -> str:
    """Return the tables with aligned columns, then the notes."""
    return _render(report, table_format="simple", title="Load {}:", bullet="")


def github(report: Report) -> str:
    """Return the tables in GitHub's Markdown, then the notes as a list."""
    return _render(report, table_format="github", title="### {}", bullet="- ")


def _render(report: Report, *, table_format: str, title: str, bullet: str) -> str:
    parts = []
    for load in report.loads:
        if len(report.loads) > 1:
            parts.append(title.format(load))
        parts += [_table(table, table_format) for table in report.tables(load)]
    lines = report.notes() + [f"warning: {warning}" for warning in report.comparison.warnings]
    return "\n\n".join([*parts, "\n".join(bullet + line for line in lines)]) + "\n"


def _table(table: Table, table_format: str) -> str:
    rows = [[cell.text for cell in row] for row in table.rows]
    return tabulate(rows, table.headers, table_format, disable_numparse=True, colalign=table.alignment())
