"""Where the figures come from: the commands, the loads in full, and all that the rounds recorded of the machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .markup import Markup, element, join

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..model import Report

_UNSAID: tuple[object, ...] = (None, "", (), [], {})


def facts(report: Report) -> Iterable[Markup]:
    """Lists of names and values."""
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
    """One value if all rounds agree; else from the least to the greatest, or each in turn."""
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
