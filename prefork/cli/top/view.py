"""CLIENT. What the user looks at, and what each key does to it or asks of the server. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefork.cli.top.columns import SORTS, rows
from prefork.cli.top.interval import Interval

HELP = """
q, Ctrl-C       quit
j, k, up, down  select a worker; page up, page down, home and end do, too
s               the stacks of the selected worker
o               obituaries: how workers died
+, -            one worker more, one less
r               reload every worker (asks first)
t, T            the next, the last column to sort by
p               pause, go on
h, ?            this

In a text the same keys move; q or Escape closes it.

REQ/S, ERR/S, CPU and quantiles are of the time between two looks. A quantile
of which that time has too few requests is of the worker's whole life, and
dim. CPU: 100% is one processor. FOR is red when --timeout is near.
prefork status --explain says what each figure means.
""".strip("\n")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be asked of the server; `quit` is for the loop itself."""

    kind: str  # stack, obituaries, scale, reload, quit
    value: int = 0


@dataclass(slots=True)
class Pager:
    """A text over the table. `subject`: which answer it waits for, or shows."""

    subject: str
    title: str
    text: str
    first: int = 0  # the line at the top


@dataclass(slots=True)
class View:
    """Changed by `press` and by what the loop learns. `room`: lines for rows or text, as painted last."""

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
        """A key was pressed."""
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
            case "o":
                self.pager = Pager("obituaries", "obituaries, the latest first", "asking ...")
                return Order("obituaries")
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

    # --- where it looks

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
        """The rows that are to be seen; the selected one is among them."""
        self.room = room
        at = next((n for n, worker in enumerate(order) if (worker["slot"], worker["pid"]) == self.selected), 0)
        self.first = max(at - room + 1, min(self.first, at))
        self.first = max(0, min(self.first, len(order) - room))
        return order[self.first : self.first + room]


_PAGE, _END = 10_000_001, 10_000_000  # the first stands for as much as there is room for
_MOVES = {
    "up": -1, "k": -1, "down": 1, "j": 1, "page up": -_PAGE, "page down": _PAGE, "home": -_END, "end": _END,
}  # fmt: skip
