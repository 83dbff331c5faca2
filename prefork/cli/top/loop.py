"""CLIENT. The loop of `prefork top`: wait for keys, answers, signals and the next look; read them; paint."""

from __future__ import annotations

import select
import signal
import time
from typing import Any

from prefork.cli.top.courier import Courier, Letter
from prefork.cli.top.interval import Document, Interval, between
from prefork.cli.top.keyboard import Keyboard
from prefork.cli.top.render import Queues, paint
from prefork.cli.top.terminal import Screen
from prefork.cli.top.view import Order, View
from prefork.control.client import printable
from prefork.core.signals import SignalInbox
from prefork.status.deaths import page
from prefork.status.stacks import stacks_page

LOOK = {"command": "status", "latencies": True}
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Loop:
    """CLIENT. `run` returns when the user has had enough."""

    def __init__(
        self, *, courier: Courier, first: Document, every_s: float, screen: Screen, keyboard: Keyboard
    ) -> None:
        self._courier = courier
        self._every_s = every_s
        self._screen = screen
        self._keyboard = keyboard
        self._interval: Interval = between(None, first)
        self._view = View()
        self._queues = Queues()
        self._queues.note(first)
        self._look_s = time.monotonic() + min(every_s, 1.0)  # when to look again; the first rates come soon
        self._inbox = SignalInbox([*_ENDS, signal.SIGWINCH])

    def run(self) -> None:
        """Until q, Ctrl-C, or the terminal's end."""
        poll = select.poll()
        for fd in (self._keyboard.fd, self._courier.fd, self._inbox.fd):
            poll.register(fd, select.POLLIN)
        while True:
            self._paint()
            if not any(fd == self._keyboard.fd for fd, _events in poll.poll(self._wait_ms())):
                keys: list[str] | None = []
            else:
                keys = self._keyboard.read()
            if keys is None or set(self._inbox.take()) & set(_ENDS):
                return
            for key in keys:
                order = self._view.press(key, self._interval)
                if order and order.kind == "quit":
                    return
                if order:
                    self._send(order)
            for letter in self._courier.take():
                self._read(letter)
            self._look()

    def _paint(self) -> None:
        view, size = self._view, self._screen.size
        self._screen.show(paint(self._interval, view, self._queues, size, unicode=self._screen.unicode))

    def _wait_ms(self) -> float:
        if self._view.paused or self._courier.busy("look"):
            return 60_000
        return max(0.0, self._look_s - time.monotonic()) * 1000

    def _look(self) -> None:
        if not self._view.paused and not self._courier.busy("look") and time.monotonic() >= self._look_s:
            self._look_s = time.monotonic() + self._every_s
            self._courier.send("look", LOOK)

    def _send(self, order: Order) -> None:
        match order.kind:
            case "stack":
                self._courier.send("stack", {"command": "stack", "slot": order.value})
            case "scale":
                self._view.message = f"scaling to {order.value} ..."
                self._courier.send("scale", {"command": "scale", "workers": order.value})
            case "reload":
                self._view.message = "reloading ..."
                self._courier.send("reload", {"command": "reload"})
            case "obituaries":
                self._courier.send("obituaries", {"command": "obituaries"})

    # --- what comes back

    def _read(self, letter: Letter) -> None:
        if letter.subject == "look":
            self._see(letter)
            return
        if letter.subject == "scale" and not letter.progress and not self._courier.busy("scale"):
            self._view.wanted = None
        pager = self._view.pager
        if letter.progress and letter.subject in ("reload", "scale"):
            self._view.message = f"{letter.subject}: {printable(letter.progress)}"
        elif pager is not None and pager.subject == letter.subject and not letter.progress:
            pager.text = letter.error or printable(_TEXTS[letter.subject](letter.answer))
        elif letter.error:
            self._view.message = f"{letter.subject}: {letter.error}"
        elif letter.subject in _DONE:
            self._view.message = _DONE[letter.subject].format(**letter.answer)

    def _see(self, letter: Letter) -> None:
        """A sample has come, or cannot be had: then what was last seen stays, and is said to be old."""
        if letter.error:
            self._view.trouble = f"waiting for the server: {letter.error}"
        elif not letter.progress:
            self._view.trouble = ""
            self._interval = between(self._interval.document, letter.answer)
            self._queues.note(letter.answer)


_DONE = {
    "reload": "reloaded: generation {generation}, in {took_s:.1f} s",
    "scale": "scaled: {workers} workers, before {before}, in {took_s:.1f} s",
}


def _obituaries(answer: Any) -> str:
    return page({"count": answer["count"], "obituaries": answer["obituaries"][::-1]})


_TEXTS = {"stack": stacks_page, "obituaries": _obituaries}
