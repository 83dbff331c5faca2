"""The report as a page: the tables of the other formats, with charts beside them, then the plan and the machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.report import json
from loadtest.report.html import charts, evidence
from loadtest.report.html.markup import Markup, element, exact, join

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from loadtest.analysis.compare import Configuration
    from loadtest.data.records import Round
    from loadtest.report.model import Cell, Report, Table


COLOURS = 8
"""Classes c0, c1, ... of the style sheet."""

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_NAMED = dict(zip(evidence.NAMED, ("p50_ns", "p90_ns", "p99_ns", "p99_9_ns"), strict=True))
_PERCENTILES = "Dots: the figures of the table. A curve ends where the samples are too few to go on."
_CLOCKS = " Solid: from when an exchange was due. Dashed: from when it was sent."
_TIMELINE = (
    "Thick: the median of the rounds, second by second. Thin: each round. Latency: p99 solid, p50 dotted, where a "
    "second has exchanges enough for it. Shaded: connections in the accept queue, scale on the right. Each drawing has "
    "scales of its own."
)
_SHARES = "Columns: the mean of the rounds. Dots: each round. Line: where all workers would do the same."


def render(report: Report) -> str:
    """Return the whole page, ending in a newline."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{report.plan.name}: load report"),
        element("style", Markup(_STYLE.read_text("utf-8"))),
    )
    body = element("body", element("main", *_Page(report).parts()))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


class _Page:
    """The parts of the page, from top to bottom."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._json = json.document(report)
        names = dict.fromkeys(found.name for found in report.comparison.configurations)
        self._colours = {name: f"c{number % COLOURS}" for number, name in enumerate(names)}

    def parts(self) -> Iterable[Markup]:
        """Yield header, warnings, a section for each load, notes, provenance."""
        report = self._report
        yield _header(report)
        if warnings := report.comparison.warnings:
            yield element("section", element("h2", "Warnings"), _list(warnings), class_="warnings")
        for load in report.loads:
            yield element("section", *self._load(load))
        yield element("section", element("h2", "Notes"), _list(report.notes()))
        yield element("section", element("h2", "Provenance"), *facts(report))

    def _load(self, load: str) -> Iterable[Markup]:
        """Yield everything about one load."""
        found = [(at, each) for at, each in enumerate(self._report.comparison.configurations) if each.load == load]
        rounds = {each.name: _entered(self._report.rounds, each) for _, each in found}
        yield element("h2", f"Load {load}")
        yield element("p", *(each.describe() for each in self._report.plan.loads if each.name == load), class_="quiet")
        for table in self._report.tables(load):
            yield self._table(table)
        yield from self._percentiles([curve for at, each in found for curve in self._curves(at, each)])
        lines = {name: line for name, done in rounds.items() if (line := evidence.timeline(done))}
        split = {name: shares for name, done in rounds.items() if (shares := evidence.shares(done))}
        yield from self._panels(
            "Over time", _TIMELINE, {name: charts.over_time(name, line) for name, line in lines.items()}
        )
        yield from self._panels(
            "Share of each worker", _SHARES, {name: charts.shares(name, each) for name, each in split.items()}
        )

    def _table(self, table: Table) -> Markup:
        sides = table.alignment()
        heads = zip(table.headers, sides, strict=True)
        titles = element("tr", *(element("th", title, scope="col", class_=side) for title, side in heads))
        rows = [
            element(
                "tr",
                *(self._cell(cell, side, number) for number, (cell, side) in enumerate(zip(row, sides, strict=True))),
            )
            for row in table.rows
        ]
        grid = element("table", element("thead", titles), element("tbody", *rows))
        label = f"Table: {table.headers[0]}"
        return element("div", grid, class_="scroll", role="region", tabindex="0", aria_label=label)

    def _cell(self, cell: Cell, side: str, number: int) -> Markup:
        """Write one cell; the first of a row is the name of a configuration."""
        data = {"data_figure": cell.place, "data_value": exact(_at(self._json, cell.place))} if cell.place else {}
        if number:
            return element("td", cell.text, class_=side, **data)
        colour = self._colours.get(cell.text, "")
        return element("th", element("span", cell.text), scope="row", class_=f"{side} {colour}", **data)

    def _percentiles(self, curves: Sequence[charts.Curve]) -> Iterable[Markup]:
        if not curves:
            return
        names = dict.fromkeys(curve.name for curve in curves)
        legend = [element("li", element("span", name), class_=self._colours[name]) for name in names]
        scheduled = any(curve.clock == "service_time" for curve in curves)
        yield element("h3", "Latency by percentile")
        yield element(
            "figure",
            element("ul", *legend, class_="legend"),
            *(charts.percentiles(curves, width) for width in (charts.WIDE, charts.NARROW)),
            element("figcaption", _PERCENTILES + (_CLOCKS if scheduled else "")),
        )

    def _curves(self, at: int, found: Configuration) -> Iterable[charts.Curve]:
        """Yield the latency of a configuration and, in the open model, its service time."""
        clients = [done.client for done in _entered(self._report.rounds, found) if done.client]
        for clock in ("latency", "service_time") if found.offered is not None else ("latency",):
            points = evidence.percentiles([getattr(client, clock) for client in clients])
            known = {share: getattr(getattr(found, clock), name) for share, name in _NAMED.items()}
            places = {share: f"configurations.{at}.{clock}.{name}" for share, name in _NAMED.items()}
            figures = tuple((share, ns, places[share]) for share, ns in known.items() if ns is not None)
            colour = self._colours[found.name]
            if points:
                yield charts.Curve(name=found.name, clock=clock, colour=colour, points=points, figures=figures)

    def _panels(self, title: str, caption: str, drawings: Mapping[str, Markup]) -> Iterable[Markup]:
        """Yield small drawings side by side, one for each configuration."""
        if not drawings:
            return
        panels = [
            element("div", element("h4", element("span", name)), drawn, class_=self._colours[name])
            for name, drawn in drawings.items()
        ]
        yield element("h3", title)
        yield element("figure", element("div", *panels, class_="panels"), element("figcaption", caption))


def _entered(rounds: Iterable[Round], found: Configuration) -> list[Round]:
    """Return the rounds that a configuration's figures come from."""
    key = (found.name, found.load)
    return [done for done in rounds if (done.configuration, done.load) == key and done.verdict.valid]


def _header(report: Report) -> Markup:
    first, last = (pick(done.started for done in report.rounds) for pick in (min, max))
    names = " · ".join(dict.fromkeys(found.name for found in report.comparison.configurations))
    when = f"{first} to {last}" if last != first else first
    when = when.replace("T", " ").replace("+00:00", " UTC")
    said = f"{names}; compared with {report.comparison.baseline}. Measured {when}."
    return element("header", element("h1", report.plan.name), element("p", said, class_="quiet"))


def _list(lines: Iterable[str]) -> Markup:
    return element("ul", *(element("li", line) for line in lines))


def _at(document: Any, place: str) -> Any:
    for key in place.split("."):
        document = document[key] if isinstance(document, dict) else document[int(key)]
    return document


_UNSAID: tuple[object, ...] = (None, "", (), [], {})


def facts(report: Report) -> Iterable[Markup]:
    """Yield lists of names and values: servers, loads, machine."""
    yield _facts("Servers", {server.name: server.command or server.attach for server in report.plan.servers})
    for load in report.plan.loads:
        said = {key: value for key, value in asdict(load).items() if key != "name" and value not in _UNSAID}
        yield _facts(f"Load {load.name}", {key: _plain(value) for key, value in said.items()})
    records = [done.provenance for done in report.rounds]
    keys = dict.fromkeys(key for record in records for key in record)
    yield _facts("Machine", {key: _range([record.get(key) for record in records]) for key in keys})


def _facts(title: str, named: Mapping[str, str]) -> Markup:
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in named.items()]
    return join(element("h3", title), element("dl", *pairs))


def _range(values: list[Any]) -> str:
    """Write one value if all rounds agree; else the range of numbers, or each value in turn."""
    if all(isinstance(value, float) for value in values):
        values = sorted({min(values), max(values)})
        return " to ".join(map(_plain, values))
    return "; ".join(dict.fromkeys(map(_plain, values)))


def _plain(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
        case list() | tuple():
            return " ".join(map(_plain, value))
        case float():
            return f"{value:g}"
    return str(value)
