"""CLIENT. The loop of `prefork top`: wait for keys, answers, signals and the next look; read them; paint."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefork.cli.top.interval import Document, Interval, between
from prefork.cli.top.render import Queues, paint
from prefork.cli.top.terminal import Keyboard, Screen
from prefork.cli.top.view import Order, View
from prefork.control.client import NoServerError, ask, find, printable
from prefork.core.signals import SignalInbox
from prefork.errors import PreforkError
from prefork.status.deaths import deaths_page
from prefork.status.document import stacks_page

# --- Carries questions to the server and answers back, each in a thread of its own: none holds up the keys.


Request = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What came of a question: `answer`, or `error`; before that, any number of times, how far it is: `progress`."""

    subject: str
    answer: Any = None
    error: str = ""
    progress: str = ""


class Courier:
    """CLIENT. `fd` is readable when `take` has something. `path` is the server's socket; it is looked for anew when
    nobody is there, as the next server has another."""

    def __init__(self, place: str, path: str) -> None:
        self._place = place
        self._path = path
        self._letters: deque[Letter] = deque()  # appended by threads, drained by take()
        self._under_way: set[str] = set()  # subjects
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def busy(self, subject: str) -> bool:
        """An answer is still to come."""
        return subject in self._under_way

    def send(self, subject: str, request: Request) -> None:
        """Ask; the thread dies with the program, whatever it waits for."""
        self._under_way.add(subject)
        threading.Thread(target=self._carry, args=(subject, request), daemon=True).start()

    def take(self) -> list[Letter]:
        """What has come since the last call. Never blocks."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass  # nothing new
        found = []
        while self._letters:
            found.append(self._letters.popleft())
        self._under_way -= {letter.subject for letter in found if not letter.progress}
        return found

    def _carry(self, subject: str, request: Request) -> None:
        def tell(progress: str) -> None:
            self._post(Letter(subject=subject, progress=progress))

        try:
            answer = self._ask(request, tell)
        except PreforkError as error:
            self._post(Letter(subject=subject, error=str(error)))
        else:
            self._post(Letter(subject=subject, answer=answer))

    def _ask(self, request: Request, tell: Callable[[str], None]) -> Any:
        try:
            return ask(self._path, request, progress=tell)
        except NoServerError:
            if request["command"] != "status":
                raise  # it was meant for the server that is gone
            self._path = find(self._place)
            return ask(self._path, request, progress=tell)

    def _post(self, letter: Letter) -> None:
        self._letters.append(letter)
        os.eventfd_write(self.fd, 1)


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
            case "deaths":
                self._courier.send("deaths", {"command": "deaths"})

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


def _deaths(answer: Any) -> str:
    return deaths_page({"count": answer["count"], "deaths": answer["deaths"][::-1]})


_TEXTS = {"stack": stacks_page, "deaths": _deaths}
