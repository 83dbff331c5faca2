"""The definition of each figure of `prefork status`: unit, meaning, period, and when it is null. Pure.

`prefork status --explain` prints this table, docs/operating.md shows it, the metrics take their help from it, and tests
compare it with the document, so that no figure is without its definition. What a unit of work is depends on the kind of
APP; figures that count units say `UNIT`, which is explained once.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

WIDTH = 100
NOW, WORKER, SERVER, RECENT = "now", "since the worker started", "since the server started", "the last 10 to 20 s"

UNIT = "A unit of work is a connection of a stream handler or a Protocol, an HTTP request, or a WebSocket handshake."


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One value. `key` is its place in the document, `[]` every item of a list; `column` its title in the table."""

    key: str
    unit: str
    over: str
    meaning: str
    null: str = ""
    column: str = ""


def _figure(key: str, unit: str, over: str, meaning: str, null: str = "", column: str = "") -> Figure:
    return Figure(key=key, unit=unit, over=over, meaning=meaning, null=null, column=column)


_FEW_P50, _FEW_P99 = "fewer than 6 units: too few to say", "fewer than 368 units: too few to say"
_BUSY = (
    "Share of the time in which handler code ran, averaged over the threads: 1 means all threads, all the time. For an "
    "asyncio worker, the share of a CPU that its loop used; time in which the loop is stuck counts fully."
)
_TOOK = (
    "of the application's time for one unit: from its call until it has returned the last piece of its response. Waits "
    "for the client, and waits in a queue, are not included. For an asyncio.Protocol, whose waits are not known, it is "
    "the time of the whole connection. Exact to 1 %."
)


def _units(part: str, over: str) -> list[Figure]:
    return [
        _figure(
            f"{part}.accepted", "count", over,
            "Connections accepted; in an upgrade also those taken over from the other master.", "", "ACCEPTED",
        ),
        _figure(
            f"{part}.requests", "count", over,
            "Units of work completed.", "", "REQUESTS",
        ),
        _figure(
            f"{part}.errors", "count", over,
            "Units of work whose handler or application raised or violated its protocol.", "", "ERRORS",
        ),
    ]  # fmt: skip


def _bytes(part: str, over: str) -> list[Figure]:
    handed = (
        "Bytes handed to the kernel for clients; without those of an asyncio.Protocol, which writes to the loop "
        "directly."
    )
    return [
        _figure(f"{part}.bytes_in", "bytes", over, "Bytes read from clients.", "", "IN"),
        _figure(f"{part}.bytes_out", "bytes", over, handed, "", "OUT"),
    ]


def _kinds(part: str, over: str) -> list[Figure]:
    key = f"{part}.errors_by_kind"
    failed = "The application failed; the client got status 500, or its connection was closed."
    return [
        _figure(key, "object", over, "Failures by kind; each counts once."),
        _figure(f"{key}.app", "count", over, failed),
        _figure(f"{key}.aborted", "count", over, "The application failed in the middle of a response."),
        _figure(
            f"{key}.refused", "count", over, "The server refused a request or connection: malformed, or over a limit."
        ),
        _figure(f"{key}.timeout", "count", over, "The client did not send or read in time."),
        _figure(f"{key}.client_gone", "count", over, "The client left before its response was complete."),
    ]


def _waits(part: str, over: str) -> list[Figure]:
    key, least = f"{part}.queue_wait", "fewer than {} connections: too few to say"
    return [
        _figure(
            key, "object", over,
            "How long connections waited in the accept queue, in steps of 0, 1, 3, 7, 15 ms and so "
            "on; TCP only, and not where uvloop accepts (--accept per-worker).",
        ),
        _figure(f"{key}.n", "count", over, "Connections whose wait is known."),
        _figure(f"{key}.p50_ms", "milliseconds", over, "The median of the waits.", least.format(6)),
        _figure(f"{key}.p99_ms", "milliseconds", over, "The 99th percentile of the waits.", least.format(368)),
    ]  # fmt: skip


FIGURES = (
    _figure("server.version", "text", NOW, "The version of prefork that the master runs."),
    _figure("server.pid", "number", NOW, "The master's process id."),
    _figure("server.started", "UTC", NOW, "When the master started."),
    _figure("server.uptime_s", "seconds", NOW, "Time since the start of the master."),
    _figure("server.app", "text", NOW, "APP, as given on the command line."),
    _figure("server.kind", "text", NOW, "The kind of APP: stream, wsgi, asgi, ...", "no worker has been ready yet"),
    _figure("server.engine", "text", NOW, "The engine that serves APP.", "no worker has been ready yet"),
    _figure("server.accept", "text", NOW, "shared: one queue for all workers; per-worker: one for each."),
    _figure("server.generation", "number", NOW, "The generation of new workers; each reload or upgrade adds 1."),
    _figure("server.workers", "count", NOW, "The wanted number of workers; `workers` lists the live ones."),
    _figure("server.ready", "yes/no", NOW, "The server takes clients, like /readyz."),
    _figure("server.unready", "text", NOW, "Why the server is not ready.", "it is ready"),
    _figure("server.reloading", "yes/no", NOW, "A reload is running."),
    _figure("server.stopping", "yes/no", NOW, "A stop has begun."),
    _figure("server.last_reload", "object", NOW, "The result of the latest reload.", "no reload has ended yet"),
    _figure("server.last_reload.generation", "number", NOW, "The generation that the reload was for."),
    _figure("server.last_reload.ok", "yes/no", NOW, "yes: completed; no: abandoned."),
    _figure("server.last_reload.reason", "text", NOW, "Why the reload was abandoned.", "it was not abandoned"),
    _figure("server.last_reload.ended", "UTC", NOW, "When the reload ended."),
    _figure("server.control", "text", NOW, "The path of the control socket.", "another master has taken it over"),
    _figure("server.config", "object", NOW, "All options in force; durations in seconds, sizes in bytes."),
    _figure("listeners[].address", "text", NOW, "The address of the listener.", "", "LISTENER"),
    _figure(
        "listeners[].queue", "count", NOW,
        "Established connections that wait to be accepted.", "a Unix socket: unknown", "QUEUE",
    ),
    _figure(
        "listeners[].limit", "count", NOW,
        "The most connections that may wait: --backlog, limited by net.core.somaxconn.", "a Unix socket: unknown",
        "LIMIT",
    ),
    _figure(
        "listeners[].drops", "count", "since the socket was made",
        "Attempts to connect that the kernel dropped, mostly because the queue was full. The client's kernel "
        "tries again, so one client may count several times.", "a Unix socket: its clients get an error", "DROPS",
    ),
    _figure("workers[].slot", "number", NOW, "The slot of the worker, from 0; a successor gets the same.", "", "SLOT"),
    _figure("workers[].pid", "number", NOW, "The worker's process id.", "", "PID"),
    _figure("workers[].generation", "number", NOW, "The generation of the worker; 1 is the start.", "", "GEN"),
    _figure(
        "workers[].state", "text", NOW,
        "STARTING: does not accept yet. IDLE: no unit in progress. BUSY: a unit is in progress, a connection holds its "
        "thread, or the event loop is stuck. DRAINING: is retiring, finishes its requests, and gives its connections "
        "away or ends them.", "", "STATE",
    ),
    _figure("workers[].age_s", "seconds", NOW, "Time since the fork of the worker.", "", "AGE"),
    _figure("workers[].connections", "count", NOW, "Open connections of the worker, also idle ones.", "", "CONN"),
    *_units("workers[]", WORKER),
    *_kinds("workers[]", WORKER),
    *_bytes("workers[]", WORKER),
    _figure("workers[].busy_ratio", "0 to 1", RECENT, _BUSY, "", "BUSY"),
    _figure("workers[].p50_us", "microseconds", WORKER, f"The median {_TOOK}", _FEW_P50, "P50"),
    _figure("workers[].p99_us", "microseconds", WORKER, f"The 99th percentile {_TOOK}", _FEW_P99, "P99"),
    *_waits("workers[]", WORKER),
    _figure(
        "workers[].cpu_s", "seconds", WORKER,
        "CPU time of the process, user and system, all threads.", "/proc is not readable", "CPU",
    ),
    _figure(
        "workers[].pss_bytes", "bytes", "at most 10 s old",
        "PSS: a page that four processes share counts a quarter for each, so the sum is the memory of all workers.",
        "/proc is not readable, or not measured yet", "PSS",
    ),
    _figure(
        "workers[].serving", "text", NOW,
        "The client (HTTP: and request) of the oldest unit in progress. Asyncio: at most 1 s old.",
        "no unit is in progress", "SERVING",
    ),
    _figure(
        "workers[].serving_s", "seconds", NOW,
        "How long that unit has run. Blocking stream handler: since its last wait for the client.",
        "no unit is in progress", "FOR",
    ),
    _figure(
        "workers[].deadline_in_s", "seconds", NOW,
        "Time until --timeout kills the worker, unless the unit ends (asyncio: the loop runs again). Negative: "
        "overdue.",
        "no unit is in progress", "TIME LEFT",
    ),
    _figure(
        "workers[].threads", "number", NOW, "Threads of the worker that can be in the application at once.",
        "an asyncio event loop",
    ),
    _figure(
        "workers[].busy", "count", NOW,
        "Those of its threads that are in the application now, or are held by a connection (stream handlers).",
        "an asyncio event loop",
    ),
    _figure(
        "workers[].work", "list", NOW,
        "The current unit of each busy thread; for an asyncio event loop, its oldest request at the last heartbeat.",
    ),
    _figure("workers[].work[].thread", "number", NOW, "The number of the thread, from 0."),
    _figure("workers[].work[].serving", "text", NOW, "The client; for HTTP, also the request.", "not known yet"),
    _figure(
        "workers[].work[].busy_s", "seconds", NOW, "How long the unit has run, without waits for the client.",
        "the thread waits for its client",
    ),
    _figure("workers[].slow", "list", NOW, "The latest requests that took longer than --slow."),
    _figure("workers[].slow[].request", "text", "at its end", "The client; for HTTP, also the request."),
    _figure("workers[].slow[].took_s", "seconds", "at its end", "How long the request took."),
    _figure("workers[].slow[].ended", "UTC", "at its end", "When the request ended."),
    _figure("totals.connections", "count", NOW, "The sum of the workers' connections.", "", "CONN"),
    *_units("totals", SERVER),
    _figure(
        "totals.closed", "count", SERVER,
        "Connections that have ended other than by a cut. accepted = closed + cut + connections + in_transfer.",
    ),
    _figure(
        "totals.cut", "count", SERVER,
        "Connections that were cut: by --graceful-timeout, the death of their worker, or a stop on their way.",
    ),
    _figure(
        "totals.given", "count", SERVER,
        "Idle connections that a worker gave to others, as it retired, had more than its share, or was full. One may "
        "be given several times.",
    ),
    _figure("totals.received", "count", SERVER, "Connections that workers took from others."),
    _figure(
        "totals.in_transfer", "count", NOW,
        "Connections given and not taken yet; after an upgrade, in the old master, those that the new one has.",
    ),
    _figure(
        "totals.idle_closed", "count", SERVER,
        "Connections of stream handlers closed because the client was silent for --idle-timeout.",
    ),
    _figure(
        "totals.too_long", "count", SERVER,
        "Connections of stream handlers closed because a line was too long.",
    ),
    _figure("totals.client_gone", "count", SERVER, "Units of work whose client left before they were done."),
    _figure(
        "totals.refused", "count", SERVER,
        "Requests that the server refused, malformed or over a limit: status 400, 413, 414, 431, 501, 503. Also "
        "connections refused in their PROXY header or TLS handshake.",
    ),
    _figure(
        "totals.timed_out", "count", SERVER,
        "Requests that were not complete in time (status 408), and responses that the client did not read in time.",
    ),
    _figure(
        "totals.aborted", "count", SERVER,
        "Errors after the response had begun: the client got only a part of it.",
    ),
    *_bytes("totals", SERVER),
    *_kinds("totals", SERVER),
    _figure(
        "totals.busy_s", "seconds", SERVER,
        "Time inside units of work, without waits for the client; for an event loop, its CPU time.",
    ),
    _figure("totals.p50_us", "microseconds", SERVER, f"The median {_TOOK}", _FEW_P50, "P50"),
    _figure("totals.p99_us", "microseconds", SERVER, f"The 99th percentile {_TOOK}", _FEW_P99, "P99"),
    *_waits("totals", SERVER),
    _figure(
        "totals.respawns", "object", SERVER,
        "Workers that were replaced, by cause: how they died, timeout, boot-timeout, out-of-memory, killed, "
        "max-requests, max-memory, max-age, reload.",
    ),
    _figure("deaths.count", "count", SERVER, "Workers that died without an order to retire, or were killed "
        "because they did not end."),
    _figure(
        "deaths.last", "object", NOW,
        "The last death. `prefork deaths --json` has the same for each, and `detail`: stacks or a traceback.",
        "there was none",
    ),
    _figure("deaths.last.time", "UTC", "at its death", "When the master noticed the death."),
    _figure("deaths.last.slot", "number", "at its death", "The worker's slot."),
    _figure("deaths.last.pid", "number", "at its death", "The worker's process id."),
    _figure("deaths.last.generation", "number", "at its death", "The worker's generation."),
    _figure(
        "deaths.last.cause", "text", "at its death",
        "A signal, an exit code, or timeout, boot-timeout, out-of-memory, killed: what `respawns` counts.",
    ),
    _figure("deaths.last.exit", "text", "at its death", "The signal or exit code."),
    _figure("deaths.last.reason", "text", "at its death", "More about the cause.", "nothing more is known"),
    _figure("deaths.last.serving", "text", "at its death", "The client (HTTP: and request) of the unit in "
        "progress.", "none was in progress"),
    _figure("deaths.last.serving_s", "seconds", "at its death", "How long that unit had run.", "none was in progress"),
    _figure("deaths.last.last", "list", "at its death", "The last unit of each thread."),
    _figure("deaths.last.slow", "list", "its life", "The worker's latest slow requests, like workers[].slow."),
    _figure("deaths.last.age_s", "seconds", "at its death", "Time since the fork of the worker."),
    _figure("deaths.last.cut", "count", "at its death", "Connections that ended with it."),
    _figure("deaths.last.requests", "count", "its life", "Units of work completed by the worker."),
    _figure("deaths.last.cpu_s", "seconds", "its life", "CPU time of the worker and its children."),
    _figure(
        "deaths.last.peak_rss_bytes", "bytes", "its life",
        "Peak resident memory, shared pages counted in full; or that of its largest child process, if that was more.",
    ),
    _figure(
        "deaths.last.respawn_in_s", "seconds", "at its death",
        "Delay of the successor after repeated deaths; 0: none.", "no successor",
    ),
)  # fmt: skip
MEANING = {figure.key: figure.meaning for figure in FIGURES}


def explanation(width: int = WIDTH) -> str:
    """What `prefork status --explain` prints."""
    parts = [textwrap.fill(f"{UNIT} A dash in the table is null in the JSON.", width)]
    for figure in FIGURES:
        title = f"{figure.key}  ({figure.column})" if figure.column else figure.key
        meaning = figure.meaning + (f" Null: {figure.null}." if figure.null else "")
        body = textwrap.fill(meaning, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        parts.append(f"{title}  {figure.unit}, {figure.over}\n{body}")
    return "\n\n".join(parts)
