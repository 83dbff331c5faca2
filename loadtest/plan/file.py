"""Reads a plan from a TOML file. Every mistake is one line: file, line, what is wrong, what to write instead."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from . import values
from .plan import Load, Plan, PlanError, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Keys = Mapping[str, tuple[str, Callable[[Any], Any]]]  # key in the file -> field of the plan, parser

LOAD_KEYS: Keys = {
    "scenario": ("scenario", values.scenario),
    "engine": ("engine", values.engine),
    "generators": ("generators", values.count),
    "connections": ("connections", values.count),
    "rate": ("rate_per_s", values.rate_per_s),
    "arrivals": ("arrivals", values.arrivals),
    "max-in-flight": ("max_in_flight", values.count),
    "duration": ("duration_s", values.duration_s),
    "warmup": ("warmup_s", values.pause_s),
    "payload": ("payload", values.length),
    "exchanges": ("exchanges", values.count),
    "method": ("method", values.method),
    "path": ("path", values.path),
    "header": ("headers", values.headers),
    "body": ("body", values.body),
    "keep-alive": ("keep_alive", values.flag),
    "status": ("status", values.status),
    "length": ("length", values.length),
    "tls": ("tls", values.flag),
    "insecure": ("insecure", values.flag),
    "ca": ("ca", values.text),
    "message": ("message", values.message),
}
PLAN_KEYS: Keys = {
    "rounds": ("rounds", values.count),
    "pin": ("pin", values.pin),
    "baseline": ("baseline", values.text),
    "aa": ("aa", values.flag),
    "until": ("until", values.share),
    "within": ("within_s", values.duration_s),
}
_SERVER_KEYS: Keys = {
    "name": ("name", values.text),
    "command": ("command", values.command),
    "cwd": ("cwd", values.text),
    "env": ("env", values.environment),
}
_NAMED_LOAD_KEYS: Keys = {"name": ("name", values.text), **LOAD_KEYS}
_TOP_KEYS: Keys = {"name": ("name", values.text), "attach": ("attach", values.endpoint), **PLAN_KEYS, **LOAD_KEYS}


def read(path: Path, override: Mapping[str, Any]) -> Plan:
    """The plan in the file; `override` holds fields of the plan and of its loads that the command line set.

    Raises PlanError.
    """
    try:
        source = path.read_text("utf-8")
        document = tomllib.loads(source)
    except OSError as error:
        raise PlanError(f"{path}: cannot read the plan: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path}: is not a plan: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path}: is not TOML: {error}") from None
    try:
        return _Reader(path, source).plan(document, override)
    except PlanError as error:
        # What the plan as a whole finds wrong has no line of its own.
        raise error if str(error).startswith(str(path)) else PlanError(f"{path}: {error}") from None


class _Reader:
    """Turns the document's tables into a plan; knows the file's text, to name lines."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.lines = source.splitlines()

    def plan(self, document: dict[str, Any], override: Mapping[str, Any]) -> Plan:
        sections = {name: self.section(document, name) for name in ("server", "load")}
        top = self.table(document, _TOP_KEYS, "", 0)
        attach = top.pop("attach", None)
        servers = [Server(**self.named(table, _SERVER_KEYS, "server", i)) for i, table in enumerate(sections["server"])]
        if attach:
            servers.append(Server(name=attach, attach=attach))
        shared = {field: top.pop(field) for field, _ in LOAD_KEYS.values() if field in top}
        change = {field: override[field] for field, _ in LOAD_KEYS.values() if field in override}
        tables = [self.named(table, _NAMED_LOAD_KEYS, "load", i) for i, table in enumerate(sections["load"])]
        loads = [Load(**(shared | table | change)) for table in tables]
        if not loads:
            only = shared | change
            loads = [Load(name=only.get("scenario", Load(name="").scenario), **only)]
        top |= {field: value for field, value in override.items() if field not in change}
        return Plan(**({"name": self.path.stem} | top), servers=tuple(servers), loads=tuple(loads))

    def section(self, document: dict[str, Any], name: str) -> list[dict[str, Any]]:
        tables = document.pop(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise PlanError(f"{self.path}:{self.line(name, '', 0)}: write each {name} under its own [[{name}]]")
        return tables

    def named(self, table: dict[str, Any], keys: Keys, section: str, index: int) -> dict[str, Any]:
        found = self.table(table, keys, section, index)
        for key in ("name", "command"):
            if key in keys and key not in found:
                raise PlanError(f"{self.path}:{self.line('', section, index)}: this [[{section}]] has no {key}")
        return found

    def table(self, table: dict[str, Any], keys: Keys, section: str, index: int) -> dict[str, Any]:
        found = {}
        for written, value in table.items():
            where = f"{self.path}:{self.line(written, section, index)}"
            key = written.replace("_", "-")
            if key not in keys:
                known = [*keys, *(("server", "load") if not section else ())]
                place = f"[[{section}]]" if section else "a plan"
                hint = f"{values.near(key, known)}; there are {', '.join(known)}"
                raise PlanError(f"{where}: {written!r} is not a key of {place}{hint}")
            field, parse = keys[key]
            try:
                found[field] = parse(value)
            except ValueError as error:
                raise PlanError(f"{where}: {written}: {error}") from None
        return found

    def line(self, key: str, section: str, index: int) -> int:
        """The number of the line that sets the key in the index-th [[section]]; without a key, of its heading."""
        heading = re.compile(rf"\s*\[\[\s*{section}\s*\]\]") if section else None
        start = 0
        if heading:
            start = [number for number, line in enumerate(self.lines) if heading.match(line)][index : index + 1][0]
        wanted = re.compile(rf"""\s*(?:\[+\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
        for number, line in enumerate(self.lines[start:] if key else [], start):
            if wanted.match(line):
                return number + 1
        return start + 1
