"""Runs the load generator: locust, as a subprocess, so that its monkey-patching and its CPU stay out of the lab."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .child import Child
from .record import Client, RecordError

if TYPE_CHECKING:
    from .plan import Load, Plan

_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_STOP_S = 10  # locust's wait for exchanges in flight at the end
_START_AND_END_S = 30.0  # importing locust, connecting, writing the result


class GeneratorError(Exception):
    """The generator gave no result; the message has its last words."""


def start(plan: Plan, load: Load, address: str, folder: Path) -> Child:
    """Start the generator in the round's folder, on the load's CPUs."""
    cpus = plan.pin.load if plan.pin else ()
    # locust takes options from LOCUST_* and from the current folder's [tool.locust]: neither may change a plan.
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    argv = [sys.executable, "-m", "locust", *_options(load, address, folder)]
    return Child(argv, log=folder / "generator.log", cwd=folder, env=env, cpus=cpus)


def _options(load: Load, address: str, folder: Path) -> list[str]:
    scheme = "http" if load.scenario == "http" else "tcp"
    run_time_s = math.ceil(
        load.warmup_s + load.duration_s
    )  # locust knows whole seconds only; the warm-up takes the rest
    users = 1 if load.engine == "fast" else load.connections  # a fast user drives all connections
    options = {
        "-f": _LOCUSTFILE,
        "--users": users,
        "--spawn-rate": users,
        "--run-time": f"{run_time_s}s",
        "--stop-timeout": _STOP_S,
        "--exit-code-on-error": 0,  # failed exchanges are in the result; the exit status is about the generator itself
        "--host": f"{scheme}://{address}",
        "--scenario": load.scenario,
        "--engine": load.engine,
        "--connections": load.connections,
        "--rate": load.rate_per_s,
        "--arrivals": load.arrivals,
        "--max-in-flight": load.max_in_flight,
        "--payload": load.payload,
        "--exchanges": load.exchanges,
        "--warmup": round(run_time_s - load.duration_s, 6),
        "--result": _result(folder),
    }
    return ["--headless", "--only-summary", *(str(word) for option in options.items() for word in option)]


def deadline_s(load: Load) -> float:
    """How long the generator may run, from its start."""
    return _START_AND_END_S + load.warmup_s + load.duration_s + _STOP_S


def result(generator: Child, folder: Path) -> Client:
    """What the ended generator wrote. Raises GeneratorError when that is nothing, or not what was agreed."""
    file = _result(folder)
    try:
        client = Client.from_json(json.loads(file.read_bytes()))
    except FileNotFoundError:
        raise GeneratorError(last_words(generator, f"the generator {generator.status()} without a result")) from None
    except (ValueError, RecordError) as error:
        raise GeneratorError(last_words(generator, f"the generator's result cannot be read: {error}")) from None
    file.unlink()  # the round's own file holds it
    return client


def last_words(generator: Child, message: str) -> str:
    """The message with the end of the generator's log."""
    tail = generator.tail().replace("\n", "\n  ")
    return f"{message}\n  {tail or f'it wrote nothing to {generator.log}'}"


def _result(folder: Path) -> Path:
    return folder.absolute() / "generator.json"
