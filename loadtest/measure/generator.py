"""Runs the load generator: locust, as a subprocess, so that its monkey-patching and its CPU stay out of the lab."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.data.records import Client, RecordError
from loadtest.measure.child import Child
from loadtest.measure.server import free_port
from loadtest.plan import values
from loadtest.plan.plan import OVER_HTTP, Load, PlanError

if TYPE_CHECKING:
    from loadtest.measure.server import RunningServer
    from loadtest.plan.addresses import Address
    from loadtest.plan.plan import Plan, Slot

LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
_OWN_USERS = LOCUSTFILE.with_name("own_users.py")
_LOOK_S = 60.0  # to import locust and a locustfile
_DRAIN_S = 10  # locust's wait for exchanges in flight at the end, at least
_START_AND_END_S = 30.0  # importing locust, connecting, writing the result
_LATE = 0.05  # of the load's time, by which a long round may end late


class GeneratorError(Exception):
    """The generator gave no result; the message has its last words."""


def with_users(plan: Plan, base: Path) -> Plan:
    """Return the plan with the user class of each locustfile, and with how its users speak; relative to `base`.

    Raises PlanError for a file that cannot be loaded, or that has not the one class.
    """
    loads = tuple(_with_users(load, base) if load.locustfile else load for load in plan.loads)
    unix = [server.name for server in plan.servers if "{unix}" in server.command or server.attach.startswith("unix:")]
    if unix and (web := [load.name for load in loads if load.locustfile and load.scenario in OVER_HTTP]):
        raise PlanError(f"load {web[0]!r}: server {unix[0]!r} is on a Unix socket, where locust's HTTP users cannot go")
    return replace(plan, loads=loads)


def _with_users(load: Load, base: Path) -> Load:
    file, wanted = _file_and_class(load)
    where = f"load {load.name!r}: locustfile {file}"
    found = _users_in(base.absolute() / file, where)
    if not found:
        raise PlanError(f"{where} has no user class that is not abstract")
    if not wanted and len(found) > 1:
        raise PlanError(f"{where} has several user classes; write one: {', '.join(f'{file}:{name}' for name in found)}")
    if wanted and wanted not in found:
        hint = f"{values.near(wanted, found)}; there are {', '.join(found)}"
        raise PlanError(f"{where} has no user class {wanted!r}{hint}")
    wanted = wanted or next(iter(found))
    return replace(load, locustfile=f"{file}:{wanted}", scenario=found[wanted])


def _file_and_class(load: Load) -> tuple[str, str]:
    file, colon, name = load.locustfile.rpartition(":")
    return (file, name) if colon and not name.endswith(".py") else (load.locustfile, "")


def _users_in(file: Path, where: str) -> dict[str, str]:
    """Return the user classes in a locustfile, each with its scenario. Raises PlanError."""
    if not file.is_file():
        raise PlanError(f"{where}: no such file")
    argv = [sys.executable, str(_OWN_USERS), str(file)]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_LOOK_S)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise PlanError(f"{where} cannot be loaded: its import takes longer than {_LOOK_S:g} s") from None
    except ValueError:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        why = last or f"its import ended with status {done.returncode}"
        raise PlanError(f"{where} cannot be loaded: {why}") from None
    if "error" in answer:
        raise PlanError(f"{where} cannot be loaded: {answer['error']}")
    found: dict[str, str] = answer["users"]
    return found


def start_generator(plan: Plan, slot: Slot, server: RunningServer, folder: Path) -> Child:
    """Start the generator against the server, in the round's folder, on the load's CPUs."""
    cpus = plan.pin.load if plan.pin else ()
    # locust takes options from LOCUST_* and from the current folder's [tool.locust]: neither may change a plan.
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    argv = [sys.executable, "-m", "locust", *_options(slot, server, folder)]
    # Users of their own may read files, and import modules, from where the lab was started.
    cwd = Path.cwd() if slot.load.locustfile else folder
    return Child(argv, log=folder / "generator.log", cwd=cwd, env=env, cpus=cpus)


def _options(slot: Slot, server: RunningServer, folder: Path) -> list[str]:
    load = slot.load
    # locust knows whole seconds only; the warm-up takes the rest.
    run_time_s = math.ceil(load.warmup_s + load.duration_s)
    # A user of the fast engine drives all the connections of its process.
    users = load.generators if load.engine == "fast" else load.connections
    options = {
        "--locustfile": LOCUSTFILE,
        "--users": users,
        "--spawn-rate": users,
        "--run-time": f"{run_time_s}s",
        "--stop-timeout": _drain_s(load),
        "--exit-code-on-error": 0,  # failed exchanges are in the result; the exit status is about the generator itself
        "--host": _host(load, server.address),
        "--seed": slot.seed,
        "--warmup": round(run_time_s - load.duration_s, 6),
        "--window": load.duration_s,
        "--result": _result(folder),
        "--live": progress_file(folder),
        **(_several(load.generators) if load.generators > 1 else {}),
    }
    rest: list[str] = []
    if load.locustfile:
        file, name = _file_and_class(load)
        options["--locustfile"] = f"{_OWN_USERS},{server.base.absolute() / file}"
        rest = [name]
    else:
        options |= _clients(load)
        rest = _web_options(load, server.base) if load.scenario in OVER_HTTP else []
    return ["--headless", "--only-summary", *(f"{name}={value}" for name, value in options.items()), *rest]


def _clients(load: Load) -> dict[str, object]:
    """Return the options of the lab's own users."""
    return {
        "--scenario": load.scenario,
        "--engine": load.engine,
        "--connections": load.connections,
        "--rate": load.rate_per_s,
        "--arrivals": load.arrivals,
        "--max-in-flight": load.max_in_flight,
        "--payload": load.payload,
        "--exchanges": load.exchanges,
        "--timeout": load.timeout_s,
    }


def _several(processes: int) -> dict[str, object]:
    """Return locust's options for a master and `processes` workers, which talk on a port of this machine."""
    port = free_port()
    host = "127.0.0.1"
    hosts = {"--master-bind-host": host, "--master-host": host}
    return {"--processes": processes, "--master-bind-port": port, "--master-port": port, **hosts}


def _host(load: Load, address: Address) -> str:
    if address.path:
        return str(address)
    scheme = {"http": "http", "websocket": "ws"}.get(load.scenario, "tcp")
    return f"{scheme}{'s' * load.tls}://{address}"


def _web_options(load: Load, base: Path) -> list[str]:
    body = _placed(load.body, base)
    options = [f"--method={load.method}", f"--body={body}", f"--status={load.status}"]
    options += [f"--path={_placed(path, base)}" for path in load.paths] + [f"--path-order={load.path_order}"]
    options += [f"--message={load.message}"]
    options += [f"--header={line}" for line in load.headers]
    options += [f"--length={load.length}"] if load.length is not None else []
    options += [f"--ca={base.absolute() / load.ca}"] if load.ca else []
    options += ["--no-keep-alive"] * (not load.keep_alive) + ["--no-retry"] * (not load.retry)
    return options + ["--insecure"] * load.insecure


def _placed(written: str, base: Path) -> str:
    """Return TEXT as it is, and @FILE, which starts in `base`, with its folder."""
    return f"@{base.absolute() / written[1:]}" if written.startswith("@") else written


def progress_file(folder: Path) -> Path:
    """Return the file to which the generator writes its progress while it runs."""
    return folder.absolute() / "generator.live"


def deadline_s(load: Load) -> float:
    """Return how long the generator may run, in seconds from its start."""
    return _START_AND_END_S + (1 + _LATE) * (load.warmup_s + load.duration_s) + _drain_s(load)


def _drain_s(load: Load) -> int:
    """Return how long exchanges in flight may take to end: a slow one shall fail by its own timeout, and be counted."""
    return max(_DRAIN_S, math.ceil(load.timeout_s) + 1)


def read_result(generator: Child, folder: Path) -> Client:
    """Read what the ended generator wrote. Raises GeneratorError when there is no result, or an invalid one."""
    file = _result(folder)
    try:
        client = Client.from_json(json.loads(file.read_bytes()))
    except FileNotFoundError:
        raise GeneratorError(last_words(generator, f"the generator {generator.status()} without a result")) from None
    except (ValueError, RecordError) as error:
        raise GeneratorError(last_words(generator, f"the generator's result cannot be read: {error}")) from None
    file.unlink()  # the round holds it
    if client.lost:
        raise GeneratorError(last_words(generator, f"{client.lost} of the generator's processes died in the run"))
    return client


def last_words(generator: Child, message: str) -> str:
    """Return the message with the end of the generator's log."""
    tail = generator.tail().replace("\n", "\n  ")
    return f"{message}\n  {tail or f'it wrote nothing to {generator.log}'}"


def _result(folder: Path) -> Path:
    return folder.absolute() / "generator.json"
