"""What a command line of `loadtest run` wants: its plan, from a file or from flags, and whether it can be run here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .measure.exchange import check_files
from .plan import file as planfile
from .plan import values
from .plan.plan import Load, Plan, PlanError, Server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .analysis.conditions import Condition


def plan(path: Path | None, lines: Sequence[str], attach: str | None, flags: Mapping[str, Any]) -> Plan:
    """The plan of the file, or of `--server` lines and `--attach`; flags win. Raises PlanError."""
    if path is not None:
        if lines or attach:
            raise PlanError("the servers are in the plan; leave out --server and --attach, or the plan")
        return planfile.read(path, flags)
    servers = [_server(line) for line in lines] + ([Server(name=attach, attach=attach)] if attach else [])
    if not servers:
        raise PlanError("nothing to measure: give a plan, --server NAME=COMMAND or --attach HOST:PORT")
    fields = {field for field, _ in planfile.LOAD_KEYS.values()}
    load = {name: value for name, value in flags.items() if name in fields}
    rest = {name: value for name, value in flags.items() if name not in fields}
    name = load.get("scenario", Load(name="").scenario)
    return Plan(name=name, servers=tuple(servers), loads=(Load(name=name, **load),), **rest)


def _server(line: str) -> Server:
    name, separator, command = line.partition("=")
    if not separator or not name.strip():
        raise PlanError(f"--server: {line!r} is not NAME=COMMAND")
    try:
        return Server(name=name.strip(), command=values.command(command))
    except ValueError as error:
        raise PlanError(f"--server: {error}") from None


def check(wanted: Plan, conditions: Sequence[Condition], base: Path) -> None:
    """Find out now what would fail the run later. Raises PlanError, condition.ConditionError."""
    usable = os.sched_getaffinity(0)
    missing = sorted({*wanted.pin.server, *wanted.pin.load} - usable) if wanted.pin else []
    if missing:
        raise PlanError(f"--pin {wanted.pin}: this process may not use CPU {missing[0]}; it has {sorted(usable)}")
    check_files(wanted, base)
    keys = [(slot.configuration, slot.load.name) for slot in wanted.slots(range(1))]
    for condition in conditions:
        condition.about(keys, wanted.reference)


def outline(wanted: Plan) -> str:
    """What would run, in which order, and for how long."""
    pinned = f", pinned {wanted.pin}" if wanted.pin else ""
    lines = [f"{wanted.name}: compared with {wanted.reference}{pinned}"]
    lines += [f"  load {load.name}: {load.describe()}" for load in wanted.loads]
    lines += [f"  server {server.name}: {server.command or server.attach}" for server in wanted.servers]
    slots = list(wanted.slots())
    for cycle in range(wanted.rounds):
        order = ", ".join(f"{slot.configuration} ({slot.load.name})" for slot in slots if slot.cycle == cycle)
        lines.append(f"  cycle {cycle + 1}: {order}")
    load_s = sum(slot.load.warmup_s + slot.load.duration_s for slot in slots)
    lines.append(f"{len(slots)} rounds, {load_s:g} s of load; starting and stopping adds about 2 s to each round")
    if wanted.until:
        more = f"further cycles until every ratio of requests/s is known to ±{100 * wanted.until:.3g}%"
        lines.append(f"then {more}, but none that would end later than {wanted.within_s:g} s after the start")
    return "\n".join(lines) + "\n"
