"""The status document, and the tables and pages that people read. Pure.

Units are in the names. `null`, a dash in the table, is what cannot be known: the queue of a Unix socket, or a quantile
that so few samples do not bound (histogram.estimable).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefork.core.log import utc
from prefork.status.histogram import Histogram, estimable, summary

if TYPE_CHECKING:
    from prefork.status.scoreboard import Reading, Slow, Work
    from prefork.status.server_state import WorkerState

Document = dict[str, Any]

_NAMES = {"completed": "requests"}  # counters of the scoreboard that have another name here

STARTING, IDLE, BUSY, DRAINING = "STARTING", "IDLE", "BUSY", "DRAINING"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """One live worker at one moment. `held_is_busy`: each connection occupies a thread of its own.

    `threads`: how many units the application can work on at once; None for an event loop.
    """

    worker: WorkerState
    reading: Reading
    latencies: Histogram
    busy_ratio: float
    cpu_s: float | None
    pss_bytes: int | None
    held_is_busy: bool
    threads: int | None = None
    waits: Sequence[int] = ()
    work: Sequence[Work] = ()
    slow: Sequence[Document] = ()

    def document(self, *, timeout_s: float, now_s: float) -> Document:
        """The entry of `workers`."""
        counters, began_s, judged_s = self.reading.counters, self.reading.since_ns / 1e9, self.reading.judged_ns / 1e9
        work = [work_entry(each, now_s) for each in self.work if each.since_ns or (self.held_is_busy and each.held)]
        return {
            **name_of(self.worker),
            "state": state_of(self.worker, self.reading, held_is_busy=self.held_is_busy),
            "age_s": round(now_s - self.worker.spawned_s, 3),
            "connections": self.reading.held,
            "accepted": counters["accepted"],
            "requests": counters["completed"],
            "errors": counters["errors"],
            "errors_by_kind": errors_by_kind(counters),
            "bytes_in": counters["bytes_in"],
            "bytes_out": counters["bytes_out"],
            "busy_ratio": round(self.busy_ratio, 4),
            **quantiles(self.latencies),
            "queue_wait": summary(self.waits),
            "cpu_s": self.cpu_s,
            "pss_bytes": self.pss_bytes,
            "serving": (self.reading.serving or None) if began_s else None,
            "serving_s": round(now_s - began_s, 3) if began_s else None,
            "deadline_in_s": round(judged_s + timeout_s - now_s, 3) if began_s and judged_s and timeout_s else None,
            "threads": self.threads,
            "busy": None if self.threads is None else len(work),
            "work": work,
            "slow": list(self.slow),
        }


def work_entry(work: Work, now_s: float) -> Document:
    """The unit of work of one thread, and its time in seconds; null while it waits for its client."""
    busy_s = max(0.0, round(now_s - work.since_ns / 1e9, 3)) if work.since_ns else None  # it may have begun since
    return {"thread": work.thread, "serving": work.text or None, "busy_s": busy_s}


def errors_by_kind(counters: Mapping[str, int]) -> dict[str, int]:
    """The failures, each of them counted once."""
    return {
        "app": counters["errors"] - counters["aborted"],
        "aborted": counters["aborted"],
        "refused": counters["refused"] + counters["too_long"],
        "timeout": counters["timed_out"] + counters["idle_closed"],
        "client_gone": counters["client_gone"],
    }


def slow_document(slow: Slow) -> Document:
    """One slow request."""
    return {"request": slow.text, "took_s": round(slow.took_ns / 1e9, 3), "ended": utc(slow.ended_ns / 1e9)}


def name_of(worker: WorkerState) -> Document:
    """The keys that name a worker in a document."""
    return {"slot": worker.slot, "pid": worker.pid, "generation": worker.generation}


def state_of(worker: WorkerState, reading: Reading, *, held_is_busy: bool) -> str:
    """One of the four states."""
    if worker.retiring_s is not None:
        return DRAINING
    if worker.ready_s is None:
        return STARTING
    return BUSY if reading.since_ns or (held_is_busy and reading.held) else IDLE


def quantiles(latencies: Histogram) -> Document:
    """Median and 99th percentile in microseconds, null where there are too few samples."""
    return {
        name: round(latencies.quantile(q) / 1000) if estimable(q, latencies.n) else None
        for name, q in (("p50_us", 0.5), ("p99_us", 0.99))
    }


def totals(
    counters: Mapping[str, int],
    latencies: Histogram,
    *,
    connections: int,
    respawns: Mapping[str, int],
    waits: Sequence[int] = (),
) -> Document:
    """The entry `totals`: counters of all workers since the server started, and the connections that are open now."""
    named = {_NAMES.get(name, name): value for name, value in counters.items() if name != "busy_ns"}
    return {
        "connections": connections,
        **named,
        "in_transfer": counters["given"] - counters["received"],
        "errors_by_kind": errors_by_kind(counters),
        "busy_s": round(counters["busy_ns"] / 1e9, 3),
        **quantiles(latencies),
        "queue_wait": summary(waits),
        "respawns": dict(sorted(respawns.items())),
    }


# --- the table

_COLUMNS = {
    "SLOT": "slot",
    "PID": "pid",
    "GEN": "generation",
    "STATE": "state",
    "AGE": "age_s",
    "CONN": "connections",
    "ACCEPTED": "accepted",
    "REQUESTS": "requests",
    "ERRORS": "errors",
    "IN": "bytes_in",
    "OUT": "bytes_out",
    "BUSY": "busy_ratio",
    "P50": "p50_us",
    "P99": "p99_us",
    "CPU": "cpu_s",
    "PSS": "pss_bytes",
    "TIME LEFT": "deadline_in_s",
    "FOR": "serving_s",
    "SERVING": "serving",
}
_LISTENER_COLUMNS = {"LISTENER": "address", "QUEUE": "queue", "LIMIT": "limit", "DROPS": "drops"}
_TEXTS = frozenset({"address", "slot", "state", "serving"})  # the others are numbers, and stand at the right


def table(document: Document) -> str:
    """What `prefork status` prints."""
    return "\n\n".join(
        [
            _headline(document["server"]),
            _grid(document["listeners"], _LISTENER_COLUMNS),
            _grid([*document["workers"], {"slot": "all", **document["totals"]}], _COLUMNS),
            *_footer(document),
        ]
    )


def _grid(rows: Iterable[Document], columns: Mapping[str, str]) -> str:
    from tabulate import tabulate  # noqa: PLC0415 - heavy, and the master, which imports this module, has no use for it

    cells = [[cell(key, row[key]) if key in row else "" for key in columns.values()] for row in rows]
    align = ["left" if key in _TEXTS else "right" for key in columns.values()]
    return tabulate(cells, list(columns), tablefmt="plain", disable_numparse=True, colalign=align)


def _headline(server: Document) -> str:
    state = f"not ready: {server['unready']}" if server["unready"] else "ready"
    serves = f"{server['kind']}, {server['engine']}" if server["kind"] else "not loaded yet"
    return "  ".join(
        [
            f"prefork {server['version']}",
            f"pid {server['pid']}",
            f"{server['app']} ({serves})",
            f"generation {server['generation']}",
            f"{server['workers']} workers wanted",
            f"up {cell('uptime_s', server['uptime_s'])}",
            state + (", reloading" if server["reloading"] else ""),
        ]
    )


def _footer(document: Document) -> list[str]:
    lines = []
    if respawns := document["totals"]["respawns"]:
        lines.append("workers replaced: " + ", ".join(f"{cause} {count}" for cause, count in respawns.items()))
    if last := document["server"]["last_reload"]:
        end = "done" if last["ok"] else f"abandoned: {last['reason']}"
        lines.append(f"last reload: generation {last['generation']}, {last['ended']}, {end}")
    if last := document["deaths"]["last"]:
        whom = f", serving {last['serving']}" if last["serving"] else ""
        lines.append(
            f"died unexpectedly: {document['deaths']['count']}, last worker {last['slot']}, {last['time']}, "
            f"{last['cause']}{whom} (prefork deaths)"
        )
    return ["\n".join(lines)] if lines else []


def cell(key: str, value: Any) -> str:
    """A value with the unit that its key names."""
    if value is None:
        return "-"
    unit = key.rpartition("_")[2]
    if unit == "s":
        return _seconds(value)
    if unit == "us":
        return f"{value}us" if value < 1000 else f"{value / 1000:.3g}ms" if value < 1_000_000 else _seconds(value / 1e6)
    if unit == "ratio":
        return f"{value:.0%}"
    return _size(value) if "bytes" in key else str(value)


def _seconds(value: float) -> str:
    """`0.25s`, `42s`, `5m 3s`, `2h 5m`, `3d 4h`."""
    if value < 60:
        return f"{value:.3g}s"
    whole = int(value)
    for name, size, part_name, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{name} {whole % size // part}{part_name}"
    return f"{whole}s"


def _size(value: float) -> str:
    """`640`, `1.5k`, `12M`: powers of 1024, as in options."""
    for suffix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g}{suffix}"
        value /= 1024
    return f"{value:.3g}T"


# --- the page of `prefork stack`


def stacks_page(answer: Document) -> str:
    """What `prefork stack` prints."""
    return "\n\n".join(map(_worker, answer["workers"]))


def _worker(entry: Document) -> str:
    parts = [f"worker {entry['slot']}  pid {entry['pid']}  generation {entry['generation']}"]
    parts += [entry["state"]] if entry.get("state") else []
    parts += [f"serving {entry['serving']}"] if entry.get("serving") else []
    parts += [f"for {cell('busy_s', entry['busy_s'])}"] if entry.get("busy_s") is not None else []
    lines = (entry["stacks"] or entry["reason"] or "").rstrip().split("\n")
    return "\n".join(["  ".join(parts), *(f"  {line}" for line in lines)])
