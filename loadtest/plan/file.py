"""Reads a plan from a TOML file, and writes one. Every mistake is one line: file, line, what is wrong, what to write.

Relative paths in a plan start in the folder of its file.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.plan import values
from loadtest.plan.plan import Load, Pin, Plan, PlanError, Server

if TYPE_CHECKING:
    from collections.abc import Callable

    Keys = Mapping[str, tuple[str, Callable[[Any], Any]]]  # key in the file -> field of the plan, parser

BUILT_IN = Path(__file__).parents[1] / "plans"
"""The folder of the built-in plans."""

LOAD_KEYS: Keys = {
    "scenario": ("scenario", values.scenario),
    "locustfile": ("locustfile", values.locustfile),
    "engine": ("engine", values.engine),
    "generators": ("generators", values.count),
    "connections": ("connections", values.count),
    "rate": ("rate_per_s", values.rate_per_s),
    "arrivals": ("arrivals", values.arrivals),
    "max-in-flight": ("max_in_flight", values.count),
    "duration": ("duration_s", values.duration_s),
    "warmup": ("warmup_s", values.pause_s),
    "timeout": ("timeout_s", values.limit_s),
    "payload": ("payload", values.whole),
    "exchanges": ("exchanges", values.count),
    "method": ("method", values.method),
    "path": ("path", values.paths),
    "path-order": ("path_order", values.order),
    "header": ("headers", values.headers),
    "body": ("body", values.body),
    "keep-alive": ("keep_alive", values.flag),
    "retry": ("retry", values.flag),
    "status": ("status", values.status),
    "length": ("length", values.whole),
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
    "seed": ("seed", values.whole),
}
WAIT_KEYS: Keys = {"ready": ("ready_s", values.limit_s), "grace": ("grace_s", values.pause_s)}  # for a server, or all
_SERVER_KEYS: Keys = {
    "name": ("name", values.text),
    "command": ("command", values.command),
    "attach": ("attach", values.endpoint),
    "cwd": ("cwd", values.text),
    "env": ("env", values.environment),
    **WAIT_KEYS,
}
_NAMED_LOAD_KEYS: Keys = {"name": ("name", values.text), **LOAD_KEYS}
_TOP_KEYS: Keys = {
    "name": ("name", values.text),
    "attach": ("attach", values.endpoint),
    **PLAN_KEYS,
    **WAIT_KEYS,
    **LOAD_KEYS,
}
_ALWAYS_WRITTEN = {"scenario", "connections", "duration_s", "warmup_s", "rounds"}  # what a reader asks first


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


def find(name: str) -> Path:
    """Return the file of a plan: a path, a file of the current folder, else a built-in plan. Raises PlanError."""
    path = Path(name)
    if "://" in name:
        hint = "to measure a server that is running write --attach HOST:PORT --scenario http"
        raise PlanError(f"{name!r} is an address, and not a plan; {hint}")
    if "/" in name or name.endswith(".toml") or path.is_file():
        return path
    known = sorted(path.stem for path in BUILT_IN.glob("*.toml"))
    if name not in known:
        hint = f"{values.near(name, known)}; there are {', '.join(known)}; a file is called {name}.toml or ./{name}"
        raise PlanError(f"{name!r} is not a built-in plan{hint}")
    return BUILT_IN / f"{name}.toml"


def built_in() -> list[tuple[str, str, str, str]]:
    """Return the name of each built-in plan, its question, how long it takes, and what it needs."""
    return [(path.stem, *_question(path.read_text("utf-8"))) for path in sorted(BUILT_IN.glob("*.toml"))]


def _question(text: str) -> tuple[str, str, str]:
    """Return the question and the time of a plan, from the comment at its top, and what it needs."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    said = " ".join(line.removeprefix("#").strip() for line in lines)
    took = re.search(r"about ([0-9.]+ minutes)", said)
    needs = "other servers: `make peers` in a clone" if "{peers}" in text else ""
    return said.partition("?")[0] + "?", took[1] if took else "-", needs


def written(plan: Plan) -> str:
    """The text of a file that `read` makes the plan of again: what is not the default, and what a reader asks first."""
    lines = [f"name = {_toml(plan.name)}", *_lines(plan, PLAN_KEYS)]
    for server in plan.servers:
        lines += ["", "[[server]]", *_lines(server, _SERVER_KEYS)]
    for load in plan.loads:
        lines += ["", "[[load]]", *_lines(load, _NAMED_LOAD_KEYS)]
    return "\n".join(lines) + "\n"


def _lines(part: Plan | Server | Load, keys: Keys) -> list[str]:
    defaults = {each.name: each.default for each in fields(part)}
    found = [(key, field, getattr(part, field)) for key, (field, _) in keys.items()]
    return [
        f"{key} = {_toml(value)}"
        for key, field, value in found
        if field in _ALWAYS_WRITTEN or value not in (defaults[field], {})
    ]


def _toml(value: object) -> str:
    """A value as TOML. The escapes of JSON are escapes of TOML, which has one more character that needs one."""
    if isinstance(value, str | Pin):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else values.decimal(value)


def moved(plan: Plan, base: Path | None, folder: Path) -> Plan:
    """The same plan for a file in another folder: relative paths, which start in `base`, start there."""
    here, there = (base or Path()).resolve(), folder.resolve()

    def path(name: str) -> str:
        return os.path.relpath(here / name, there) if name and not name.startswith("/") else name

    def marked(mark: str, name: str) -> str:
        return mark + path(name.removeprefix(mark)) if name.startswith(mark) else name

    return replace(
        plan,
        servers=tuple(
            replace(server, cwd=path(server.cwd), attach=marked("unix:", server.attach)) for server in plan.servers
        ),
        loads=tuple(
            replace(
                load,
                ca=path(load.ca),
                locustfile=path(load.locustfile),
                body=marked("@", load.body),
                path=values.paths([marked("@", name) for name in load.paths]),
            )
            for load in plan.loads
        ),
    )


class _Reader:
    """Turns the document's tables into a plan; knows the file's text, to name lines."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.lines = source.splitlines()

    def plan(self, document: dict[str, Any], override: Mapping[str, Any]) -> Plan:
        sections = {name: self.section(document, name) for name in ("server", "load")}
        top = self.table(document, _TOP_KEYS, "", 0)
        attach = top.pop("attach", None)
        tables = [self.named(table, _SERVER_KEYS, "server", i) for i, table in enumerate(sections["server"])]
        if attach:
            tables.append({"name": attach, "attach": attach})
        waits = [field for field, _ in WAIT_KEYS.values()]
        for_all = {field: top.pop(field) for field in waits if field in top}
        forced = {field: override[field] for field in waits if field in override}
        servers = [Server(**(for_all | table | forced)) for table in tables]
        shared = {field: top.pop(field) for field, _ in LOAD_KEYS.values() if field in top}
        change = {field: override[field] for field, _ in LOAD_KEYS.values() if field in override}
        tables = [self.named(table, _NAMED_LOAD_KEYS, "load", i) for i, table in enumerate(sections["load"])]
        # The users of a locustfile that a flag names come in place of the plan's.
        theirs = {"scenario", "engine"} if "locustfile" in change else set()
        merged = [shared | table for table in tables] or [shared]
        loads = [Load.made(**({key: load[key] for key in load if key not in theirs} | change)) for load in merged]
        top |= {field: value for field, value in override.items() if field not in change | forced}
        return Plan(**({"name": self.path.stem} | top), servers=tuple(servers), loads=tuple(loads))

    def section(self, document: dict[str, Any], name: str) -> list[dict[str, Any]]:
        tables = document.pop(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise PlanError(f"{self.path}:{self.line(name, '', 0)}: write each {name} under its own [[{name}]]")
        return tables

    def named(self, table: dict[str, Any], keys: Keys, section: str, index: int) -> dict[str, Any]:
        found = self.table(table, keys, section, index)
        where = f"{self.path}:{self.line('', section, index)}: this [[{section}]]"
        if "name" not in found:
            raise PlanError(f"{where} has no name")
        if section == "server" and ("command" in found) == ("attach" in found):
            raise PlanError(f"{where} has {'both a command and attach' if 'attach' in found else 'no command'}")
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
        """Return the number of the line that sets the key in the index-th [[section]]; of its heading without a key."""
        heading = re.compile(rf"\s*\[\[\s*{section}\s*\]\]") if section else None
        start = 0
        if heading:
            start = [number for number, line in enumerate(self.lines) if heading.match(line)][index : index + 1][0]
        wanted = re.compile(rf"""\s*(?:\[+\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
        for number, line in enumerate(self.lines[start:] if key else [], start):
            if wanted.match(line):
                return number + 1
        return start + 1
