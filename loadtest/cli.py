"""The command line: `loadtest run`, `loadtest compare`, `loadtest report`."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import condition, session, values, wanted
from .compare import across, compare
from .condition import ConditionError
from .flags import Value, load_flags
from .interrupt import Interrupt
from .plan import PlanError
from .progress import Progress
from .report import FORMATS, Report
from .store import Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .condition import Condition

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_CONDITION, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Measure servers under load, and compare them.

    \b
    Compare one worker with four, six interleaved rounds of each:
      loadtest run --scenario nap \\
        --server "one={python} -m prefork serve nap --workers 1 --bind {address}" \\
        --server "four={python} -m prefork serve nap --workers 4 --bind {address}"

    \b
    The same from a file, and its table once more, for a page on GitHub:
      loadtest run loadtest/plans/demo.toml --out results/mine
      loadtest report results/mine --format github

    Each round starts the server anew, waits until it answers, warms it up, measures, and stops it. The table says
    what bounded each configuration (verdict), and a ratio only where the rounds show one (~ where they do not).
    """


def _format(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        help="How to write the tables; html is a page with charts.",
    )(function)


def _fail_if(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--fail-if",
        "conditions",
        type=Value("CONDITION", condition.parse),
        multiple=True,
        help='End with status 3 if this is so, such as "p99>5ms", "errors>0", "NAME: ratio<0.95"; repeat for more.',
    )(function)


@main.command()
@click.argument("plan", type=click.Path(path_type=Path), required=False)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="NAME=COMMAND",
    help="A server to measure; repeat to compare. COMMAND may use {address} {host} {port} {unix} {python}.",
)
@click.option("--attach", type=Value("ADDRESS", values.endpoint), help="HOST:PORT or unix:PATH of a server that runs.")
@load_flags
@click.option("--rounds", type=Value("N", values.count), help="Rounds of each configuration (6).")
@click.option(
    "--pin",
    type=Value("SERVER_CPUS:LOAD_CPUS", values.pin),
    help="Which CPUs each side may use, such as 0:1 or 0-1:2,3.",
)
@click.option("--baseline", metavar="NAME", help="The server that the others are compared with (the first).")
@click.option(
    "--aa/--no-aa",
    default=None,
    help="Run the baseline twice in every cycle, as NAME and NAME', to measure the noise (from 6 rounds).",
)
@click.option(
    "--until",
    type=Value("PERCENT", values.share),
    help="Then add cycles until each interval of the requests/s ratio is this narrow to either side, such as 2%.",
)
@click.option(
    "--within",
    "within_s",
    type=Value("TIME", values.duration_s),
    help="With --until: add none that would end later than this after the start (30m).",
)
@_fail_if
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder for the rounds; one with rounds of the same plan is extended.",
)
@click.option("--dry-run", is_flag=True, help="Say what would run and how long it would take.")
def run(
    plan: Path | None,
    servers: tuple[str, ...],
    attach: str | None,
    out: Path | None,
    *,
    conditions: tuple[Condition, ...],
    dry_run: bool,
    **flags: Any,
) -> None:
    """Measure servers, each several times and in turns, and print the table.

    What to measure is in PLAN, a TOML file, or in --server and --attach. A flag goes before the file. Times are
    seconds, or 10s, 500ms, 2m.

    \b
      loadtest run loadtest/plans/demo.toml
      loadtest run --server "echo={python} my_echo.py {port}" --scenario echo --connections 16
      loadtest run --attach 127.0.0.1:8000 --scenario http --rounds 3

    \b
    A plan:
      name = "threads"
      scenario = "nap"
      duration = 2
      [[server]]
      name = "four threads"
      command = "{python} -m prefork serve nap --threads 4 --bind {address}"

    Exit status: 0 all rounds were measured, 1 a server or the generator failed, 2 bad usage or plan, 3 a --fail-if
    is so, 130 interrupted (the finished rounds are kept).
    """
    base = plan.absolute().parent if plan else Path.cwd()
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        found = wanted.plan(plan, servers, attach, given)
        wanted.check(found, conditions, base)
        if dry_run:
            click.echo(wanted.outline(found), nl=False)
            return
        store = Store.create(out or _folder(found.name), found, base)
    except (PlanError, StoreError, ConditionError) as error:
        raise click.UsageError(str(error)) from None
    sys.exit(_run(store, conditions, base=base))


def _folder(name: str) -> Path:
    slug = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return Path("loadtest-runs") / f"{slug}-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _run(store: Store, conditions: Sequence[Condition], base: Path) -> int:
    with Interrupt() as interrupt, Progress(store.plan.name) as progress:
        outcome = session.run(store, progress, interrupt, base=base)
    rounds = store.rounds()
    broken: list[str] = []
    if rounds:
        report = _report(store)
        broken = list(condition.broken(conditions, report.comparison))
        _print(report.render("text"), broken)
        for name, form in (("report.md", "github"), ("report.html", "html")):
            try:
                store.write(name, report.render(form))
            except StoreError as error:
                click.echo(str(error), err=True)
    click.echo(f"{_rounds(len(rounds))} in {store.folder}", err=True)
    if outcome.unkept:
        click.echo(f"the run has ended: {outcome.unkept}", err=True)
        return EXIT_FAILED
    if outcome.interrupted:
        click.echo("interrupted: the finished rounds are kept; run again with the same --out to add more", err=True)
        return EXIT_INTERRUPTED
    if outcome.failed:
        click.echo(f"{_rounds(outcome.failed)} failed; logs are in {store.folder / 'logs'}", err=True)
        return EXIT_FAILED
    return EXIT_CONDITION if broken else EXIT_OK


def _print(text: str, broken: Sequence[str]) -> None:
    """The report, in the same bytes whatever the locale, as it may be read elsewhere; then what it must not say."""
    click.echo(text.encode(), nl=False)
    for line in broken:
        click.echo(line, err=True)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


@main.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@_format
@_fail_if
def report_command(folder: Path, form: str, conditions: tuple[Condition, ...]) -> None:
    """Print the tables of a run, or a page with charts, from its files alone.

    \b
      loadtest report results/demo
      loadtest report results/demo --format csv > demo.csv
      loadtest report results/demo --fail-if "p99>5ms" --fail-if "errors>0"
      loadtest report results/demo --format html > demo.html
    """
    _show(lambda: _report(Store.open(folder)), form, conditions)


@main.command("compare")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@_format
@_fail_if
def compare_command(folder: Path, other: Path | None, form: str, conditions: tuple[Condition, ...]) -> None:
    """Compare the configurations of one run, or those that two runs share.

    The first run is what the second is compared with: what was, and what is.

    \b
      loadtest compare results/demo
      loadtest compare results/before results/after
    """
    _show(
        lambda: _report(Store.open(folder)) if other is None else _across(Store.open(folder), Store.open(other)),
        form,
        conditions,
    )


def _show(make: Callable[[], Report], form: str, conditions: Sequence[Condition]) -> None:
    """Print a report and end with the status that the conditions ask for."""
    try:
        report = make()
        broken = list(condition.broken(conditions, report.comparison))
    except (StoreError, ConditionError) as error:
        raise click.UsageError(str(error)) from None
    _print(report.render(form), broken)
    sys.exit(EXIT_CONDITION if broken else EXIT_OK)


def _report(store: Store) -> Report:
    rounds = store.rounds()
    if not rounds:
        raise StoreError(f"{store.folder} has no rounds yet")
    return Report(plan=store.plan, rounds=rounds, comparison=compare(store.plan, rounds))


def _across(first: Store, second: Store) -> Report:
    labels = _labels(first.folder.resolve(), second.folder.resolve())
    before, after = first.rounds(), second.rounds()
    comparison = across(before, after, labels)
    if not comparison.configurations:
        raise StoreError(f"{first.folder} and {second.folder} share no configuration: nothing to compare")
    named = [
        replace(done, configuration=f"{label}: {done.configuration}")
        for label, rounds in zip(labels, (before, after), strict=True)
        for done in rounds
    ]
    return Report(plan=second.plan, rounds=named, comparison=comparison)


def _labels(first: Path, second: Path) -> tuple[str, str]:
    """As much of the end of each path as tells them apart, so that moving both together changes nothing."""
    for start in range(1, max(len(first.parts), len(second.parts)) + 1):
        labels = ("/".join(first.parts[-start:]), "/".join(second.parts[-start:]))
        if labels[0] != labels[1]:
            return labels
    return first.name, f"{first.name} again"
