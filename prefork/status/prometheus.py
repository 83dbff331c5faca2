"""A snapshot of the server as Prometheus reads it (text format 0.0.4). Pure.

Names follow the keys of `status --json`; METRICS is all there are, and the table in docs/operating.md is tested against
it. Workers are labelled by slot: counters of successive workers of a slot are added up, so that they never fall and
series do not multiply with pids. Only a new master begins at 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prefork.status.definitions import MEANING
from prefork.status.document import BUSY, DRAINING, IDLE, STARTING
from prefork.status.histogram import highest_ms
from prefork.status.scoreboard import COUNTERS

if TYPE_CHECKING:
    from prefork.status.collect import ServerSnapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_COUNTED = {  # names of the scoreboard, or cpu_ns: the name here, and by what to divide
    "accepted": ("accepted", 0),
    "completed": ("requests", 0),
    "errors": ("errors", 0),
    "bytes_in": ("bytes_in", 0),
    "bytes_out": ("bytes_out", 0),
    "busy_ns": ("busy_seconds", 1e9),
    "cpu_ns": ("cpu_seconds", 1e9),
}

Labels = Mapping[str, Any]
Sample = tuple[str, Labels, float]  # what follows the name, labels, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One family. `samples` reads it from a snapshot, and yields none where nothing is known."""

    name: str
    kind: str  # counter, gauge or histogram
    help: str
    samples: Callable[[ServerSnapshot], Iterable[Sample]]
    labels: tuple[str, ...] = ()


def render(snapshot: ServerSnapshot, *, alive: bool) -> bytes:
    """The whole text. `alive`: the master's loop turns."""
    lines = []
    for metric in METRICS:
        samples = [("", {}, float(alive))] if metric is _UP else metric.samples(snapshot)
        written = [f"{metric.name}{end}{_labels(labels)} {_number(value)}" for end, labels, value in samples]
        if written:
            lines += [f"# HELP {metric.name} {_escaped(metric.help)}", f"# TYPE {metric.name} {metric.kind}", *written]
    return ("\n".join(lines) + "\n").encode()


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    written = (f'{name}="{_escaped(str(value), quote=True)}"' for name, value in labels.items())
    return "{" + ",".join(written) + "}"


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.encode("utf-8", "replace").decode().replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


# --- where figures come from


def _server(key: str) -> Callable[[ServerSnapshot], Iterable[Sample]]:
    return lambda snapshot: [("", {}, snapshot.document["server"][key])]


def _total(key: str) -> Callable[[ServerSnapshot], Iterable[Sample]]:
    return lambda snapshot: [("", {}, snapshot.document["totals"][key])]


def _slot_total(counted: str) -> Callable[[ServerSnapshot], Iterable[Sample]]:
    _, unit = _COUNTED[counted]

    def read(snapshot: ServerSnapshot) -> Iterable[Sample]:
        for slot, found in snapshot.slots.items():
            yield "", {"slot": slot}, found[counted] / unit if unit else found[counted]

    return read


def _slot_now(key: str, join: Callable[[Iterable[float]], float] = sum) -> Callable[[ServerSnapshot], Iterable[Sample]]:
    """The values of the live workers; two may share a slot while one replaces the other."""

    def read(snapshot: ServerSnapshot) -> Iterable[Sample]:
        found: dict[int, list[float]] = {}
        for worker in snapshot.document["workers"]:
            if worker[key] is not None:
                found.setdefault(worker["slot"], []).append(worker[key])
        return [("", {"slot": slot}, join(values)) for slot, values in found.items()]

    return read


def _listener(key: str) -> Callable[[ServerSnapshot], Iterable[Sample]]:
    """By address: with --accept per-worker it has a queue for each worker."""

    def read(snapshot: ServerSnapshot) -> Iterable[Sample]:
        found: dict[str, float] = {}
        for listener in snapshot.document["listeners"]:
            if listener[key] is not None:
                found[listener["address"]] = found.get(listener["address"], 0) + listener[key]
        return [("", {"address": address}, value) for address, value in found.items()]

    return read


def _build(snapshot: ServerSnapshot) -> Iterable[Sample]:
    server = snapshot.document["server"]
    return [("", {key: server[key] or "" for key in _BUILD}, 1)]


def _ready(snapshot: ServerSnapshot) -> Iterable[Sample]:
    return [("", {}, not snapshot.unready)]


def _last_reload(snapshot: ServerSnapshot) -> Iterable[Sample]:
    last = snapshot.document["server"]["last_reload"]
    return [("", {}, last["ok"])] if last else []


def _states(snapshot: ServerSnapshot) -> Iterable[Sample]:
    found = Counter(worker["state"] for worker in snapshot.document["workers"])
    return [("", {"state": state}, found[state]) for state in (STARTING, IDLE, BUSY, DRAINING)]


def _respawns(snapshot: ServerSnapshot) -> Iterable[Sample]:
    return [("", {"cause": cause}, count) for cause, count in snapshot.document["totals"]["respawns"].items()]


def _durations(snapshot: ServerSnapshot) -> Iterable[Sample]:
    latencies = snapshot.latencies
    counts = latencies.at_most([round(limit_s * 1e9) for limit_s in BUCKETS_S])
    for limit_s, count in zip(BUCKETS_S, counts, strict=True):
        yield "_bucket", {"le": repr(limit_s)}, count
    yield "_bucket", {"le": "+Inf"}, latencies.n
    yield "_sum", {}, latencies.sum_ns / 1e9
    yield "_count", {}, latencies.n


def _queue_waits(snapshot: ServerSnapshot) -> Iterable[Sample]:
    """The last bucket counts what is longer than all others as well. The sum is not known."""
    counts = list(accumulate(snapshot.waits))
    for bucket, count in enumerate(counts[:-1]):
        yield "_bucket", {"le": repr((highest_ms(bucket) + 1) / 1000)}, count
    yield "_bucket", {"le": "+Inf"}, counts[-1]
    yield "_count", {}, counts[-1]


def _slot_counter(counted: str, help: str) -> Metric:  # noqa: A002 - as the format calls it
    name = f"prefork_worker_{_COUNTED[counted][0]}_total"
    return Metric(name=name, kind="counter", help=help, samples=_slot_total(counted), labels=("slot",))


def _counter(counted: str) -> Metric:
    name = _COUNTED[counted][0] if counted in _COUNTED else counted
    return Metric(name=f"prefork_{name}_total", kind="counter", help=MEANING[f"totals.{name}"], samples=_total(name))


_BUILD = ("version", "app", "kind", "engine", "accept")
_UP = Metric(
    name="prefork_up", kind="gauge", samples=lambda _: [], help="1 while the master's loop runs, else 0, like /healthz."
)
METRICS: tuple[Metric, ...] = (
    _UP,
    Metric(name="prefork_ready", kind="gauge", samples=_ready, help="1 while the server takes clients, like /readyz."),
    Metric(name="prefork_build_info", kind="gauge", samples=_build, labels=_BUILD, help="Always 1. The labels "
        "describe the server."),
    Metric(name="prefork_uptime_seconds", kind="gauge", samples=_server("uptime_s"), help="Age of the master."),
    Metric(name="prefork_generation", kind="gauge", samples=_server("generation"),
           help="Increased by each reload and upgrade."),
    Metric(name="prefork_last_reload_ok", kind="gauge", samples=_last_reload,
           help="1 if the last reload succeeded, 0 if it was abandoned. Absent before the first reload."),
    Metric(name="prefork_workers_wanted", kind="gauge", samples=_server("workers"),
           help="The wanted number of workers."),
    Metric(name="prefork_workers", kind="gauge", samples=_states, labels=("state",), help="Workers in each state."),
    Metric(name="prefork_threads", kind="gauge", help="Threads of each worker.",
           samples=lambda snapshot: [("", {}, snapshot.document["server"]["config"]["threads"])]),
    Metric(name="prefork_respawns_total", kind="counter", samples=_respawns, labels=("cause",),
           help="Workers that were replaced, by cause."),
    Metric(name="prefork_connections", kind="gauge", samples=_total("connections"), help="Open connections."),
    Metric(name="prefork_in_transfer", kind="gauge", samples=_total("in_transfer"), help=MEANING["totals.in_transfer"]),
    *map(_counter, [name for name in COUNTERS if name != "busy_ns"]),
    Metric(name="prefork_request_duration_seconds", kind="histogram", samples=_durations, labels=("le",),
           help="How long handler code ran for a unit of work, without waits for the client. Bounds are exact to 1 %."),
    Metric(name="prefork_queue_wait_seconds", kind="histogram", samples=_queue_waits, labels=("le",),
           help="How long connections waited in the accept queue. TCP only; resolution: the kernel's clock tick."),
    Metric(name="prefork_listener_queue", kind="gauge", samples=_listener("queue"), labels=("address",),
           help="Connections that wait to be accepted. Absent for Unix sockets."),
    Metric(name="prefork_listener_limit", kind="gauge", samples=_listener("limit"), labels=("address",),
           help="The most connections that may wait. Absent for Unix sockets."),
    Metric(name="prefork_listener_drops_total", kind="counter", samples=_listener("drops"), labels=("address",),
           help="Attempts to connect that the kernel dropped, mostly because the queue was full. TCP only."),
    *(_slot_counter(counted, MEANING[f"totals.{name}"]) for counted, (name, unit) in _COUNTED.items() if not unit),
    _slot_counter("busy_ns", MEANING["totals.busy_s"]),
    _slot_counter("cpu_ns", "User and system time of the slot's workers."),
    Metric(name="prefork_worker_connections", kind="gauge", samples=_slot_now("connections"), labels=("slot",),
           help="Open connections of the slot."),
    Metric(name="prefork_worker_busy_ratio", kind="gauge", samples=_slot_now("busy_ratio", max), labels=("slot",),
           help="Share of the last 10 to 20 seconds in which handler code ran, averaged over the threads."),
    Metric(name="prefork_worker_pss_bytes", kind="gauge", samples=_slot_now("pss_bytes"), labels=("slot",),
           help="Memory of the slot (PSS): shared pages divided by their users. At most 10 s old."),
    Metric(name="prefork_worker_age_seconds", kind="gauge", samples=_slot_now("age_s", min), labels=("slot",),
           help="Time since the fork of the slot's youngest worker."),
)  # fmt: skip
