"""CLIENT. Interval and view as lines of styled text, exactly as many as the screen has. Pure.

From the top: two lines about the server, the listeners, the table or a text over it, one line of news, one
of keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from prefork.cli.top.interval import Document, Interval
from prefork.cli.top.view import Line, Pager, View, heading, rate, row
from prefork.status.document import cell

KEYS = "q quit  s stack  d deaths  +/- scale  r reload  t sort  p pause  h help"
HISTORY = 60  # samples of a queue that are remembered
_LISTENERS_MOST = 4
_UNICODE, _ASCII = "▁▂▃▄▅▆▇█", ".:-=+*%#"


class Queues:
    """The length of each listener's queue in the last samples. Listeners of one address are added up."""

    def __init__(self) -> None:
        self.lengths: dict[str, deque[int]] = {}

    def note(self, document: Document) -> None:
        """Add a sample."""
        for address, (queue, _limit, _drops) in listeners(document).items():
            self.lengths.setdefault(address, deque(maxlen=HISTORY)).append(queue or 0)


def paint(interval: Interval, view: View, queues: Queues, size: tuple[int, int], *, unicode: bool) -> list[Line]:
    """The whole screen: `size` is columns and lines."""
    width, height = size
    top = [_server(interval), _figures(interval), *_listeners(interval, queues, width, unicode=unicode)]
    room = max(1, height - len(top) - 3)  # below a heading and above two lines
    order = view.follow(interval)
    if view.pager is not None:
        view.room = room
        middle = _text(view.pager, width, room)
    else:
        shown = view.scroll(order, room)
        workers = [
            row(each, interval.workers[each["pid"]], width, selected=(each["slot"], each["pid"]) == view.selected)
            for each in shown
        ]
        middle = [heading(width, view.sort), *workers]
    middle += [[] for _ in range(room + 1 - len(middle))]
    return [*top, *middle, _news(view), _keys(interval, view, width)][:height]


def _server(interval: Interval) -> Line:
    server = interval.document["server"]
    state = "stopping" if server["stopping"] else "ready" if server["ready"] else "starting"
    style = {"ready": "bold green", "starting": "bold cyan", "stopping": "bold yellow"}[state]
    serves = f" ({server['kind']}, {server['engine']})" if server["kind"] else ""
    about = f"  pid {server['pid']}  generation {server['generation']}  up {cell('uptime_s', server['uptime_s'])}  "
    reloading: Line = [(", reloading", "bold yellow")] if server["reloading"] else []
    return [(" prefork ", "bold"), (state, style), *reloading, (about, ""), (f"{server['app']}{serves}", "bold")]


def _figures(interval: Interval) -> Line:
    server, totals, rates = interval.document["server"], interval.document["totals"], interval.total
    states = [worker["state"] for worker in interval.document["workers"]]
    serving = sum(state in ("IDLE", "BUSY") for state in states)
    line: Line = [
        (f" workers {serving}/{server['workers']}", "bold" if serving >= server["workers"] else "bold red"),
        (f", {states.count('BUSY')} busy", ""),
        (f"   {rate(rates.requests_per_s)} req/s", "bold"),
    ]
    for name in ("p50", "p99"):
        key = f"{name}_us"
        line.append((f"   {name} {cell(key, rates.quantiles.get(key))}", "dim" if key in rates.old else ""))
    line.append((f"   errors {totals['errors']}", ""))
    if rates.errors_per_s:
        line.append((f" ({rate(rates.errors_per_s)}/s)", "bold red"))
    deaths = interval.document["deaths"]["count"]
    return [*line, (f"   deaths {deaths}", "bold red" if deaths else "")]


def listeners(document: Document) -> Mapping[str, tuple[int | None, int | None, int | None]]:
    """Queue, limit and drops by address; with --accept per-worker an address has several sockets."""
    found: dict[str, tuple[int | None, int | None, int | None]] = {}
    for each in document["listeners"]:
        queue, limit, drops = found.get(each["address"], (None, None, None))
        found[each["address"]] = _sum(queue, each["queue"]), _sum(limit, each["limit"]), _sum(drops, each["drops"])
    return found


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other


def _listeners(interval: Interval, queues: Queues, width: int, *, unicode: bool) -> list[Line]:
    """The fullest first, if there are too many."""
    found = sorted(listeners(interval.document).items(), key=lambda item: -(item[1][0] or 0))
    shown = dict(found[:_LISTENERS_MOST])
    lines = []
    for address, (queue, limit, drops) in listeners(interval.document).items():
        if address in shown:
            text = f" {address}  queue {cell('queue', queue)} of {cell('limit', limit)}  "
            line: Line = [(text, "bold red" if limit and queue and queue * 2 > limit else "")]
            line.append((f"drops {cell('drops', drops)}", "bold red" if drops else ""))
            room = min(HISTORY, width - sum(len(part) for part, _ in line) - 3)
            if queue is not None and room > 0:
                line.append(("  " + sparkline(list(queues.lengths.get(address, ()))[-room:], unicode=unicode), "cyan"))
            lines.append(line)
    if len(found) > len(shown):
        lines.append([(f" and {len(found) - len(shown)} more listeners", "dim")])
    return lines


def sparkline(values: list[int], *, unicode: bool) -> str:
    """One mark a value, scaled to the largest; 0 has the lowest mark, and nothing else has."""
    marks = _UNICODE if unicode else _ASCII
    most, steps = max(values, default=0), len(marks) - 1
    return "".join(marks[-(-value * steps // most)] if value else marks[0] for value in values)


def _text(pager: Pager, width: int, room: int) -> list[Line]:
    lines = pager.text.split("\n")
    pager.first = max(0, min(pager.first, len(lines) - room))
    shown = lines[pager.first : pager.first + room]
    where = f"{pager.first + 1}-{pager.first + len(shown)} of {len(lines)}" if len(lines) > room else ""
    title = f" {pager.title}  {where}"
    return [[(f"{title:<{width}.{width}}", "reverse")], *([(f" {line[: width - 1]}", "")] for line in shown)]


def _news(view: View) -> Line:
    if view.confirming:
        return [(" reload every worker? y/n ", "bold reverse yellow")]
    if view.trouble:
        return [(f" {view.trouble}", "bold red")]
    if view.message:
        return [(f" {view.message}", "bold")]
    return [(" paused: p goes on", "bold yellow")] if view.paused else []


def _keys(interval: Interval, view: View, width: int) -> Line:
    count = len(interval.document["workers"])
    last = min(view.first + view.room, count)
    where = f"{view.first + 1}-{last} of {count}" if count > view.room and view.pager is None else ""
    keys = KEYS if view.pager is None else "q close  up/down, page up/page down, home/end move"
    room = max(0, width - len(where) - 1)
    return [(f"{f' {keys}':{room}.{room}}", "dim"), (f" {where}", "bold")]
