"""CLIENT. What is on the screen, and what each key changes there or asks of the server. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefork.cli.top.interval import Document, Interval, Rates
from prefork.status.document import cell

# --- the table of workers: columns, cells, and the order of the rows

Span = tuple[str, str]  # text and style
Line = list[Span]
Value = float | str | None
_SERVING_LEAST = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. `width` 0 takes the rest of the line. `drop`: left out on a narrower screen.

    `old`: the quantile that it shows; it is dim where that is not of the interval (Rates.old).
    """

    title: str
    width: int
    value: Callable[[Document, Rates], Value]
    show: Callable[[Value], str]
    drop: int = 0
    left: bool = False
    sorts: bool = False
    old: str = ""


def _of(key: str) -> Callable[[Document, Rates], Value]:
    return lambda worker, _rates: worker[key]


def _quantile(key: str) -> Callable[[Document, Rates], Value]:
    return lambda _worker, rates: rates.quantiles.get(key)


def _as(key: str) -> Callable[[Value], str]:
    return lambda value: cell(key, value)


def rate(value: Value) -> str:
    """`0`, `0.5`, `12.3`, `1234`, `1.2M`."""
    if not isinstance(value, (int, float)):
        return "-"
    if value < 100:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.0f}" if value < 1e6 else f"{value / 1e6:.3g}M"


COLUMNS = (
    Column(title="SLOT", width=4, value=_of("slot"), show=_as("slot"), left=True, sorts=True),
    Column(title="PID", width=7, value=_of("pid"), show=_as("pid")),
    Column(title="GEN", width=3, value=_of("generation"), show=_as("generation"), drop=100),
    Column(title="STATE", width=8, value=_of("state"), show=_as("state"), left=True),
    Column(title="REQ/S", width=6, value=lambda _, rates: rates.requests_per_s, show=rate, sorts=True),
    Column(title="ERR/S", width=6, value=lambda _, rates: rates.errors_per_s, show=rate, drop=110),
    Column(title="P50", width=6, value=_quantile("p50_us"), show=_as("p50_us"), drop=90, old="p50_us"),
    Column(title="P99", width=6, value=_quantile("p99_us"), show=_as("p99_us"), old="p99_us", sorts=True),
    Column(title="CPU", width=5, value=lambda _, rates: rates.cpu_ratio, show=_as("cpu_ratio"), sorts=True),
    Column(title="PSS", width=6, value=_of("pss_bytes"), show=_as("pss_bytes"), sorts=True),
    Column(title="CONN", width=5, value=_of("connections"), show=_as("connections"), sorts=True),
    Column(title="AGE", width=7, value=_of("age_s"), show=_as("age_s"), drop=100),
    Column(title="FOR", width=6, value=_of("serving_s"), show=_as("serving_s"), sorts=True),
    Column(title="SERVING", width=0, value=_of("serving"), show=_as("serving"), left=True),
)  # fmt: skip
SORTS = [column.title for column in COLUMNS if column.sorts]


def rows(interval: Interval, sort: str) -> list[Document]:
    """The workers, in order: by slot from the lowest, by anything else from the highest."""
    workers = sorted(interval.document["workers"], key=lambda worker: (worker["slot"], worker["generation"]))
    column = next(column for column in COLUMNS if column.title == sort)
    if column.title == "SLOT":
        return workers

    def rank(worker: Document) -> float:
        value = column.value(worker, interval.workers[worker["pid"]])
        return -value if isinstance(value, (int, float)) else 1.0  # what is not known comes last

    return sorted(workers, key=rank)


def heading(width: int, sort: str) -> Line:
    """The titles; the column that rows are sorted by is marked."""
    line: Line = [(" ", "reverse")]
    for column, size in fitting(width):
        title = f"{column.title:{'<' if column.left else '>'}{size}.{size}}"
        line += [(title, "reverse bold underline" if column.title == sort else "reverse"), (" ", "reverse")]
    return line


def row(worker: Document, rates: Rates, width: int, *, selected: bool) -> Line:
    """One worker."""
    line: Line = [(">" if selected else " ", "bold")]
    for column, size in fitting(width):
        text = column.show(column.value(worker, rates))
        if len(text) > size:
            text = text[: size - 1] + "~"
        style = _style(column, worker, rates)
        line += [(f"{text:{'<' if column.left else '>'}{size}}", f"{style} reverse" if selected else style)]
        line += [(" ", "reverse" if selected else "")]
    return line


def fitting(width: int) -> Sequence[tuple[Column, int]]:
    """The columns for a screen this wide, with their widths; the last takes what is left."""
    chosen = [column for column in COLUMNS if width >= column.drop]
    used = 1 + sum(column.width + 1 for column in chosen)
    return [(column, column.width or max(_SERVING_LEAST, width - used)) for column in chosen]


_STATES = {"STARTING": "cyan", "BUSY": "green", "DRAINING": "yellow"}
_LATE_S = 5.0  # to the deadline


def _style(column: Column, worker: Document, rates: Rates) -> str:
    if column.title == "STATE":
        return _STATES.get(worker["state"], "")
    if column.title == "FOR" and (left_s := worker["deadline_in_s"]) is not None and left_s < _LATE_S:
        return "bold red"
    return "dim" if column.old in rates.old or _empty(column.value(worker, rates)) else ""


def _empty(value: Any) -> bool:
    return value in (None, 0)


HELP = """
q, Ctrl-C       quit
j, k, up, down  select a worker; page up, page down, home and end do, too
s               the stacks of the selected worker
d               the unexpected deaths of workers
+, -            one worker more, one less
r               reload every worker (asks first)
t, T            the next, the last column to sort by
p               pause, go on
h, ?            this

In a text the same keys move; q or Escape closes it.

REQ/S, ERR/S, CPU and quantiles are of the time between two samples. A quantile
of which that time has too few requests is of the worker's whole life, and
dim. CPU: 100% is one processor. FOR is red when --timeout is near.
prefork status --explain says what each figure means.
""".strip("\n")


@dataclass(frozen=True, slots=True)
class Order:
    """What a key asks for: a command for the server, or `quit`."""

    kind: str  # stack, deaths, scale, reload, quit
    value: int = 0


@dataclass(slots=True)
class Pager:
    """A text over the table. `subject`: the answer that it waits for, or shows."""

    subject: str
    title: str
    text: str
    first: int = 0  # the line at the top


@dataclass(slots=True)
class View:
    """What is on the screen. `press` and the loop change it. `room`: lines for rows or text, as painted last."""

    sort: str = SORTS[0]
    selected: tuple[int, int] | None = None  # slot and pid
    first: int = 0  # the row at the top
    room: int = 10
    pager: Pager | None = None
    confirming: bool = False  # a reload was asked for, and not yet confirmed
    paused: bool = False
    message: str = ""
    trouble: str = ""  # why there is nothing new to show
    wanted: int | None = None  # workers, while scaling

    # --- keys

    def press(self, key: str, interval: Interval) -> Order | None:
        """Handle a key; return what it asks for."""
        if self.confirming:
            self.confirming = False
            self.message = "" if key == "y" else "not reloaded"
            return Order("reload") if key == "y" else None
        self.message = ""
        if self.pager is not None and key in (*_MOVES, "q", "escape"):
            self._turn(self.pager, key)
            return None
        if key in _MOVES:
            self._move(_MOVES[key], interval)
            return None
        return self._act(key, interval)

    def _act(self, key: str, interval: Interval) -> Order | None:
        match key:
            case "q":
                return Order("quit")
            case "s":
                return self._stack()
            case "d":
                self.pager = Pager("deaths", "unexpected deaths, the latest first", "asking ...")
                return Order("deaths")
            case "h" | "?":
                self.pager = None if self.pager and self.pager.subject == "help" else Pager("help", "help", HELP)
            case "+" | "=" | "-":
                return self._scale(-1 if key == "-" else 1, interval)
            case "r":
                self.confirming = True
            case "t" | "T":
                step = 1 if key == "t" else -1
                self.sort = SORTS[(SORTS.index(self.sort) + step) % len(SORTS)]
                self.message = f"sorted by {self.sort}"
            case "p":
                self.paused = not self.paused
        return None

    def _stack(self) -> Order | None:
        if self.selected is None:
            self.message = "there is no worker"
            return None
        slot, _pid = self.selected
        self.pager = Pager("stack", f"stacks of worker {slot}", "asking ...")
        return Order("stack", slot)

    def _scale(self, step: int, interval: Interval) -> Order | None:
        workers = (interval.document["server"]["workers"] if self.wanted is None else self.wanted) + step
        if workers < 1:
            self.message = "one worker is the least here; prefork scale 0 gives none"
            return None
        self.wanted = workers
        return Order("scale", workers)

    # --- selection and scrolling

    def _move(self, step: int, interval: Interval) -> None:
        order = [(worker["slot"], worker["pid"]) for worker in rows(interval, self.sort)]
        if order:
            now = order.index(self.selected) if self.selected in order else 0
            self.selected = order[max(0, min(len(order) - 1, now + self._distance(step)))]

    def _turn(self, pager: Pager, key: str) -> None:
        if key in ("q", "escape"):
            self.pager = None
        else:
            last = max(0, pager.text.count("\n") + 1 - self.room)
            pager.first = max(0, min(last, pager.first + self._distance(_MOVES[key])))

    def _distance(self, step: int) -> int:
        return {_PAGE: self.room, -_PAGE: -self.room}.get(step, step)

    def follow(self, interval: Interval) -> list[dict[str, Any]]:
        """The rows, with one of them selected: the same process, else its successor, else the first."""
        order = rows(interval, self.sort)
        names = [(worker["slot"], worker["pid"]) for worker in order]
        if self.selected not in names:
            slot = self.selected[0] if self.selected else None
            self.selected = next((name for name in names if name[0] == slot), names[0] if names else None)
        return order

    def scroll(self, order: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
        """The rows on the screen; the selected one is among them."""
        self.room = room
        at = next((n for n, worker in enumerate(order) if (worker["slot"], worker["pid"]) == self.selected), 0)
        self.first = max(at - room + 1, min(self.first, at))
        self.first = max(0, min(self.first, len(order) - room))
        return order[self.first : self.first + room]


_PAGE, _END = 10_000_001, 10_000_000  # the first stands for as much as there is room for
_MOVES = {
    "up": -1, "k": -1, "down": 1, "j": 1, "page up": -_PAGE, "page down": _PAGE, "home": -_END, "end": _END,
}  # fmt: skip


# --- Interval and view as lines of styled text, exactly as many as the screen has. Pure.
#
# From the top: two lines about the server, the listeners, the table or a text over it, one line of news, one
# of keys.


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
    state = f"not ready: {server['unready']}" if server["unready"] else "ready"
    style = "bold red" if server["unready"] else "bold green"
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
