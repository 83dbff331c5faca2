"""The command line: `loadtest run`, `loadtest compare`, `loadtest report`."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import planfile, session, values
from .compare import across, compare
from .flags import Value, load_flags
from .interrupt import Interrupt
from .plan import Load, Plan, PlanError, Server
from .progress import Progress
from .report import FORMATS, Report
from .store import Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


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
        help="How to write the tables.",
    )(function)


def _pairs(lines: Sequence[str]) -> list[Server]:
    servers = []
    for line in lines:
        name, separator, command = line.partition("=")
        if not separator or not name.strip():
            raise click.BadParameter(f"{line!r} is not NAME=COMMAND", param_hint="--server")
        try:
            servers.append(Server(name=name.strip(), command=values.command(command)))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--server") from None
    return servers


@main.command()
@click.argument("plan", type=click.Path(path_type=Path), required=False)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="NAME=COMMAND",
    help="A server to measure; repeat to compare. COMMAND may use {address} {host} {port} {python}.",
)
@click.option("--attach", type=Value("HOST:PORT", values.endpoint), help="Measure a server that runs already.")
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
    "--out",
    type=click.Path(path_type=Path),
    help="The folder for the rounds; one with rounds of the same plan is extended.",
)
@click.option("--dry-run", is_flag=True, help="Say what would run and how long it would take.")
def run(
    plan: Path | None, servers: tuple[str, ...], attach: str | None, out: Path | None, *, dry_run: bool, **flags: Any
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

    Exit status: 0 all rounds were measured, 1 a server or the generator failed, 2 bad usage or plan, 130 interrupted
    (the finished rounds are kept).
    """
    try:
        wanted = _plan(plan, servers, attach, {name: value for name, value in flags.items() if value is not None})
        _check_pin(wanted)
        if dry_run:
            click.echo(_outline(wanted), nl=False)
            return
        store = Store.create(out or _folder(wanted.name), wanted)
    except (PlanError, StoreError) as error:
        raise click.UsageError(str(error)) from None
    sys.exit(_run(store, base=plan.absolute().parent if plan else Path.cwd()))


def _plan(path: Path | None, lines: Sequence[str], attach: str | None, flags: dict[str, Any]) -> Plan:
    if path is not None:
        if lines or attach:
            raise PlanError("the servers are in the plan; leave out --server and --attach, or the plan")
        return planfile.read(path, flags)
    servers = _pairs(lines) + ([Server(name=attach, attach=attach)] if attach else [])
    if not servers:
        raise PlanError("nothing to measure: give a plan, --server NAME=COMMAND or --attach HOST:PORT")
    fields = {field for field, _ in planfile.LOAD_KEYS.values()}
    load = {name: value for name, value in flags.items() if name in fields}
    rest = {name: value for name, value in flags.items() if name not in fields}
    name = load.get("scenario", Load(name="").scenario)
    return Plan(name=name, servers=tuple(servers), loads=(Load(name=name, **load),), **rest)


def _check_pin(plan: Plan) -> None:
    usable = os.sched_getaffinity(0)
    missing = sorted({*plan.pin.server, *plan.pin.load} - usable) if plan.pin else []
    if missing:
        raise PlanError(f"--pin {plan.pin}: this process may not use CPU {missing[0]}; it has {sorted(usable)}")


def _folder(name: str) -> Path:
    slug = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return Path("loadtest-runs") / f"{slug}-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _outline(plan: Plan) -> str:
    lines = [f"{plan.name}: compared with {plan.reference}" + (f", pinned {plan.pin}" if plan.pin else "")]
    lines += [f"  load {load.name}: {load.describe()}" for load in plan.loads]
    lines += [f"  server {server.name}: {server.command or server.attach}" for server in plan.servers]
    slots = list(plan.slots())
    for cycle in range(plan.rounds):
        order = ", ".join(f"{slot.configuration} ({slot.load.name})" for slot in slots if slot.cycle == cycle)
        lines.append(f"  cycle {cycle + 1}: {order}")
    load_s = sum(slot.load.warmup_s + slot.load.duration_s for slot in slots)
    lines.append(f"{len(slots)} rounds, {load_s:g} s of load; starting and stopping adds about 2 s to each round")
    return "\n".join(lines) + "\n"


def _run(store: Store, base: Path) -> int:
    with Interrupt() as interrupt, Progress(sum(1 for _ in store.plan.slots()), store.plan.name) as progress:
        outcome = session.run(store, progress, interrupt, base=base)
    rounds = store.rounds()
    if rounds:
        report = _report(store)
        click.echo(report.render("text"), nl=False)
        try:
            (store.folder / "report.md").write_text(report.render("github"), encoding="utf-8")
        except OSError as error:
            click.echo(f"report.md cannot be written: {error.strerror}", err=True)
    click.echo(f"{_rounds(len(rounds))} in {store.folder}", err=True)
    if outcome.unkept:
        click.echo(f"the run has ended: {outcome.unkept}", err=True)
        return EXIT_FAILED
    if outcome.interrupted:
        click.echo("interrupted: the finished rounds are kept; run again with the same --out to add more", err=True)
        return EXIT_INTERRUPTED
    if outcome.failed:
        click.echo(f"{_rounds(outcome.failed)} failed; logs are in {store.folder / 'rounds'}", err=True)
        return EXIT_FAILED
    return EXIT_OK


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


@main.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@_format
def report_command(folder: Path, form: str) -> None:
    """Print the tables of a run from its files alone.

    \b
      loadtest report results/demo
      loadtest report results/demo --format csv > demo.csv
    """
    try:
        click.echo(_report(Store.open(folder)).render(form), nl=False)
    except StoreError as error:
        raise click.UsageError(str(error)) from None


@main.command("compare")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@_format
def compare_command(folder: Path, other: Path | None, form: str) -> None:
    """Compare the configurations of one run, or those that two runs share.

    The first run is what the second is compared with: what was, and what is.

    \b
      loadtest compare results/demo
      loadtest compare results/before results/after
    """
    try:
        found = _report(Store.open(folder)) if other is None else _across(Store.open(folder), Store.open(other))
        click.echo(found.render(form), nl=False)
    except StoreError as error:
        raise click.UsageError(str(error)) from None


def _report(store: Store) -> Report:
    rounds = store.rounds()
    if not rounds:
        raise StoreError(f"{store.folder} has no rounds yet")
    return Report(plan=store.plan, rounds=rounds, comparison=compare(store.plan, rounds))


def _across(first: Store, second: Store) -> Report:
    labels = (first.folder.name, second.folder.name)
    if labels[0] == labels[1]:
        labels = (str(first.folder), str(second.folder))
    comparison = across(first.rounds(), second.rounds(), labels)
    if not comparison.configurations:
        raise StoreError(f"{first.folder} and {second.folder} share no configuration: nothing to compare")
    return Report(plan=second.plan, rounds=second.rounds(), comparison=comparison)
