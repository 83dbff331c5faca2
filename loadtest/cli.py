"""The command line: `loadtest run`, `plans`, `report`, `compare`, `locustfile`."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from loadtest.analysis import conditions
from loadtest.analysis.compare import across, by_plan, compare
from loadtest.analysis.conditions import ConditionError
from loadtest.data.store import Store, StoreError
from loadtest.measure import session
from loadtest.measure.child import Interrupt
from loadtest.measure.generator import LOCUSTFILE, with_users
from loadtest.measure.other_runs import OtherRuns
from loadtest.measure.progress import Progress
from loadtest.measure.server import check_files
from loadtest.plan import file as planfile
from loadtest.plan import values
from loadtest.plan.plan import WITHIN_S, Load, Plan, PlanError, Server
from loadtest.report import FORMATS, render
from loadtest.report.model import Report
from prefork._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loadtest.analysis.compare import Configuration
    from loadtest.analysis.conditions import Condition


EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_CONDITION, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
_DEFAULT = Load(name="")
_FIRST = Server(name="")


class Value(click.ParamType[Any]):
    """Click's type of a flag whose value is read by the parser of the plan's key of that name."""

    def __init__(self, name: str, parse: Callable[[Any], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the value, or raise click's usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


# What the load is: a flag for each key of a plan's load, read by the same parser.
_LOAD_FLAGS = (
    click.option(
        "--scenario", type=Value("NAME", values.scenario), help="talkback (default), echo, nap, http or websocket."
    ),
    click.option(
        "--locustfile",
        type=Value("FILE[:CLASS]", values.locustfile),
        help="A user class of your own locustfile is what clients do: login, several requests, think times. "
        "--connections are its users.",
    ),
    click.option(
        "--connections", type=Value("N", values.count), help=f"All clients together ({_DEFAULT.connections})."
    ),
    click.option("--engine", type=Value("NAME", values.engine), help="The load engine: fast (default) or readable."),
    click.option(
        "--generators",
        type=Value("N", values.count),
        help=f"Processes that make the load together ({_DEFAULT.generators}); use more if one is the limit.",
    ),
    click.option(
        "--rate",
        "rate_per_s",
        type=Value("N", values.rate_per_s),
        help="Exchanges that come due each second, independent of the server; latency counts from the due time.",
    ),
    click.option("--arrivals", type=Value("HOW", values.arrivals), help="With --rate: constant (default) or poisson."),
    click.option(
        "--max-in-flight",
        type=Value("N", values.count),
        help=f"With --rate: the most exchanges in flight or waiting; further ones are missed "
        f"({_DEFAULT.max_in_flight}).",
    ),
    click.option(
        "--duration",
        "duration_s",
        type=Value("TIME", values.duration_s),
        help=f"Measured time of a round ({_DEFAULT.duration_s:g}s).",
    ),
    click.option(
        "--warmup",
        "warmup_s",
        type=Value("TIME", values.pause_s),
        help=f"Load before the measured time, not counted ({_DEFAULT.warmup_s:g}s).",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=Value("TIME", values.limit_s),
        help=f"How long one exchange may take; then it has failed ({_DEFAULT.timeout_s:g}s).",
    ),
    click.option(
        "--payload",
        type=Value("BYTES", values.whole),
        help=f"Length of the line or message that is sent, or of the body of a POST ({_DEFAULT.payload}).",
    ),
    click.option(
        "--exchanges",
        type=Value("N", values.count),
        help="Exchanges on one kept connection (10 for echo, else no limit).",
    ),
    click.option(
        "--method", type=Value("METHOD", values.method), help=f"The method of http requests ({_DEFAULT.method})."
    ),
    click.option(
        "--path",
        type=Value("PATH|@FILE", values.paths),
        multiple=True,
        callback=lambda _context, _option, found: values.paths(found) if found else None,
        help=f"The path of http and websocket requests; may have a query ({_DEFAULT.path}). http: repeatable, and "
        "@FILE has one in each line.",
    ),
    click.option(
        "--path-order",
        type=Value("HOW", values.order),
        help="Several paths are asked for in sequence (default), or at random.",
    ),
    click.option(
        "--header",
        "headers",
        type=Value("'NAME: VALUE'", lambda line: values.headers([line])[0]),
        multiple=True,
        callback=lambda _context, _option, lines: lines or None,
        help="A header of http and websocket requests; repeatable.",
    ),
    click.option("--body", metavar="TEXT|@FILE", help="The body of http requests (POST, PUT, PATCH: --payload bytes)."),
    click.option("--keep-alive/--no-keep-alive", default=None, help="Keep http connections open (default)."),
    click.option(
        "--retry/--no-retry",
        default=None,
        help="Send a request once more if its kept connection ends before any byte of the answer (default).",
    ),
    click.option(
        "--status", type=Value("STATUS", values.status), help=f"The status of a good response ({_DEFAULT.status})."
    ),
    click.option("--length", type=Value("BYTES", values.whole), help="The length of a good response's body (any)."),
    click.option("--tls/--no-tls", default=None, help="Use TLS for http and websocket (default: no)."),
    click.option("--insecure/--no-insecure", default=None, help="With --tls: accept any certificate."),
    click.option("--ca", metavar="FILE", help="With --tls: a file of trusted certificates (the system's)."),
    click.option("--message", type=Value("KIND", values.message), help="WebSocket messages: text (default) or binary."),
)


def _load_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say what the load is to a command, in this order."""
    for option in reversed(_LOAD_FLAGS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message=f"loadtest, of prefork %(version)s, in {Path(__file__).parent}")
def main() -> None:
    """Measure servers under load, and compare them.

    \b
    Compare one worker with four, six interleaved rounds of each:
      loadtest run --scenario nap \\
        --server "one={python} -m prefork serve nap --workers 1 --bind {address}" \\
        --server "four={python} -m prefork serve nap --workers 4 --bind {address}"

    \b
    The same from a built-in plan, and its table again, for GitHub:
      loadtest run demo --out results/mine
      loadtest report results/mine --format github

    Each round starts the server anew, waits until it answers, warms it up, measures, and stops it. The table
    says what limited each configuration (verdict); ~ means that no difference was shown.
    """


def _format(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--format",
        "form",
        type=click.Choice(list(FORMATS)),
        default="text",
        show_default=True,
        help="The format of the tables; html is a page with charts.",
    )(function)


def _fail_if(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--fail-if",
        "fail_if",
        type=Value("CONDITION", conditions.parse),
        multiple=True,
        help='End with status 3 if this is true, such as "p99>5ms", "errors>0", "NAME: ratio<0.95"; repeat for more.',
    )(function)


@main.command()
@click.argument("plan", required=False)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="NAME=COMMAND",
    help="A server to measure; repeat to compare. COMMAND may use {address} {host} {port} {unix} {python}.",
)
@click.option("--attach", type=Value("ADDRESS", values.endpoint), help="HOST:PORT or unix:PATH of a running server.")
@_load_flags
@click.option(
    "--ready",
    "ready_s",
    type=Value("TIME", values.limit_s),
    help=f"How long a server may take from its start to its first answer ({_FIRST.ready_s:g}s).",
)
@click.option(
    "--grace",
    "grace_s",
    type=Value("TIME", values.pause_s),
    help=f"How long a server may take to end, before it is killed ({_FIRST.grace_s:g}s).",
)
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
    help="Run the baseline twice in every cycle, as NAME and NAME'; a difference must show against both (from 6 "
    "rounds).",
)
@click.option(
    "--until",
    type=Value("PERCENT", values.share),
    help="Add cycles until each interval of a requests/s ratio (with --rate: p50) reaches at most this far to either "
    "side, such as 2%.",
)
@click.option(
    "--within",
    "within_s",
    type=Value("TIME", values.duration_s),
    help="With --until: add no cycle that would end later than this after the start (30m).",
)
@click.option(
    "--seed", type=Value("N", values.whole), help="Measure in the order that this number draws (default: a new one)."
)
@_fail_if
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder for the rounds; rounds of the same plan are extended.",
)
@click.option("--dry-run", is_flag=True, help="Print what would run and how long it would take.")
def run(
    plan: str | None,
    servers: tuple[str, ...],
    attach: str | None,
    out: Path | None,
    *,
    fail_if: tuple[Condition, ...],
    dry_run: bool,
    **flags: Any,
) -> None:
    """Measure servers, each several times and in turns, and print the table.

    What to measure is in PLAN, a TOML file or the name of a built-in plan, or in --server and --attach. A flag wins
    over the plan. Times are seconds, or 500ms, 10s, 1m30s, 2h.

    \b
      loadtest run demo
      loadtest run my-plan.toml --rounds 12
      loadtest run --server "echo={python} my_echo.py {port}" --scenario echo --connections 16
      loadtest run --attach 127.0.0.1:8000 --scenario http --rounds 3
      loadtest run --attach 127.0.0.1:8000 --locustfile locustfile.py:Shopper --connections 20

    \b
    A plan:
      name = "threads"
      scenario = "nap"
      duration = 2
      [[server]]
      name = "four threads"
      command = "{python} -m prefork serve nap --threads 4 --bind {address}"

    Exit status: 0 all servers were measured, 1 a server or the generator failed, or no round of a server is valid,
    2 bad usage or plan, 3 a --fail-if is true, 130 interrupted (the finished rounds are kept).
    """
    with ExitStack() as stack:
        try:
            path = planfile.find(plan) if plan else None
            base = path.absolute().parent if path else Path.cwd()
            given = _from_here({name: value for name, value in flags.items() if value is not None}, base)
            found = _plan(path, servers, attach, given)
            _check(found, fail_if, base)
            if not dry_run or any(load.locustfile for load in found.loads):
                _need_locust()
            found = with_users(found, base)
            if dry_run:
                click.echo(_outline(found.seeded()), nl=False)
                return
            store = Store.create(out or _folder(found.name), found, base)
            stack.enter_context(store.writing())
        except (PlanError, StoreError, ConditionError) as error:
            raise click.UsageError(str(error)) from None
        other_runs = stack.enter_context(OtherRuns())
        if pids := ", ".join(map(str, other_runs.others())):
            said = "runs disturb each other's figures; to be sure, stop this one, and start it when the other has ended"
            click.echo(f"warning: another loadtest run (pid {pids}) is on this machine: {said}", err=True)
        sys.exit(_run(store, fail_if, base=base, other_runs=other_runs))


def _from_here(flags: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the flags with relative paths, which start in the current folder, as a plan in `base` would write them."""

    def path(name: str) -> str:
        return os.path.relpath(Path(name).absolute(), base.resolve()) if name and not name.startswith("/") else name

    def marked(written: Any) -> Any:
        if isinstance(written, tuple):
            return tuple(map(marked, written))
        return f"@{path(written[1:])}" if written.startswith("@") else written

    if base == Path.cwd():
        return flags
    names = {key: path(flags[key]) for key in ("ca", "locustfile") if key in flags}
    return flags | names | {key: marked(flags[key]) for key in ("body", "path") if key in flags}


class _MissingError(click.ClickException):
    exit_code = EXIT_USAGE


def _need_locust() -> None:
    if importlib.util.find_spec("locust") is None:
        raise _MissingError("the load generator needs locust: pip install 'prefork[loadtest]'")


def _plan(path: Path | None, lines: Sequence[str], attach: str | None, flags: Mapping[str, Any]) -> Plan:
    """Return the plan of the file, or of `--server` lines and `--attach`; flags win. Raises PlanError."""
    if path is not None:
        if lines or attach:
            raise PlanError("the servers are in the plan; leave out --server and --attach, or the plan")
        return planfile.read(path, flags)
    waits = {name: flags[name] for name, _ in planfile.WAIT_KEYS.values() if name in flags}
    servers = [_server(line, waits) for line in lines]
    servers += [Server(name=attach, attach=attach, **waits)] if attach else []
    if not servers:
        raise PlanError("nothing to measure: give a plan, --server NAME=COMMAND or --attach HOST:PORT")
    fields = {field for field, _ in planfile.LOAD_KEYS.values()}
    load = {name: value for name, value in flags.items() if name in fields}
    rest = {name: value for name, value in flags.items() if name not in {*fields, *waits}}
    made = Load.made(**load)
    return Plan(name=made.name, servers=tuple(servers), loads=(made,), **rest)


def _server(line: str, waits: Mapping[str, Any]) -> Server:
    name, separator, command = line.partition("=")
    if not separator or not name.strip() or not command.strip():
        raise PlanError(f"--server: {line!r} is not NAME=COMMAND")
    try:
        return Server(name=name.strip(), command=values.command(command), **waits)
    except ValueError as error:
        raise PlanError(f"--server: {error}") from None


def _check(wanted: Plan, fail_if: Sequence[Condition], base: Path) -> None:
    """Check now what would fail later in the run, or be ignored. Raises PlanError, ConditionError."""
    for load in wanted.loads:
        if load.unused:
            unused, why = load.unused
            key = next(key for key, (field, _) in planfile.LOAD_KEYS.items() if field == unused)
            raise PlanError(f"load {load.name!r}: {key} {why}")
    if wanted.within_s != WITHIN_S and not wanted.until:
        raise PlanError("within is for until; add until, or leave it out")
    usable = os.sched_getaffinity(0)
    missing = sorted({*wanted.pin.server, *wanted.pin.load} - usable) if wanted.pin else []
    if missing:
        raise PlanError(f"--pin {wanted.pin}: this process may not use CPU {missing[0]}; it has {sorted(usable)}")
    check_files(wanted, base)
    keys = [(slot.configuration, slot.load.name) for slot in wanted.slots(range(1))]
    for condition in fail_if:
        condition.about(keys, wanted.reference)


def _outline(wanted: Plan) -> str:
    """Say what would run, in which order, and for how long."""
    pinned = f", pinned {wanted.pin}" if wanted.pin else ""
    lines = [f"{wanted.name}: compared with {wanted.reference}{pinned}"]
    lines += [f"  load {load.name}: {load.describe()}" for load in wanted.loads]
    lines += [f"  server {server.name}: {server.command or server.attach}" for server in wanted.servers]
    slots = list(wanted.slots())
    lines.append(f"  the order is drawn by --seed {wanted.seed}:")
    for cycle in range(wanted.rounds):
        order = ", ".join(f"{slot.configuration} ({slot.load.name})" for slot in slots if slot.cycle == cycle)
        lines.append(f"  cycle {cycle + 1}: {order}")
    load_s = sum(slot.load.warmup_s + slot.load.duration_s for slot in slots)
    long = f" ({values.span(load_s)})" if load_s >= 120 else ""
    lines.append(f"{len(slots)} rounds, {load_s:g} s{long} of load; starting and stopping adds about 2 s to each round")
    if wanted.until:
        more = f"further cycles until every ratio of requests/s is known to ±{100 * wanted.until:.3g}%"
        lines.append(f"then {more}, but none that would end later than {wanted.within_s:g} s after the start")
    return "\n".join(lines) + "\n"


def _folder(name: str) -> Path:
    slug = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return Path("loadtest-runs") / f"{slug}-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _run(store: Store, fail_if: Sequence[Condition], base: Path, other_runs: OtherRuns) -> int:
    with Interrupt() as interrupt, Progress(store.plan.name) as progress:
        outcome = session.run(store, progress, interrupt, base=base, notes=other_runs.notes)
    rounds = store.rounds()
    broken: list[str] = []
    nothing: list[str] = []
    if rounds:
        report = _report(store)
        nothing = [_unusable(found) for found in report.comparison.configurations if found.verdict == "INVALID"]
        broken = list(conditions.broken(fail_if, report.comparison))
        _print(render(report, "text"), broken)
        for name, form in (("report.md", "github"), ("report.html", "html")):
            try:
                store.write(name, render(report, form))
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
    for line in nothing:
        click.echo(line, err=True)
    if outcome.failed or nothing:
        return EXIT_FAILED
    return EXIT_CONDITION if broken else EXIT_OK


def _unusable(found: Configuration) -> str:
    return f"{found.name} ({found.load}) has no valid round: {found.invalid} INVALID; the table says why"


def _print(text: str, broken: Sequence[str]) -> None:
    """Print the report as UTF-8 whatever the locale, as programs may read it; then the conditions that are true."""
    click.echo(text.encode(), nl=False)
    for line in broken:
        click.echo(line, err=True)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


@main.command("plans")
def plans_command() -> None:
    """List the built-in plans: what each asks, and how long it takes.

    \b
      loadtest plans
      loadtest run demo
    """
    click.echo(tabulate(planfile.built_in(), headers=("plan", "asks", "takes", "needs"), tablefmt="simple"))
    click.echo("\nloadtest run PLAN measures one; its text, with how to read the result, is in")
    click.echo(planfile.BUILT_IN)


@main.command("locustfile")
def locustfile_command() -> None:
    """Print the path of the lab's locustfile, for locust by hand.

    \b
      locust -f $(loadtest locustfile) --web-host 127.0.0.1
    """
    _need_locust()
    click.echo(LOCUSTFILE)


@main.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@_format
@_fail_if
def report_command(folder: Path, form: str, fail_if: tuple[Condition, ...]) -> None:
    """Print the tables of a run, or a page with charts, from its files alone.

    \b
      loadtest report results/demo
      loadtest report results/demo --format csv > demo.csv
      loadtest report results/demo --fail-if "p99>5ms" --fail-if "errors>0"
      loadtest report results/demo --format html > demo.html
    """
    _show(lambda: _report(Store.open(folder)), form, fail_if)


@main.command("compare")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@_format
@_fail_if
def compare_command(folder: Path, other: Path | None, form: str, fail_if: tuple[Condition, ...]) -> None:
    """Compare the configurations of one run, or those that two runs share.

    The first run is the baseline, the second the candidate.

    \b
      loadtest compare results/demo
      loadtest compare results/before results/after
    """
    _show(
        lambda: _report(Store.open(folder)) if other is None else _across(Store.open(folder), Store.open(other)),
        form,
        fail_if,
    )


def _show(make: Callable[[], Report], form: str, fail_if: Sequence[Condition]) -> None:
    """Print a report and end with the status that the conditions ask for."""
    try:
        report = make()
        broken = list(conditions.broken(fail_if, report.comparison))
    except (StoreError, ConditionError) as error:
        raise click.UsageError(str(error)) from None
    _print(render(report, form), broken)
    sys.exit(EXIT_CONDITION if broken else EXIT_OK)


def _report(store: Store) -> Report:
    rounds = store.rounds()
    if not rounds:
        raise StoreError(f"{store.folder} has no rounds yet")
    return Report(plan=store.plan, rounds=rounds, comparison=compare(store.plan, rounds))


def _across(first: Store, second: Store) -> Report:
    labels = _labels(first.folder.resolve(), second.folder.resolve())
    before, after = (by_plan(store.plan, store.rounds()) for store in (first, second))
    comparison = across(before, after, labels, _anchor(first.plan, second.plan))
    if not comparison.configurations:
        raise StoreError(f"{first.folder} and {second.folder} share no configuration: nothing to compare")
    named = [
        replace(done, configuration=f"{label}: {done.configuration}")
        for label, rounds in zip(labels, (before, after), strict=True)
        for done in rounds
    ]
    return Report(plan=second.plan, rounds=named, comparison=comparison)


def _anchor(first: Plan, second: Plan) -> str:
    """Return the name of the server that is the baseline of both plans, beside others; empty without one."""
    names = {server.name: server for server in first.servers}
    same = {server.name for server in second.servers if _is_same(server, names.get(server.name))}
    others = {server.name for server in second.servers} & set(names) - {first.reference}
    return first.reference if first.reference == second.reference and first.reference in same and others else ""


def _is_same(server: Server, other: Server | None) -> bool:
    """Return whether two runs have the same server; its folder is written from where each run lies."""
    return other is not None and replace(server, cwd="") == replace(other, cwd="")


def _labels(first: Path, second: Path) -> tuple[str, str]:
    """Return the shortest ends of both paths that differ, so that moving both together changes nothing."""
    for start in range(1, max(len(first.parts), len(second.parts)) + 1):
        labels = ("/".join(first.parts[-start:]), "/".join(second.parts[-start:]))
        if labels[0] != labels[1]:
            return labels
    return first.name, f"{first.name} again"
