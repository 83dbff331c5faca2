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

UNIT = (
    "A unit of work is a connection of a stream handler or a Protocol, a request of HTTP, the handshake of a WebSocket."
)


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
    "Share of the time that handler code ran, of all threads together: 1 is all of them, always. Of an asyncio worker, "
    "the share of a processor that its loop used, and all of the time that it is stuck."
)
_TOOK = (
    "of how long the application took for one unit: from its call until it had given the last piece of its response. "
    "Waits for the client to send or to read, and waits in a queue, are not in it. For an asyncio.Protocol, whose "
    "waits are not known, it is how long the connection lasted. To 1 %."
)


def _units(part: str, over: str) -> list[Figure]:
    return [
        _figure(f"{part}.accepted", "count", over, "Connections taken from the kernel.", "", "ACCEPTED"),
        _figure(
            f"{part}.requests", "count", over,
            "Units of work done: requests of HTTP, connections of a stream handler.", "", "REQUESTS",
        ),
        _figure(
            f"{part}.errors", "count", over,
            "Units of work whose handler or application raised or broke its protocol.", "", "ERRORS",
        ),
    ]  # fmt: skip


def _bytes(part: str, over: str) -> list[Figure]:
    handed = (
        "Bytes handed to the kernel for clients; not those of an asyncio.Protocol, which gives them to the loop itself."
    )
    return [
        _figure(f"{part}.bytes_in", "bytes", over, "Bytes read from clients.", "", "IN"),
        _figure(f"{part}.bytes_out", "bytes", over, handed, "", "OUT"),
    ]


def _kinds(part: str, over: str) -> list[Figure]:
    key = f"{part}.errors_by_kind"
    failed = "The application failed, and the client was told (500), or its connection closed."
    return [
        _figure(key, "object", over, "Failures, each of them counted once."),
        _figure(f"{key}.app", "count", over, failed),
        _figure(f"{key}.aborted", "count", over, "The application failed in the midst of a response."),
        _figure(f"{key}.refused", "count", over, "The server refused a request: malformed, or beyond a limit."),
        _figure(f"{key}.timeout", "count", over, "The client did not send or read in time."),
        _figure(f"{key}.client_gone", "count", over, "The client left before its response was complete."),
    ]


def _waits(part: str, over: str) -> list[Figure]:
    key, least = f"{part}.queue_wait", "fewer than {} connections: too few to say"
    return [
        _figure(
            key, "object", over,
            "How long connections waited in the kernel until a worker took them, in steps of 0, 1, 3, 7, 15 ms and so "
            "on; TCP only, and not with --accept per-worker on an event loop of asyncio.",
        ),
        _figure(f"{key}.n", "count", over, "Connections of which the wait is known."),
        _figure(f"{key}.p50_ms", "milliseconds", over, "The median of the waits.", least.format(6)),
        _figure(f"{key}.p99_ms", "milliseconds", over, "The 99th percentile of the waits.", least.format(368)),
    ]  # fmt: skip


FIGURES = (
    _figure("server.version", "text", NOW, "The version of prefork that the master runs."),
    _figure("server.pid", "number", NOW, "The master's process id."),
    _figure("server.started", "UTC", NOW, "When the master started."),
    _figure("server.uptime_s", "seconds", NOW, "How long ago that was."),
    _figure("server.app", "text", NOW, "APP, as it was named."),
    _figure("server.kind", "text", NOW, "What APP is: stream, wsgi, asgi and so on.", "no worker has been ready yet"),
    _figure("server.engine", "text", NOW, "How workers serve it.", "no worker has been ready yet"),
    _figure("server.accept", "text", NOW, "shared: one queue for all workers; per-worker: one for each."),
    _figure("server.generation", "number", NOW, "Counted up by each reload; what new workers belong to."),
    _figure("server.workers", "count", NOW, "How many workers are wanted; `workers` lists those that live."),
    _figure("server.ready", "yes/no", NOW, "All wanted workers have been ready once, and no stop has begun."),
    _figure("server.reloading", "yes/no", NOW, "A reload is under way."),
    _figure("server.stopping", "yes/no", NOW, "A stop has begun."),
    _figure("server.last_reload", "object", NOW, "How the latest reload ended.", "none has ended yet"),
    _figure("server.last_reload.generation", "number", NOW, "The generation that it was for."),
    _figure("server.last_reload.ok", "yes/no", NOW, "Done, or abandoned."),
    _figure("server.last_reload.reason", "text", NOW, "Why it was abandoned.", "it was not"),
    _figure("server.last_reload.ended", "UTC", NOW, "When it ended."),
    _figure("server.control", "text", NOW, "The path of the control socket.", "it was handed on to another master"),
    _figure("server.config", "object", NOW, "Every option in force, durations in seconds, sizes in bytes."),
    _figure("listeners[].address", "text", NOW, "Where it listens.", "", "LISTENER"),
    _figure(
        "listeners[].queue", "count", NOW,
        "Connections that the kernel has completed and nobody has accepted yet.", "a Unix socket: not told", "QUEUE",
    ),
    _figure(
        "listeners[].limit", "count", NOW,
        "How many may wait so: --backlog, capped by net.core.somaxconn.", "a Unix socket: not told", "LIMIT",
    ),
    _figure(
        "listeners[].drops", "count", "since the socket was made",
        "Attempts to connect that the kernel dropped, mostly as the queue was full. The client's kernel tries again, "
        "so one client may count several times.", "a Unix socket: its client is told at once", "DROPS",
    ),
    _figure("workers[].slot", "number", NOW, "Its place, from 0; a successor gets the same.", "", "SLOT"),
    _figure("workers[].pid", "number", NOW, "Its process id.", "", "PID"),
    _figure("workers[].generation", "number", NOW, "The reload that it belongs to, 1 being the start.", "", "GEN"),
    _figure(
        "workers[].state", "text", NOW,
        "STARTING: does not accept yet. IDLE: no unit in progress. BUSY: one is, or a connection holds its thread, or "
        "its event loop is stuck. DRAINING: was told to leave, and finishes what it has.", "", "STATE",
    ),
    _figure("workers[].age_s", "seconds", NOW, "Since its process was forked.", "", "AGE"),
    _figure("workers[].connections", "count", NOW, "Open connections that it holds, idle ones too.", "", "CONN"),
    *_units("workers[]", WORKER),
    *_kinds("workers[]", WORKER),
    *_bytes("workers[]", WORKER),
    _figure("workers[].busy_ratio", "0 to 1", RECENT, _BUSY, "", "BUSY"),
    _figure("workers[].p50_us", "microseconds", WORKER, f"The median {_TOOK}", _FEW_P50, "P50"),
    _figure("workers[].p99_us", "microseconds", WORKER, f"The 99th percentile {_TOOK}", _FEW_P99, "P99"),
    *_waits("workers[]", WORKER),
    _figure(
        "workers[].cpu_s", "seconds", WORKER,
        "Processor time of the process, user and system, all threads.", "/proc is barred", "CPU",
    ),
    _figure(
        "workers[].pss_bytes", "bytes", "at most 10 s old",
        "Its share of memory: a page that four processes share counts a quarter for each, so the sum is what they use.",
        "/proc is barred, or it was not this worker's turn yet", "PSS",
    ),
    _figure(
        "workers[].serving", "text", NOW,
        "Whose unit is in progress, the oldest if there are several. Of asyncio, as of the last second.",
        "none is", "SERVING",
    ),
    _figure(
        "workers[].serving_s", "seconds", NOW,
        "For how long. Of a stream handler that blocks, since it last waited for its client.", "none is", "FOR",
    ),
    _figure(
        "workers[].deadline_in_s", "seconds", NOW,
        "Until --timeout kills the worker, unless the unit ends; of asyncio, unless the loop turns. Negative: overdue.",
        "no unit is in progress", "TIME LEFT",
    ),
    _figure(
        "workers[].work", "list", NOW,
        "What each busy thread serves, and for how long; of an event loop of asyncio, its oldest request, as it was "
        "at the last heartbeat.",
    ),
    _figure("workers[].work[].thread", "number", NOW, "Which of its threads, from 0."),
    _figure("workers[].work[].serving", "text", NOW, "Whom; of HTTP, with which request.", "nobody has been named yet"),
    _figure(
        "workers[].work[].busy_s", "seconds", NOW, "For how long, without waits for the client.",
        "it waits for its client",
    ),
    _figure("workers[].slow", "list", NOW, "The latest requests that took longer than --slow."),
    _figure("workers[].slow[].request", "text", "at its end", "Whose, and of HTTP, which."),
    _figure("workers[].slow[].took_s", "seconds", "at its end", "How long it took."),
    _figure("workers[].slow[].ended", "UTC", "at its end", "When that was."),
    _figure("totals.connections", "count", NOW, "The sum of the workers' connections.", "", "CONN"),
    *_units("totals", SERVER),
    _figure(
        "totals.idle_closed", "count", SERVER,
        "Connections of stream handlers closed because the client was silent for --idle-timeout.",
    ),
    _figure(
        "totals.too_long", "count", SERVER,
        "Connections of stream handlers closed because a line passed its limit.",
    ),
    _figure("totals.client_gone", "count", SERVER, "Units of work whose client left before they were done."),
    _figure(
        "totals.refused", "count", SERVER,
        "Requests that the server answered itself, malformed or beyond a limit: status 400, 413, 414, 431, 501.",
    ),
    _figure(
        "totals.timed_out", "count", SERVER,
        "Requests of which the rest did not come in time (status 408), and responses not read in time.",
    ),
    _figure(
        "totals.aborted", "count", SERVER,
        "Of the errors, those whose response had begun: the client got a part of it, and no end.",
    ),
    *_bytes("totals", SERVER),
    *_kinds("totals", SERVER),
    _figure(
        "totals.busy_s", "seconds", SERVER,
        "Time inside units of work, without waits for the client; of an event loop, its processor time.",
    ),
    _figure("totals.p50_us", "microseconds", SERVER, f"The median {_TOOK}", _FEW_P50, "P50"),
    _figure("totals.p99_us", "microseconds", SERVER, f"The 99th percentile {_TOOK}", _FEW_P99, "P99"),
    *_waits("totals", SERVER),
    _figure(
        "totals.respawns", "object", SERVER,
        "Workers that were replaced, by cause: how they died, timeout, boot-timeout, out-of-memory, killed, "
        "max-requests, max-memory, reload.",
    ),
    _figure("deaths.count", "count", SERVER, "Workers that died and were not told to, or would not go."),
    _figure(
        "deaths.last", "object", NOW,
        "The last of them. `prefork deaths --json` has the same of each, and `detail`: stacks or a traceback.",
        "nobody has died so",
    ),
    _figure("deaths.last.time", "UTC", "at its death", "When the master learnt of it."),
    _figure("deaths.last.slot", "number", "at its death", "Its place."),
    _figure("deaths.last.pid", "number", "at its death", "Its process id."),
    _figure("deaths.last.generation", "number", "at its death", "Its generation."),
    _figure(
        "deaths.last.cause", "text", "at its death",
        "A signal, an exit code, or timeout, boot-timeout, out-of-memory, killed: what `respawns` counts.",
    ),
    _figure("deaths.last.exit", "text", "at its death", "The signal or exit code, in the kernel's word."),
    _figure("deaths.last.reason", "text", "at its death", "What more is known.", "the cause says it all"),
    _figure("deaths.last.serving", "text", "at its death", "Whose unit was in progress.", "none was"),
    _figure("deaths.last.serving_s", "seconds", "at its death", "For how long.", "none was in progress"),
    _figure("deaths.last.last", "list", "at its death", "What each of its threads had served last."),
    _figure("deaths.last.slow", "list", "its life", "Its latest requests over --slow, as workers[].slow has them."),
    _figure("deaths.last.age_s", "seconds", "at its death", "Since it was forked."),
    _figure("deaths.last.requests", "count", "its life", "Units that it had completed."),
    _figure("deaths.last.cpu_s", "seconds", "its life", "Processor time that it had used, with its children's."),
    _figure(
        "deaths.last.peak_rss_bytes", "bytes", "its life",
        "The most memory that was resident at any time, shared pages counted in full; of the largest process that it "
        "had started itself and waited for, if that was more.",
    ),
    _figure(
        "deaths.last.respawn_in_s", "seconds", "at its death",
        "How long its successor was held back, as such deaths repeated; 0 is at once.", "there was to be none",
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
