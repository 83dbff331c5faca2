"""Every figure that the pages quote is what the kept rounds say: each run under results/ is read and reported again.

The fast tests do so with the smallest run; `make check-results`, which is part of `make test-all`, with all.
"""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest

from loadtest.plan import file as planfile
from loadtest.report import render
from tests.loadtest.report.pages import stored
from tests.support.markdown import ROOT, Page, written

README, COMPARISONS, LAB = Page("README.md"), Page("docs/comparisons.md"), Page("docs/lab.md")
RUNS = sorted(path.parent.name for path in (ROOT / "results").glob("*/rounds.jsonl"))

# The heading over a table of figures: its page, and the run and the load that it quotes. A run that is not kept yet has
# its heading already, and no table.
QUOTES = {
    "## A real run": (README, "demo", "nap"),
    "## Beside other stream servers": (COMPARISONS, "peers-stream", "talkback"),
    "## Beside other WSGI servers": (COMPARISONS, "peers-wsgi", "hello"),
    "## Beside other ASGI servers": (COMPARISONS, "peers-asgi", "hello"),
    "### WebSocket": (COMPARISONS, "peers-asgi", "websocket"),
    "## At half load": (COMPARISONS, "half-load", "http"),
    "### At 60 %": (COMPARISONS, "behind-nginx", "60 %"),
    "### At 80 %": (COMPARISONS, "behind-nginx", "80 %"),
    "## Static files": (COMPARISONS, "static", "http"),
    "### For WSGI": (COMPARISONS, "overhead-wsgi", "hello"),
    "### For ASGI": (COMPARISONS, "overhead-asgi", "hello"),
    "### accept, 3 clients": (LAB, "accept", "3 clients"),
    "### accept, 256 clients": (LAB, "accept", "256 clients"),
    "### workers-io": (LAB, "workers-io", "nap"),
    "### workers-cpu": (LAB, "workers-cpu", "talkback"),
    "### backlog": (LAB, "backlog", "nap"),
}


def slow(value: str, run: str) -> Any:
    """A parameter of a test that reads the run."""
    return value if run == "demo" else pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [slow(name, name) for name in RUNS])
def test_the_report_of_a_run_is_what_its_rounds_say(name: str) -> None:
    report = render(stored(name), "github")
    if (ROOT / "results" / name / "report.md").read_text("utf-8") != report:
        pytest.fail(f"results/{name}/report.md is to be\n\n{report}", pytrace=False)


@pytest.mark.parametrize("heading", [slow(heading, name) for heading, (_, name, _) in QUOTES.items()])
def test_a_table_of_figures_is_what_its_run_says(heading: str) -> None:
    """The page chooses the columns, of any of the report's tables; the rows are all there are."""
    page, name, load = QUOTES[heading]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.table(heading)]
    if name not in RUNS:
        assert not shown, f"{page.name}, {heading!r}: there is no results/{name}"
        return
    columns = shown[0][1:] if shown else ["requests/s", "p50", "p99", "CPU/request", "verdict"]
    figures: dict[str, dict[str, str]] = {}
    for part in stored(name).tables(load):
        for row in part.rows:
            for title, cell in zip(part.headers[1:], row[1:], strict=True):
                figures.setdefault(row[0].text, {}).setdefault(title, cell.text)
    assert figures
    unknown = set(columns) - {title for row in figures.values() for title in row}
    assert not unknown, f"{heading}: the report of {name} has no column {unknown}"
    rows = [(server, *(row.get(title, "-") for title in columns)) for server, row in figures.items()]
    if shown[:1] + shown[2:] != [["configuration", *columns], *map(list, rows)]:
        wanted = "\n".join(written(("configuration", *columns), rows))
        pytest.fail(f"{page.name}, {heading!r}: replace its table by\n\n{wanted}\n", pytrace=False)


def test_what_is_kept_of_a_run_is_three_files() -> None:
    git = subprocess.run(["git", "ls-files", "results/*/*"], cwd=ROOT, capture_output=True, text=True, check=False)
    kept = git.stdout.splitlines()  # none where this is no repository
    assert [path for path in kept if path.split("/")[2:] not in (["plan.toml"], ["rounds.jsonl"], ["report.md"])] == []


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_of_a_run_can_be_run_again_in_any_clone(name: str) -> None:
    """Its folders are there, and no word of a command is a path of the machine that it was measured on."""
    folder = ROOT / "results" / name
    for server in planfile.read(folder / "plan.toml", {}).servers:
        assert (folder / server.cwd).is_dir()
        words = shlex.split(server.command)
        urls = {"/static"}  # a part of one
        assert not [word for word in words if word.startswith(("/", "~")) and word not in urls]
