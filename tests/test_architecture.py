"""The import rules, sizes and manners of the two packages, read from their source with `ast`."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 600
MOST_FUNCTION_LINES = 60  # the aim is 40; beyond this a function is cut, or listed below with its reason
TOO_LONG: dict[str, str] = {}  # module -> why it may pass MOST_LINES
LONG_FUNCTIONS = {"loadtest.users.options.add_options": "declares one option after the other"}
PRIMITIVES = {
    "prefork.bulletin", "prefork.histogram", "prefork.listener", "prefork.scoreboard", "prefork.signals",
    "prefork.spawn",
}  # fmt: skip
DECISIONS = {
    "prefork.actions", "prefork.backoff", "prefork.judge", "prefork.policy", "prefork.rollout", "prefork.roster",
}  # fmt: skip
PURE = {"prefork.histogram", "prefork.roster", "prefork.policy"}  # and each module whose docstring says `Pure`
# What a command or `prefork.serve` starts with; it stands above both sides of a fork.
ENTRY = {
    "prefork", "prefork.__main__", "prefork.api", "prefork.check", "prefork.cli", "prefork.inspect_commands",
    "prefork.operate", "prefork.options",
}  # fmt: skip
IMPURE_MODULES = {
    "asyncio", "ctypes", "fcntl", "logging", "mmap", "multiprocessing", "os", "pathlib", "resource", "select",
    "selectors", "signal", "socket", "subprocess", "threading", "time",
}  # fmt: skip
NO_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
PROGRAMS = ("loadtest.peers", "loadtest.handlers")  # started, or loaded by a server; nothing of ours imports them
VARIANTS = {"loadtest.peers.without_rows"}  # the server itself, with parts of it replaced, to be measured against it
MAY_IMPORT_LOCUST = ("loadtest.locustfile", "loadtest.users", *PROGRAMS)


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


MODULES = {
    module.name: module
    for top in ("prefork", "loadtest")
    for module in map(read_module, sorted((ROOT / top).rglob("*.py")))
}


def own_module(target: str) -> str | None:
    """Name the module of ours that an import statement loads; None when it is not ours."""
    if target in MODULES:
        return target
    parent = target.rpartition(".")[0]
    return parent if parent in MODULES else None


def within(name: str, tops: tuple[str, ...] | set[str]) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def found_imports(*, types_too: bool = True) -> Iterator[tuple[Module, Import]]:
    for module in MODULES.values():
        for imported in module.imports:
            if types_too or not imported.for_types_only:
                yield module, imported


def at(module: Module, line: int) -> str:
    return f"{module.path}:{line}"


def test_the_packages_were_found() -> None:
    assert {"prefork", "loadtest", "prefork.spawn"} <= set(MODULES)


def test_nothing_in_prefork_imports_loadtest() -> None:
    assert not [
        at(m, i.line) for m, i in found_imports() if within(m.name, ("prefork",)) and within(i.target, ("loadtest",))
    ]


def test_loadtest_imports_of_prefork_only_the_histogram() -> None:
    bad = [
        f"{at(m, i.line)} {i.target}"
        for m, i in found_imports()
        if within(m.name, ("loadtest",))
        and m.name not in VARIANTS
        and within(i.target, ("prefork",))
        and own_module(i.target) != "prefork.histogram"
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
    names = {m.path.stem for m in MODULES.values() if m.path.parent == Path("loadtest")}
    assert not names & (sys.stdlib_module_names - {"__init__", "__main__"})


def test_primitives_know_nothing_of_each_other() -> None:
    bad = [
        f"{at(m, i.line)} {i.target}"
        for m, i in found_imports()
        if m.name in PRIMITIVES and (target := own_module(i.target)) in PRIMITIVES and target != m.name
    ]
    assert set(bad) <= {b for b in bad if "scoreboard.py" in b and "histogram" in b}, bad


def is_pure(module: Module) -> bool:
    return module.name in PURE or bool(re.search(r"\bPure\b", ast.get_docstring(module.tree) or ""))


def test_what_calls_itself_pure_is_pure() -> None:
    """Outside of what decides, a signal's name may be looked up: `signal` is a table of constants then."""
    bad = [
        f"{at(m, i.line)} {i.target}"
        for m, i in found_imports(types_too=False)
        if is_pure(m)
        and i.target.partition(".")[0] in IMPURE_MODULES - ({"signal"} if m.name not in DECISIONS else set())
    ]
    assert not bad


def test_http_is_bytes_only() -> None:
    """No sockets, no processes, no log, no clock; an application's file is asked what it is, which needs `os`."""
    bad = [
        f"{at(m, i.line)} {i.target}"
        for m, i in found_imports(types_too=False)
        if within(m.name, ("prefork.http",))
        and i.target.partition(".")[0] in IMPURE_MODULES - ({"os"} if m.path.stem == "file_part" else set())
    ]
    assert not bad


def test_http_knows_only_of_itself() -> None:
    bad = [
        f"{at(m, i.line)} {target}"
        for m, i in found_imports()
        if within(m.name, ("prefork.http",))
        and within(target := own_module(i.target) or "", ("prefork",))
        and not within(target, ("prefork.http",))
    ]
    assert not bad


def side(name: str) -> str:
    """Say which process runs a module, by the first word of its docstring: MASTER, WORKER, TEMPLATE, ADMIN, CLIENT."""
    word = re.match(r"[A-Z]{5,}\b", ast.get_docstring(MODULES[name].tree) or "")
    return "WORKER" if within(name, ("prefork.engines",)) else word[0] if word else ""


def own_imports() -> Iterator[tuple[Module, Import, str]]:
    """List what the server's modules import of each other: importer, statement, imported module."""
    for module, imported in found_imports(types_too=False):
        target = own_module(imported.target)
        if within(module.name, ("prefork",)) and target and target not in (module.name, "prefork"):
            yield module, imported, target


def test_the_workers_side_of_a_fork_does_not_know_the_masters() -> None:
    bad = [
        f"{at(m, i.line)} {target}"
        for m, i, target in own_imports()
        if side(m.name) in ("WORKER", "TEMPLATE", "ADMIN")
        and (side(target) in ("MASTER", "CLIENT") or target in DECISIONS)
    ]
    assert not bad


def test_what_decides_knows_only_of_itself() -> None:
    assert not [f"{at(m, i.line)} {t}" for m, i, t in own_imports() if m.name in DECISIONS and t not in DECISIONS]


def test_what_belongs_to_no_process_imports_neither_side() -> None:
    """The plug is the exception: holding off newcomers is a listener's business, though only the master asks for it."""
    bad = [
        f"{at(m, i.line)} {target}"
        for m, i, target in own_imports()
        if not side(m.name) and m.name not in ENTRY | DECISIONS
        if target in DECISIONS or (side(target) in ("MASTER", "CLIENT") and target != "prefork.plug")
    ]
    assert not bad


def test_the_master_and_the_entries_are_above_all() -> None:
    top = ENTRY - {"prefork"} | {"prefork.master"}
    assert not [f"{at(m, i.line)} {t}" for m, i, t in own_imports() if t in top and m.name not in ENTRY]


def test_there_are_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for module, imported in found_imports(types_too=False):
        target = own_module(imported.target)
        if target and target != module.name:
            graph[module.name].add(target)
    graphlib.TopologicalSorter(graph).prepare()


def test_our_own_modules_are_imported_at_the_top() -> None:
    assert not [f"{at(m, i.line)} {i.target}" for m, i in found_imports() if i.in_function and own_module(i.target)]


def test_only_spawn_forks() -> None:
    bad = [
        at(module, node.lineno)
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if within(module.name, ("prefork",)) and module.name != "prefork.spawn"
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.fork", "os.forkpty", "os.posix_spawn"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os")
    ]
    assert not bad


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_module_says_what_it_is_and_stays_small(name: str) -> None:
    module = MODULES[name]
    assert ast.get_docstring(module.tree), "no docstring"
    assert module.path.stem not in NO_NAMES
    if name not in TOO_LONG:
        assert module.lines <= MOST_LINES


def test_the_list_of_long_modules_is_no_longer_than_it_must_be() -> None:
    assert not [name for name in TOO_LONG if name not in MODULES or MODULES[name].lines <= MOST_LINES]


def test_functions_fit_a_screen() -> None:
    bad = [
        f"{at(module, node.lineno)} {node.name}: {length} lines"
        for module in MODULES.values()
        if "peers" not in module.path.parts
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
        if f"{module.name}.{node.name}" not in LONG_FUNCTIONS
    ]
    assert not bad


@pytest.mark.parametrize("name", sorted(MODULES))
def test_annotations_are_lazy_where_there_are_any(name: str) -> None:
    module = MODULES[name]
    if len(module.tree.body) > 1:
        assert any(i.target == "__future__.annotations" for i in module.imports)
