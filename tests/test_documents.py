"""README.md and docs/ say what the code does: tables, links, flags and examples are compared with the sources.

A table that is out of date fails with the whole table to paste in its place. For measured figures see
tests/loadtest/report/test_results.py.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import pytest
from websockets.sync.client import connect

import loadtest.analysis.verdict
import loadtest.cli
import loadtest.report.model
import prefork.cli.main
import prefork.status.document
import prefork.status.prometheus
from loadtest.analysis.compare import compare
from loadtest.data.records import Worker
from loadtest.plan.file import LOAD_KEYS, PLAN_KEYS, WAIT_KEYS
from loadtest.plan.plan import Load, Plan, Server
from loadtest.report.json import document as json_document
from loadtest.report.model import Report
from prefork.admin.process import Answers
from prefork.config.foreign import FOREIGN, Foreign, names
from prefork.config.options import GROUPS, OPTIONS, Option
from prefork.core.signals import TABLE
from prefork.errors import PreforkError
from prefork.status.definitions import FIGURES, UNIT
from prefork.status.snapshot import SharedSnapshot
from tests.loadtest import records
from tests.support.client import exchange
from tests.support.markdown import FENCE, ROOT, Page, Table
from tests.support.server import clean_environment, run
from tests.support.web import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

DEMO = ROOT / "results" / "demo"
WIDTH = 120
FOREIGN_FLAGS = {  # locust's own
    "--headless", "--users", "--run-time", "--host", "--csv", "--html", "--json-file", "--processes", "--master",
    "--master-host", "--worker", "--expect-workers", "--stop-timeout", "--web-host",
}  # fmt: skip

README, CHANGELOG = Page("README.md"), Page("CHANGELOG.md")
DOCS = [Page(f"docs/{path.name}") for path in sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE, COMPARISONS, LAB, MIGRATING, OPERATING, SERVING = DOCS
PAGES = [README, *DOCS]  # what is said of prefork as it is
ALL = [page.text for page in PAGES]

# --- what the code defines


def options(group: tuple[Option, ...]) -> Table:
    rows = []
    for option in group:
        flag = f"{option.short}, {option.flag}" if option.short else option.flag
        default = f"`{option.default}`" if option.default else ""
        rows.append((f"`{f'{flag} {option.metavar}'.strip()}`", default, option.help))
    return ("option", "default", "what it does"), rows


def migration(rows: tuple[Foreign, ...]) -> Table:
    cells = []
    for row in rows:
        groups = itertools.groupby(row.flags, row.flags.__getitem__)
        parts = [f"{', '.join(f'`{flag}`' for flag in flags)} ({names(letters)})" for letters, flags in groups]
        cells.append(("; ".join(parts), row.answer))
    return ("option", "prefork"), cells


def signals() -> Table:
    return ("signal", "what the master does"), [(f"`{signum.name}`", meaning) for signum, meaning in TABLE.items()]


def commands() -> Table:
    found = prefork.cli.main.cli.commands.items()
    rows = [(f"`prefork {name}`", command.get_short_help_str(limit=200)) for name, command in sorted(found)]
    return ("command", "what it does"), rows


def unused() -> str:
    """The sentence about options that no module of prefork reads yet; empty if there are none."""
    modules = (path for path in (ROOT / "prefork").rglob("*.py") if path.name != "config.py")
    read = set(re.findall(r"config\.(\w+)", "\n".join(path.read_text("utf-8") for path in modules)))
    idle = [f"`{option.flag}`" for option in OPTIONS if option.field not in read]
    return f"Accepted, but without effect yet: {', '.join(idle)}." if idle else ""


def test_the_options() -> None:
    assert [h.removeprefix("#### ") for h in README.headings() if h.startswith("#### ")] == list(GROUPS)
    for title, group in GROUPS.items():
        README.expect_table(f"#### {title}", *options(group))


def test_the_options_of_other_servers() -> None:
    assert [h.removeprefix("### ") for h in MIGRATING.headings() if h.startswith("### ")] == list(FOREIGN)
    for title, rows in FOREIGN.items():
        MIGRATING.expect_table(f"### {title}", *migration(rows))


@pytest.mark.slow
@pytest.mark.parametrize("line", re.findall(r"^prefork serve (.*)$", MIGRATING.text, re.MULTILINE))
def test_each_translated_command_line_is_one(line: str) -> None:
    done = run("config", *shlex.split(line))
    assert (done.returncode, done.stderr) == (0, "")


def metrics() -> Table:
    rows = []
    for metric in prefork.status.prometheus.METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append((f"`{metric.name}`", metric.kind, labels, metric.help))
    return ("metric", "type", "labels", "meaning"), rows


def test_the_metrics() -> None:
    OPERATING.expect_table("#### Metrics", *metrics())


def test_the_paths_of_the_admin() -> None:
    answers = Answers(shared=SharedSnapshot(1), collector=cast("Any", None), page=b"")
    assert sorted(OPERATING.cells("### Ask it over HTTP")) == sorted(path.decode() for path in answers._paths)


def test_the_signals() -> None:
    README.expect_table("### Signals", *signals())


def test_the_commands() -> None:
    README.expect_table("### Commands", *commands())


def test_options_without_effect_are_named_as_such() -> None:
    found = re.search(r"^- (Accepted, but without effect yet: .*?)$(?!\n  )", README.prose, re.MULTILINE | re.DOTALL)
    if (" ".join(found[1].split()) if found else "") != unused():
        wanted = textwrap.fill(f"- {unused()}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        limits = "README.md, '## Limits of this version'"
        pytest.fail(f"{limits}: the item that begins with 'Accepted' is to be\n\n{wanted}\n", pytrace=False)


def test_the_exit_codes() -> None:
    codes = {0} | {kind.exit_code for kind in (PreforkError, *subclasses(PreforkError))}  # type: ignore[attr-defined]
    assert sorted(map(int, README.cells("### Exit codes"))) == sorted(codes)


def subclasses(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def test_the_exit_codes_of_the_lab() -> None:
    codes = {value for name, value in vars(loadtest.cli).items() if name.startswith("EXIT_")}
    listed = re.search(r"^Exit status: (.*?)\n\n", LAB.section("## Run, report, compare"), re.MULTILINE | re.DOTALL)
    assert listed
    assert set(map(int, re.findall(r"`(\d+)`", listed[1]))) == codes


def test_the_keys_of_a_plan_and_their_defaults() -> None:
    plain = Load(name="")
    defaults = {key: getattr(plain, field) for key, (field, _) in LOAD_KEYS.items()}
    wanted = {key: "none" if value in ("", (), None) else str(value) for key, value in defaults.items()}
    wanted |= {key: str(value).lower() for key, value in defaults.items() if isinstance(value, bool)}
    wanted |= {key: f"{getattr(plain, LOAD_KEYS[key][0]):g}s" for key in ("duration", "warmup", "timeout")}
    shown = dict(zip(LAB.cells("## A plan"), LAB.cells("## A plan", 2), strict=True))
    assert set(shown) == {"name", "attach", "[[server]]", "[[load]]", *PLAN_KEYS, *WAIT_KEYS, *LOAD_KEYS}
    assert {key: shown[key] for key in wanted} == wanted


def test_the_verdicts() -> None:
    assert sorted(LAB.cells("## Verdicts")) == sorted(
        {*(name for name, _ in loadtest.analysis.verdict._RULES), "OK", "LEFT-OUT"}
    )


def test_the_columns_of_the_lab() -> None:
    assert LAB.cells("## What a row means") == [*loadtest.report.model._HEADERS[1:], "vs BASELINE"]


def test_the_columns_about_workers() -> None:
    rest = LAB.section("## What a row means").partition("Where a server has several workers")[2].splitlines()
    rows = [line for line in rest if line.startswith("| `")]
    assert [line.split("|")[1].strip().strip("`") for line in rows] == list(loadtest.report.model.SHARING)


def test_the_placeholders_of_a_command() -> None:
    source = (ROOT / "loadtest" / "measure" / "server.py").read_text("utf-8")
    names = set(re.findall(r"\"(\w+)\"(?=: |\] = )", source[source.index("def _argv") : source.index("def __enter__")]))
    shown = re.findall(r"`\{(\w+)\}`", "\n".join(line.split("|")[1] for line in LAB.table("### Placeholders")[2:]))
    assert sorted(shown) == sorted(names)


def test_the_plans_that_ship() -> None:
    assert set(LAB.cells("## What the plans show")) == {path.stem for path in (ROOT / "loadtest/plans").glob("*.toml")}


def test_every_flag_that_is_shown_exists() -> None:
    known = {"--help", "--version"} | FOREIGN_FLAGS
    for command in (*prefork.cli.main.cli.commands.values(), *loadtest.cli.main.commands.values()):
        known |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= set(re.findall(r'"(--[a-z-]+)"', (ROOT / "loadtest/users/options.py").read_text("utf-8")))
    flag = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
    assert set(flag.findall("\n".join(page.text for page in PAGES if page is not MIGRATING))) - known == set()
    foreign = list(itertools.chain.from_iterable(FOREIGN.values()))
    assert set(flag.findall("\n".join(row.answer for row in foreign))) - known == set()
    assert set(flag.findall(MIGRATING.text)) - known - {name for row in foreign for name in row.flags} == set()


def test_every_command_that_is_shown_exists() -> None:
    groups: dict[str, click.Group] = {"prefork": prefork.cli.main.cli, "loadtest": loadtest.cli.main}
    quoted = [text for page in PAGES for text in re.findall(r"`([^`\n]+)`", page.prose)]
    code = "\n".join([*quoted, *(body for page in PAGES for _, body in FENCE.findall(page.text))])
    shown = set(re.findall(r"^(?:\$ )?(prefork|loadtest) ([a-z]+)", code, re.MULTILINE))
    assert shown >= {(group, name) for group, found in groups.items() for name in found.commands}
    assert not [(group, name) for group, name in shown if name not in groups[group].commands]


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shown = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", "\n".join(ALL), re.MULTILINE))
    assert shown
    assert shown <= targets


def test_the_json_of_the_lab() -> None:
    """Every key that a report has; `service_time` and `sharing` are explained as a whole."""
    workers = tuple(Worker(slot=slot, cpu_ns=1, accepted=1, requests=1, connections=1.0) for slot in (0, 1))
    rounds = [records.measured("one", 0, signals=records.signals(workers=workers)), records.measured("two", 0)]
    servers = tuple(Server(name=name, command="x {port}") for name in ("one", "two"))
    plan = Plan(name="p", servers=servers, loads=(Load(name="nap"),))
    document = json_document(Report(plan=plan, rounds=rounds, comparison=compare(plan, rounds)))
    found = {re.sub(r"(service_time|sharing)\..*", r"\1", place) for place in places(json.loads(json.dumps(document)))}
    found = {place.replace(".nap.", ".LOAD.") for place in found}
    found = {re.sub(r"(ratios|LOAD)\.(rate|p50|p99|cpu)", r"\1.METRIC", place) for place in found}
    shown = re.findall(r"`([^`]+)`", " ".join(line.split("|")[1] for line in LAB.table("### The JSON")[2:]))
    assert sorted(set(shown) - {"contrasts[].ratios.METRIC"}) == sorted(found)


def places(data: Any, at: str = "") -> Iterator[str]:
    """The places of all values; `[]` stands for every item of a list, and a table that may be empty for itself."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from places(value, f"{at}.{key}" if at else key)
    elif isinstance(data, list) and data:
        for value in data:
            yield from places(value, f"{at}[]")
    else:
        yield at


# --- what lies in the repository


def test_every_path_that_is_shown_exists() -> None:
    quoted, arguments = set(), set()
    for page in PAGES:
        quoted |= set(re.findall(r"`((?:prefork|loadtest|tests|results|docs|\.ci)/[\w./-]*)`", page.prose))
        blocks = "".join(body for _, body in FENCE.findall(page.text))
        arguments |= set(re.findall(r"(?<=[ ])(?:loadtest|results)/[\w./-]+", blocks))
    assert quoted
    assert arguments
    assert not [path for path in sorted(quoted | arguments) if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Page) -> None:
    """To a file, and where it names a heading, to that."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.prose)
    assert links
    pages = {(ROOT / each.name): each for each in PAGES}
    broken = []
    for path, anchor in links:
        target = ((ROOT / page.name).parent / path).resolve() if path else ROOT / page.name
        if not target.exists() or (anchor and (target not in pages or anchor not in pages[target].anchors())):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_the_readme_leads_to_all_other_pages() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", README.prose))
    assert {page.name for page in [*DOCS, CHANGELOG]} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_two_headings_of_a_page_have_the_same_anchor(page: Page) -> None:
    assert len(page.anchors()) == len(page.headings())


def test_the_readme_can_be_read() -> None:
    assert len(README.text.encode()) <= 30_000, "move something to docs/"


def test_every_test_that_is_named_exists() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.prose)}
    assert named
    assert not sorted(name for name in named if f"def {name}(" not in sources)


def test_the_figure_in_the_prose_about_the_demo_is_that_of_its_report() -> None:
    figures = re.findall(r"[0-9.]+ ?%", README.section("## A real run"))
    report = (DEMO / "report.md").read_text("utf-8")
    assert figures
    assert not [figure for figure in figures if figure.replace(" ", "") not in report]


# --- the examples and the prose


def examples() -> list[Any]:
    """Each application that a page shows, with the commands and the reply below it."""
    return [
        pytest.param(code, shell, id=f"{page.name}-{file_name(code)}")
        for page in PAGES
        for (language, code), (other, shell) in itertools.pairwise(FENCE.findall(page.text))
        if (language, other) == ("python", "console")
    ]


def file_name(code: str) -> str:
    """The name that the first line of an example gives it."""
    return code.partition("\n")[0].removeprefix("# ")


@pytest.mark.slow
@pytest.mark.parametrize(("code", "shell"), examples())
def test_the_applications_of_the_pages_answer_as_they_say(serve: Serve, tmp_path: Path, code: str, shell: str) -> None:
    (tmp_path / file_name(code)).write_text(code)
    app = re.search(r"^\$ prefork serve (\S+)", shell, re.MULTILINE)
    asked = re.search(r"^\$ (?:prefork send \"(.*)\"|curl http://[\d.:]+(/\S*))\n([^$]*)\Z", shell, re.MULTILINE)
    assert app
    assert asked
    server = serve(app[1], "--workers", "1", cwd=tmp_path)
    line, path, answer = asked.groups()
    if path:
        assert fetch(server, path).body == answer.encode()
    else:
        assert exchange(server.address, line.encode() + b"\n", half_close=True) == answer.encode()


@pytest.mark.slow
def test_the_websocket_of_the_page_says_back_what_comes(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "greet.py").write_text(SERVING.blocks("## Serve ASGI")[1])
    server = serve("greet.py:app", "--workers", "1", cwd=tmp_path)
    with connect(f"ws://{server.address}/", proxy=None) as socket:
        for message in ("good morning", b"in bytes"):
            socket.send(message)
            assert socket.recv(timeout=10) == message


@pytest.mark.slow
def test_the_script_of_the_page_serves(serve: Serve, tmp_path: Path) -> None:
    (code,) = (body for body in SERVING.blocks("## From Python") if "prefork.serve(" in body)
    assert "127.0.0.1:1935" in code
    (tmp_path / file_name(code)).write_text(code.replace("127.0.0.1:1935", "127.0.0.1:0"))
    server = serve(wrapper=[sys.executable, file_name(code)], bind=None, cwd=tmp_path)
    assert exchange(server.address, b"good morning\n", half_close=True) == b"GOOD MORNING\n"


@pytest.mark.slow
def test_the_hooks_of_the_page_are_hooks(serve: Serve, tmp_path: Path) -> None:
    (code,) = SERVING.blocks("### Hooks")
    (tmp_path / file_name(code)).write_text(code)
    server = serve("talkback", "--workers", "1", "--hooks", file_name(code), cwd=tmp_path)
    server.wait_log("worker 0 opens its own connections")
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    server.wait_log("^worker 0 died: SIGKILL, .*, serving nobody")
    server.wait_workers(1, without={worker})


def test_the_configuration_of_the_page_is_shown_as_it_says(tmp_path: Path) -> None:
    code, shown = OPERATING.blocks("## Configure")[:2]
    (tmp_path / file_name(code)).write_text(code)
    command, _, wanted = shown.partition("\n")
    setting, _, arguments = command.removeprefix("$ ").removesuffix(" | grep -v default").partition(" prefork ")
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "prefork", *arguments.split()], capture_output=True, text=True, timeout=20, check=True,
        cwd=tmp_path, env=clean_environment({name: value}),
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if "default" not in line] == wanted.splitlines()


def figures() -> Table:
    rows = [
        (f"`{each.key}`", f"`{each.column}`" if each.column else "", each.unit, each.over, each.meaning, each.null)
        for each in FIGURES
    ]
    return ("figure", "column", "unit", "over", "what it is", "null, `-`"), rows


def test_the_figures_of_the_status() -> None:
    OPERATING.expect_table("### What the figures mean", *figures())
    assert " ".join(OPERATING.section("### What the figures mean").split()).startswith(UNIT)


def test_the_status_that_is_shown_has_all_columns() -> None:
    (shown,) = (body for body in OPERATING.blocks("## Operate") if body.startswith("$ prefork status"))
    heading = next(line for line in shown.splitlines() if line.startswith("SLOT"))
    assert re.split(r" {2,}", heading.strip()) == list(prefork.status.document._COLUMNS)


def test_there_are_examples_of_all_kinds() -> None:
    kinds = (
        "def handle(conn)",
        "socketserver",
        "async def handle(reader, writer)",
        "asyncio.Protocol",
        "async def app(",
    )
    assert not [kind for kind in kinds if not any(kind in example.values[0] for example in examples())]


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=lambda page: page.name)
def test_prose_fits_the_page(page: Page) -> None:
    bad = [
        f"{page.name}:{number}: {len(line)} columns"
        for number, line in enumerate(page.prose.splitlines(), 1)
        if len(line) > WIDTH and not line.startswith("|")
    ]
    assert not bad
