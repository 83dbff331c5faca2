"""Runs the load generator: locust, as a subprocess, so that its monkey-patching and its CPU stay out of the lab."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.data.records import Client, RecordError
from loadtest.measure.child import Child
from loadtest.measure.server import free_port
from loadtest.plan.plan import OVER_HTTP

if TYPE_CHECKING:
    from loadtest.measure.server import RunningServer
    from loadtest.plan.addresses import Address
    from loadtest.plan.plan import Load, Plan, Slot

_LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
_STOP_S = 10  # locust's wait for exchanges in flight at the end
_START_AND_END_S = 30.0  # importing locust, connecting, writing the result


class GeneratorError(Exception):
    """The generator gave no result; the message has its last words."""


def start_generator(plan: Plan, slot: Slot, server: RunningServer, folder: Path) -> Child:
    """Start the generator against the server, in the round's folder, on the load's CPUs."""
    cpus = plan.pin.load if plan.pin else ()
    # locust takes options from LOCUST_* and from the current folder's [tool.locust]: neither may change a plan.
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    argv = [sys.executable, "-m", "locust", *_options(slot, server, folder)]
    return Child(argv, log=folder / "generator.log", cwd=folder, env=env, cpus=cpus)


def _options(slot: Slot, server: RunningServer, folder: Path) -> list[str]:
    load = slot.load
    # locust knows whole seconds only; the warm-up takes the rest.
    run_time_s = math.ceil(load.warmup_s + load.duration_s)
    # A user of the fast engine drives all the connections of its process.
    users = load.generators if load.engine == "fast" else load.connections
    options = {
        "--locustfile": _LOCUSTFILE,
        "--users": users,
        "--spawn-rate": users,
        "--run-time": f"{run_time_s}s",
        "--stop-timeout": _STOP_S,
        "--exit-code-on-error": 0,  # failed exchanges are in the result; the exit status is about the generator itself
        "--host": _host(load, server.address),
        "--scenario": load.scenario,
        "--engine": load.engine,
        "--connections": load.connections,
        "--rate": load.rate_per_s,
        "--arrivals": load.arrivals,
        "--seed": slot.seed,
        "--max-in-flight": load.max_in_flight,
        "--payload": load.payload,
        "--exchanges": load.exchanges,
        "--warmup": round(run_time_s - load.duration_s, 6),
        "--window": load.duration_s,
        "--result": _result(folder),
        "--live": progress_file(folder),
        **(_several(load.generators) if load.generators > 1 else {}),
    }
    web = _web_options(load, server.base) if load.scenario in OVER_HTTP else []
    return ["--headless", "--only-summary", *(f"{name}={value}" for name, value in options.items()), *web]


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
    return _START_AND_END_S + load.warmup_s + load.duration_s + _STOP_S


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
