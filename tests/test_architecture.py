"""The house rules, read from the source with `ast`: which package may import which, sizes, and manners.

A package may import only what stands in a layer below its own, and itself; imports for types count like any other.
The layers stand in `LAYERS`, from the bottom up; the longest prefix of a module's name decides which one it is in.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
MOST_FILE_LINES = 600
MOST_CLASS_LINES = 350
MOST_FUNCTION_LINES = 60
LONG_FUNCTIONS = {"loadtest.users.options.add_options": "declares one option after the other"}
LAYERS = (
    ("prefork._version", "prefork.errors"),
    ("prefork.core", "prefork.http"),
    ("prefork.config",),
    ("prefork.status", "prefork.control"),
    ("prefork.runtime",),
    ("prefork.engines",),
    ("prefork.engines.threads", "prefork.engines.wsgi", "prefork.engines.aio"),
    ("prefork.engines.asgi",),
    ("prefork.worker",),
    ("prefork.admin", "prefork.master"),
    ("prefork.api",),
    ("prefork",),  # `prefork.serve`, which is imported when it is first used
    ("prefork.cli",),
    ("prefork.__main__",),
)
LAYERS_OF_THE_LAB = (
    ("loadtest", "loadtest.peers", "loadtest.handlers"),  # nothing of ours is imported there
    ("loadtest.plan",),
    ("loadtest.data",),
    ("loadtest.generator", "loadtest.analysis"),
    ("loadtest.measure", "loadtest.report", "loadtest.users"),
    ("loadtest.cli", "loadtest.locustfile", "loadtest.own_users"),
    ("loadtest.__main__",),
)
LAYER = {
    package: number
    for layers in (LAYERS, LAYERS_OF_THE_LAB)
    for number, layer in enumerate(layers)
    for package in layer
}
# A module with one importer is a chapter of that importer, unless it has a reason of its own. A command that pip
# installs counts as an importer.
WITH_ONE_IMPORTER = {
    "a command, or what commands begin": {
        "prefork.cli.control", "prefork.cli.inspect", "prefork.cli.send", "prefork.cli.top.command",
        "prefork.master.loop", "loadtest.measure.session",
    },
    "a format of the reports": {
        "loadtest.report", "loadtest.report.csv", "loadtest.report.text", "loadtest.report.html.page",
        "loadtest.report.html.charts", "prefork.status.prometheus", "prefork.http.access_log",
    },
    "pure, where its importer is not": {
        "loadtest.analysis.conditions", "prefork.master.rollout", "prefork.cli.top.view",
        "prefork.http.websocket_handshake",
    },
    "a part of the master, which all meet in its loop": {
        "prefork.master.autoreload", "prefork.master.commands", "prefork.master.lifecycle", "prefork.master.slow_log",
    },
    "another process than its importer": {"prefork.worker.template"},
    "a source that the lab reads": {
        "loadtest.data.provenance", "loadtest.measure.other_runs", "loadtest.measure.probe",
    },
    "a noun of its own, as long as its importer": {
        "prefork.engines.aio.accept", "prefork.engines.asgi.connection", "prefork.engines.asgi.websocket",
        "prefork.engines.wsgi.connection", "loadtest.generator.engine", "loadtest.analysis.steadiness",
    },
    "what users name: users of locust": {
        "loadtest.users", "loadtest.users.fast", "loadtest.users.stream",
    },
}  # fmt: skip
MOST_WITH_ONE_IMPORTER = 36
# Where our modules are named in strings, to be imported when they are needed: no import, and a way round the layers.
BY_NAME = {
    "prefork.config.options": "few servers have an access log in a format of their own",
    "prefork.engines": "a worker needs one engine",
    "prefork.master.admin_process": "few servers have an admin",
    "prefork.runtime.inherited": "without TLS, a worker needs no ssl",
}
# What decides, and what is not said so in its docstring.
PURE = {"prefork.status.histogram", "prefork.master.roster", "prefork.master.policy"}
IMPURE_MODULES = {
    "_socket", "asyncio", "ctypes", "datetime", "fcntl", "logging", "mmap", "multiprocessing", "os", "pathlib",
    "random", "resource", "secrets", "select", "selectors", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time",
}  # fmt: skip
# Times are formatted, not taken; jitter is a parameter with a default; an application's file is asked what it is, and
# a large body is kept in one.
YET_PURE = {
    "prefork.http.access_log": {"datetime"},
    "prefork.http.body": {"os", "tempfile"},
    "prefork.master.policy": {"random"},
}
NO_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
PROGRAMS = ("loadtest.peers", "loadtest.handlers")  # started, or loaded by a server; nothing of ours imports them
VARIANTS = {"loadtest.peers.without_rows"}  # the server itself, with parts of it replaced, to be measured against it
MAY_IMPORT_LOCUST = ("loadtest.locustfile", "loadtest.own_users", "loadtest.users", *PROGRAMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement's target, as an absolute dotted name."""

    target: str
    line: int
    in_function: bool
    for_types_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]
    lines: int


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk_imports(
    node: ast.AST, package: str, *, in_function: bool = False, for_types_only: bool = False
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):  # holds no statement; most of a tree is expressions
            continue
        flags = {
            "in_function": in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef),
            "for_types_only": for_types_only or is_type_checking(child),
        }
        if isinstance(child, ast.Import):
            yield from (Import(target=alias.name, line=child.lineno, **flags) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - child.level + 1]) if child.level else ""
            source = ".".join(part for part in (base, child.module) if part)
            yield from (Import(target=f"{source}.{alias.name}", line=child.lineno, **flags) for alias in child.names)
        else:
            yield from walk_imports(child, package, **flags)


def read_module(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = ".".join(parts[:-1])
    name = package if parts[-1] == "__init__" else ".".join(parts)
    text = path.read_text()
    tree = ast.parse(text, str(path))
    return Module(
        name=name,
        path=path.relative_to(ROOT),
        tree=tree,
        imports=tuple(walk_imports(tree, package)),
        lines=len(text.splitlines()),
    )


@functools.cache  # not at import: each process of the tests imports this file, and one of them runs it
def read_modules() -> dict[str, Module]:
    """Map the name of each module to its source."""
    paths = [path for top in ("prefork", "loadtest") for path in sorted((ROOT / top).rglob("*.py"))]
    return {module.name: module for module in map(read_module, paths)}


def own_module(target: str) -> str | None:
    """Name the module of ours that an import statement loads; None when it is not ours."""
    if target in read_modules():
        return target
    parent = target.rpartition(".")[0]
    return parent if parent in read_modules() else None


def within(name: str, tops: tuple[str, ...] | set[str]) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def found_imports(*, types_too: bool = True) -> Iterator[tuple[Module, Import]]:
    for module in read_modules().values():
        for imported in module.imports:
            if types_too or not imported.for_types_only:
                yield module, imported


def at(module: Module, line: int) -> str:
    return f"{module.path}:{line}"


def package_of(name: str) -> str:
    """Name the entry of `LAYERS` that a module of the server belongs to."""
    while name not in LAYER:
        name = name.rpartition(".")[0]
    return name


def test_the_packages_were_found() -> None:
    assert {"prefork", "loadtest", "prefork.core.process"} <= set(read_modules())


def test_imports_point_downwards() -> None:
    bad = []
    for module, imported in found_imports():
        target = own_module(imported.target)
        if target is None or target.partition(".")[0] != module.name.partition(".")[0]:
            continue  # what the lab may import of the server: see below
        here, there = package_of(module.name), package_of(target)
        lazily = module.name == "prefork" and imported.for_types_only  # `prefork.serve` is loaded when it is first used
        if here != there and LAYER[there] >= LAYER[here] and not lazily:
            bad.append(f"{at(module, imported.line)}: {here} may not import {there} ({target})")
    assert not bad, "\n".join(bad)


def test_there_are_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in read_modules()}
    for module, imported in found_imports():
        target = own_module(imported.target)
        if target and target != module.name:
            graph[module.name].add(target)
    graphlib.TopologicalSorter(graph).prepare()


def test_few_modules_have_one_importer() -> None:
    importers: dict[str, set[str]] = {name: set() for name in read_modules()}
    for module, imported in found_imports():
        target = own_module(imported.target)
        if target and target != module.name and not within(module.name, PROGRAMS):
            importers[target].add(module.name)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for command, entry in scripts.items():
        importers[entry.partition(":")[0]].add(f"the command {command}")
    alone = {name for name, found in importers.items() if len(found) == 1}
    assert alone == set().union(*WITH_ONE_IMPORTER.values())
    assert len(alone) <= MOST_WITH_ONE_IMPORTER


def test_modules_are_named_in_strings_only_where_it_is_listed() -> None:
    naming = {
        module.name
        for module in read_modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and "." in str(node.value) and node.value in read_modules()
    }
    assert naming == set(BY_NAME)


def test_nothing_in_prefork_imports_loadtest() -> None:
    assert not [
        at(m, i.line) for m, i in found_imports() if within(m.name, ("prefork",)) and within(i.target, ("loadtest",))
    ]


def test_loadtest_imports_of_prefork_only_the_histogram_and_the_version() -> None:
    bad = [
        f"{at(m, i.line)} {i.target}"
        for m, i in found_imports()
        if within(m.name, ("loadtest",))
        and m.name not in VARIANTS
        and within(i.target, ("prefork",))
        and own_module(i.target) not in ("prefork.status.histogram", "prefork._version")
    ]
    assert not bad


def test_locust_and_gevent_are_imported_only_by_the_locustfile_and_the_users() -> None:
    """Importing locust patches socket, os.fork and signal of the whole process."""
    bad = [
        at(m, i.line)
        for m, i in found_imports(types_too=False)
        if within(i.target, ("locust", "gevent")) and not within(m.name, MAY_IMPORT_LOCUST)
    ]
    assert not bad


def test_nothing_imports_the_programs_that_are_measured() -> None:
    assert not [at(m, i.line) for m, i in found_imports() if within(i.target, PROGRAMS)]


def test_no_module_of_the_lab_is_named_like_one_of_the_standard_library() -> None:
    """locust puts the folder of its locustfile first on sys.path."""
    names = {m.path.stem for m in read_modules().values() if m.path.parent == Path("loadtest")}
    assert not names & (sys.stdlib_module_names - {"__init__", "__main__"})


def is_pure(module: Module) -> bool:
    return module.name in PURE or bool(re.search(r"\bPure\b", ast.get_docstring(module.tree) or ""))


def test_what_calls_itself_pure_is_pure() -> None:
    """A signal's name may be looked up, as `signal` is a table of constants then, but not by what decides."""
    bad = []
    for module, imported in found_imports(types_too=False):
        allowed = YET_PURE.get(module.name, set()) | (set() if within(module.name, ("prefork.master",)) else {"signal"})
        if is_pure(module) and imported.target.partition(".")[0] in IMPURE_MODULES - allowed:
            bad.append(f"{at(module, imported.line)} {imported.target}")
    assert not bad


def test_http_is_bytes_only() -> None:
    """No sockets, no processes, no log, no clock."""
    bad = []
    for module, imported in found_imports(types_too=False):
        allowed = YET_PURE.get(module.name, set())
        if within(module.name, ("prefork.http",)) and imported.target.partition(".")[0] in IMPURE_MODULES - allowed:
            bad.append(f"{at(module, imported.line)} {imported.target}")
    assert not bad


def test_what_the_rules_name_exists() -> None:
    named = {
        *PURE,
        *YET_PURE,
        *BY_NAME,
        *VARIANTS,
        *(name for layer in (*LAYERS, *LAYERS_OF_THE_LAB) for name in layer),
    }
    assert named <= set(read_modules()) | {"loadtest.peers", "loadtest.handlers"}  # no packages


def test_our_own_modules_are_imported_at_the_top() -> None:
    assert not [f"{at(m, i.line)} {i.target}" for m, i in found_imports() if i.in_function and own_module(i.target)]


def test_only_core_process_forks() -> None:
    bad = [
        at(module, node.lineno)
        for module in read_modules().values()
        for node in ast.walk(module.tree)
        if within(module.name, ("prefork",)) and module.name != "prefork.core.process"
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.fork", "os.forkpty", "os.posix_spawn"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {alias.name for alias in node.names} & {"fork", "forkpty", "posix_spawn", "*"}
        )
    ]
    assert not bad


def test_each_module_says_what_it_is_and_has_a_name() -> None:
    bad = [f"{m.path}: no docstring" for m in read_modules().values() if not ast.get_docstring(m.tree)]
    bad += [f"{m.path}: names nothing" for m in read_modules().values() if m.path.stem in NO_NAMES]
    assert not bad


def test_files_classes_and_functions_keep_their_limits() -> None:
    bad = [f"{m.path}: {m.lines} lines" for m in read_modules().values() if m.lines > MOST_FILE_LINES]
    for module in read_modules().values():
        if within(module.name, PROGRAMS):
            continue
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or 0) - node.lineno + 1
            most = MOST_CLASS_LINES if isinstance(node, ast.ClassDef) else MOST_FUNCTION_LINES
            if length > most and f"{module.name}.{node.name}" not in LONG_FUNCTIONS:
                bad.append(f"{at(module, node.lineno)} {node.name}: {length} lines")
    assert not bad, "\n".join(bad)


def test_annotations_are_lazy_where_there_are_any() -> None:
    bad = [
        m.path
        for m in read_modules().values()
        if any(isinstance(node, ast.AnnAssign | ast.arg | ast.FunctionDef) for node in ast.walk(m.tree))
        and not any(i.target == "__future__.annotations" for i in m.imports)
    ]
    assert not bad
