"""README.md says what the code does: its tables, paths, flags, examples and figures are compared with the sources.

A table that is out of date fails with the whole table to paste in its place.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

import loadtest.cli
import loadtest.report
import loadtest.verdict
import prefork.cli
from loadtest.compare import compare
from loadtest.plan import Load
from loadtest.planfile import LOAD_KEYS, PLAN_KEYS
from loadtest.report import Report
from loadtest.store import Store
from prefork.config import OPTIONS
from prefork.errors import PreforkError
from prefork.signals import TABLE
from tests.support.client import exchange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.conftest import Serve

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DEMO = ROOT / "results" / "demo"
WIDTH = 120
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Flags of other programs that the page shows.
FOREIGN_FLAGS = {"--headless", "--users", "--run-time", "--host"}


def section(heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no heading {heading!r}"
    return found[1]


def table(heading: str) -> list[str]:
    """The lines of the first table under a heading."""
    lines = section(heading).splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith("|")), None)
    assert first is not None, f"README.md has no table under {heading!r}"
    rest = lines[first:]
    return rest[: next((number for number, line in enumerate(rest) if not line.startswith("|")), len(rest))]


def first_cells(heading: str) -> list[str]:
    """The first cell of each row of a table, without its header and its backquotes."""
    return [line.split("|")[1].strip().strip("`") for line in table(heading)[2:]]


def written(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table as README.md writes it."""
    lines = [header, ("---",) * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def expect_table(heading: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Fail with the table to paste if the one under the heading is another."""
    wanted = written(header, rows)
    if table(heading) != wanted:
        pytest.fail(f"README.md, {heading!r}: replace its table by\n\n" + "\n".join(wanted) + "\n", pytrace=False)


def subclasses(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


# --- what the code defines


def test_the_options() -> None:
    rows = [
        (
            f"`{option.short + ', ' if option.short else ''}{option.flag} {option.metavar}`",
            f"`{option.default}`",
            option.help,
        )
        for option in OPTIONS
    ]
    expect_table("### Options", ("option", "default", "what it does"), rows)


def test_the_signals() -> None:
    rows = [(f"`{signum.name}`", meaning) for signum, meaning in TABLE.items()]
    expect_table("### Signals", ("signal", "what the master does"), rows)


def test_the_exit_codes() -> None:
    codes = {0} | {kind.exit_code for kind in (PreforkError, *subclasses(PreforkError))}  # type: ignore[attr-defined]
    assert sorted(map(int, first_cells("### Exit codes"))) == sorted(codes)


def test_the_exit_codes_of_the_lab() -> None:
    codes = {value for name, value in vars(loadtest.cli).items() if name.startswith("EXIT_")}
    listed = re.search(r"^Exit status: (.*?)\n\n", section("### Run, report, compare"), re.MULTILINE | re.DOTALL)
    assert listed
    assert set(map(int, re.findall(r"`(\d+)`", listed[1]))) == codes


def test_the_keys_of_a_plan() -> None:
    plain = Load(name="")
    defaults = {key: f"`{getattr(plain, field)}`" for key, (field, _) in LOAD_KEYS.items()}
    defaults |= {key: f"`{getattr(plain, LOAD_KEYS[key][0]):g}s`" for key in ("duration", "warmup")}
    cells = {(cell := line.split("|"))[1].strip().strip("`"): cell[2].strip() for line in table("### A plan")[2:]}
    assert set(cells) == {"name", "attach", "[[server]]", "[[load]]", *PLAN_KEYS, *LOAD_KEYS}
    assert {key: cells[key] for key in defaults} == defaults


def test_the_verdicts() -> None:
    names = dict.fromkeys([*(name for name, _ in loadtest.verdict._RULES), "OK", "LEFT-OUT"])
    assert Counter(first_cells("### Verdicts")) == Counter(names)


def test_the_columns_of_the_lab() -> None:
    assert first_cells("### What a row means") == [*loadtest.report._HEADERS[1:], "vs BASELINE"]


def test_every_flag_that_is_shown_exists() -> None:
    commands = [*prefork.cli.cli.commands.values(), *loadtest.cli.main.commands.values()]
    known = {"--help", "--version"} | FOREIGN_FLAGS
    known |= {name for c in commands for p in c.params for name in (*p.opts, *p.secondary_opts)}
    known |= set(re.findall(r'"(--[a-z-]+)"', (ROOT / "loadtest/users/options.py").read_text("utf-8")))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) - known == set()


def test_every_command_that_is_shown_exists() -> None:
    groups: dict[str, click.Group] = {"prefork": prefork.cli.cli, "loadtest": loadtest.cli.main}
    code = "\n".join([*re.findall(r"`([^`\n]+)`", README), *(body for _, body in FENCE.findall(README))])
    shown = set(re.findall(r"^(?:\$ )?(?:\.venv/bin/)?(prefork|loadtest) ([a-z]+)", code, re.MULTILINE))
    assert shown
    assert not [(group, name) for group, name in shown if name not in groups[group].commands]


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shown = set(re.findall(r"\bmake ([a-z][a-z-]*)`", README)) | set(
        re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)
    )
    assert shown
    assert shown <= targets


# --- what lies in the repository


def test_every_path_that_is_shown_exists() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    quoted = re.findall(r"`((?:prefork|loadtest|tests|results|\.ci)/[\w./-]*)`", README)
    assert links
    assert quoted
    assert not [path for path in (*links, *quoted) if not (ROOT / path).exists()]


def test_every_link_within_the_page_has_its_heading() -> None:
    prose = FENCE.sub("", README)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", prose)) <= anchors


def test_every_test_that_is_named_exists() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", README))
    assert named
    assert not sorted(name for name in named if f"def {name}(" not in sources)


@pytest.mark.parametrize("package", ["prefork", "loadtest"])
def test_every_module_has_its_place_in_the_reading_order(package: str) -> None:
    listed = re.findall(r"`([\w/.]+\.(?:py|c))`", section(f"### {package}/"))
    files = [p for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".c") and not p.name.startswith("__")]
    modules = {str(path.relative_to(ROOT / package)): path for path in files}
    missing = [f"`{name}`: {says(modules[name])}" for name in sorted(modules.keys() - set(listed))]
    gone = sorted(set(listed) - modules.keys())
    if missing or gone:
        lines = [f"README.md, '### {package}/', the reading order"]
        lines += [f"lacks {line}" for line in missing] + [f"names {name}, which does not exist" for name in gone]
        pytest.fail("\n  ".join(lines), pytrace=False)
    twice = [name for name, count in Counter(listed).items() if count > 1]
    assert not twice


def says(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) if path.suffix == ".py" else None
    return (docstring or "").partition("\n")[0]


# --- the figures


def test_the_table_of_the_demo_is_what_its_rounds_say() -> None:
    store = Store.open(DEMO)
    rounds = store.rounds()
    report = Report(plan=store.plan, rounds=rounds, comparison=compare(store.plan, rounds)).render("github")
    assert (DEMO / "report.md").read_text("utf-8") == report
    wanted = report.partition("\n\n")[0]
    if "\n".join(table("## A real run")) != wanted:
        pytest.fail(f"README.md, '## A real run': replace its table by\n\n{wanted}\n", pytrace=False)


def test_the_results_name_no_path_outside_the_repository() -> None:
    documents = [json.loads(path.read_bytes()) for path in DEMO.rglob("*.json")]
    assert documents
    words = {word for text in texts(documents) for word in re.split(r"[\s=:,'\"]+", text)}
    assert not [word for word in words if word.startswith(("/", "~")) and not word.startswith("//")]


def texts(data: Any) -> Iterator[str]:
    """Every text in a JSON document."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else data:
            yield from texts(item)


# --- the prose


def examples() -> list[Any]:
    """Each handler that the page shows, with the commands and the reply below it."""
    blocks = FENCE.findall(section("## Write a handler"))
    pairs = [
        (code, shell)
        for (a, code), (b, shell) in zip(blocks, blocks[1:], strict=False)
        if (a, b) == ("python", "console")
    ]
    return [pytest.param(code, shell, id=code.partition("\n")[0].strip("# ")) for code, shell in pairs]


@pytest.mark.parametrize(("code", "shell"), examples())
def test_the_handlers_of_the_page_answer_as_it_says(serve: Serve, tmp_path: Path, code: str, shell: str) -> None:
    (tmp_path / code.partition("\n")[0].strip("# ")).write_text(code)
    app = re.search(r"^\$ prefork serve (\S+)", shell, re.MULTILINE)
    sent = re.search(r"^\$ prefork send \"(.*)\"\n(.*)\Z", shell, re.MULTILINE | re.DOTALL)
    assert app
    assert sent
    server = serve(app[1], "--workers", "1", cwd=tmp_path)
    assert exchange(server.address, sent[1].encode() + b"\n", half_close=True) == sent[2].encode()


def test_there_are_examples_of_both_kinds() -> None:
    assert len(examples()) >= 2


def test_prose_fits_the_page() -> None:
    prose = FENCE.sub(lambda found: "\n" * found[0].count("\n"), README)
    bad = [
        f"README.md:{number}: {len(line)} columns"
        for number, line in enumerate(prose.splitlines(), 1)
        if len(line) > WIDTH and not line.startswith("|")
    ]
    assert not bad
