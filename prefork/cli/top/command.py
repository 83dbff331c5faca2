"""CLIENT. The command `prefork top` and its loop: wait for keys, answers and signals, ask for samples, paint."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import signal
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import click

from prefork.cli.options import EXITS, needs_server
from prefork.cli.top.interval import Document, Interval, between
from prefork.cli.top.view import Line, Order, Queues, View, paint
from prefork.control.client import NoServerError, ask, find, printable
from prefork.core.signals import SignalInbox
from prefork.core.units import positive_duration
from prefork.errors import ConfigError, PreforkError
from prefork.status.deaths import deaths_page
from prefork.status.document import stacks_page

# --- Keys and the alternate screen of the terminal; afterwards the terminal is as it was before.


# Ctrl-C stays a signal. Ctrl-Z and Ctrl-\ do nothing: a stopped program could not restore the screen.

_SEQUENCES = {
    "[A": "up", "OA": "up", "[B": "down", "OB": "down", "[5~": "page up", "[6~": "page down", "[H": "home",
    "OH": "home", "[1~": "home", "[F": "end", "OF": "end", "[4~": "end",
}  # fmt: skip
_PLAIN = {"\x1b": "escape", "\r": "enter", "\n": "enter", " ": "page down", "\x7f": "page up"}
_KEY = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O[A-Za-z])|(.)", re.DOTALL)


def names(text: str) -> list[str]:
    """The names of the keys: `up`, `escape`, or a character. Unknown sequences are left out."""
    found = []
    for match in _KEY.finditer(text):
        sequence, plain = match.groups()
        name = _SEQUENCES.get(sequence) if sequence else _PLAIN.get(plain, plain)
        if name and (len(name) > 1 or name.isprintable()):
            found.append(name)
    return found


class Keyboard:
    """CLIENT. A context manager: inside it, `read` returns keys as they are pressed, without echo."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._before = termios.tcgetattr(fd)

    def __enter__(self) -> Self:
        mode = termios.tcgetattr(self.fd)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        for key in (termios.VSUSP, termios.VQUIT):
            mode[6][key] = bytes([os.fpathconf(self.fd, "PC_VDISABLE") & 0xFF])
        termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        try:
            termios.tcsetattr(self.fd, termios.TCSAFLUSH, self._before)
        except termios.error:
            pass  # the terminal has gone

    def read(self) -> list[str] | None:
        """The keys pressed since the last call; None when the terminal has gone."""
        try:
            data = os.read(self.fd, 4096)
        except OSError:
            return None  # EIO: it was hung up
        return names(data.decode("utf-8", "ignore")) if data else None


class Screen:
    """CLIENT. A context manager: inside it, `show` replaces the screen without flicker."""

    def __init__(self) -> None:
        """Raises ConfigError if rich is not installed."""
        if importlib.util.find_spec("rich") is None:
            raise ConfigError("prefork top needs the package rich: pip install 'prefork[top]'")
        from rich.console import Console  # noqa: PLC0415 - heavy, optional, and only here
        from rich.live import Live  # noqa: PLC0415

        self._console = Console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False)
        self.unicode = self._console.encoding.startswith("utf")

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, now; rich itself trusts COLUMNS and LINES, which do not follow a change."""
        try:
            self._console.size = found = os.get_terminal_size(self._console.file.fileno())
        except OSError:
            return 80, 24  # the terminal has gone: a signal says so in a moment
        return found

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        try:
            self._live.stop()
        except OSError:
            pass  # the terminal has gone

    def show(self, lines: list[Line]) -> None:
        """Paint these lines."""
        from rich.text import Text  # noqa: PLC0415

        safe = [[(printable(text), style) for text, style in line] for line in lines]
        page = Text("\n").join(Text.assemble(*line) for line in safe)
        page.no_wrap, page.overflow = True, "crop"
        self._live.update(page, refresh=True)


# --- requests to the server, each in a thread, so that keys work while the server does not answer

Request = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One reply to a request: `answer` or `error` is the last one; `progress` comes before, any number of times."""

    subject: str
    answer: Any = None
    error: str = ""
    progress: str = ""


class Requests:
    """CLIENT. The requests in progress. `fd` is readable when `take` has replies.

    `path` is the control socket; it is looked for again when the server has gone, as the next one has another.
    """

    def __init__(self, place: str, path: str) -> None:
        self._place = place
        self._path = path
        self._replies: deque[Reply] = deque()  # appended by threads, drained by take()
        self._pending: set[str] = set()  # subjects
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def busy(self, subject: str) -> bool:
        """True while an answer is still to come."""
        return subject in self._pending

    def send(self, subject: str, request: Request) -> None:
        """Send a request. Its thread ends with the program, whatever it waits for."""
        self._pending.add(subject)
        threading.Thread(target=self._run, args=(subject, request), daemon=True).start()

    def take(self) -> list[Reply]:
        """The replies since the last call. Never blocks."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass  # nothing new
        found = []
        while self._replies:
            found.append(self._replies.popleft())
        self._pending -= {reply.subject for reply in found if not reply.progress}
        return found

    def _run(self, subject: str, request: Request) -> None:
        def report(progress: str) -> None:
            self._post(Reply(subject=subject, progress=progress))

        try:
            answer = self._ask(request, report)
        except PreforkError as error:
            self._post(Reply(subject=subject, error=str(error)))
        else:
            self._post(Reply(subject=subject, answer=answer))

    def _ask(self, request: Request, report: Callable[[str], None]) -> Any:
        try:
            return ask(self._path, request, progress=report)
        except NoServerError:
            if request["command"] != "status":
                raise  # it was for the server that has gone
            self._path = find(self._place)
            return ask(self._path, request, progress=report)

    def _post(self, reply: Reply) -> None:
        self._replies.append(reply)
        os.eventfd_write(self.fd, 1)


# --- the loop

SAMPLE = {"command": "status", "latencies": True}
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Loop:
    """CLIENT. `run` returns when the user quits."""

    def __init__(
        self, *, requests: Requests, first: Document, every_s: float, screen: Screen, keyboard: Keyboard
    ) -> None:
        self._requests = requests
        self._every_s = every_s
        self._screen = screen
        self._keyboard = keyboard
        self._interval: Interval = between(None, first)
        self._view = View()
        self._queues = Queues()
        self._queues.note(first)
        self._sample_s = time.monotonic() + min(every_s, 1.0)  # when to ask for the next; the first rates come soon
        self._inbox = SignalInbox([*_ENDS, signal.SIGWINCH])

    def run(self) -> None:
        """Run until q, Ctrl-C, or the end of the terminal."""
        poll = select.poll()
        for fd in (self._keyboard.fd, self._requests.fd, self._inbox.fd):
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
            for reply in self._requests.take():
                self._read_reply(reply)
            self._ask_for_sample()

    def _paint(self) -> None:
        view, size = self._view, self._screen.size
        self._screen.show(paint(self._interval, view, self._queues, size, unicode=self._screen.unicode))

    def _wait_ms(self) -> float:
        if self._view.paused or self._requests.busy("sample"):
            return 60_000
        return max(0.0, self._sample_s - time.monotonic()) * 1000

    def _ask_for_sample(self) -> None:
        if not self._view.paused and not self._requests.busy("sample") and time.monotonic() >= self._sample_s:
            self._sample_s = time.monotonic() + self._every_s
            self._requests.send("sample", SAMPLE)

    def _send(self, order: Order) -> None:
        match order.kind:
            case "stack":
                self._requests.send("stack", {"command": "stack", "slot": order.value})
            case "scale":
                self._view.message = f"scaling to {order.value} ..."
                self._requests.send("scale", {"command": "scale", "workers": order.value})
            case "reload":
                self._view.message = "reloading ..."
                self._requests.send("reload", {"command": "reload"})
            case "deaths":
                self._requests.send("deaths", {"command": "deaths"})

    # --- replies

    def _read_reply(self, reply: Reply) -> None:
        if reply.subject == "sample":
            self._read_sample(reply)
            return
        if reply.subject == "scale" and not reply.progress and not self._requests.busy("scale"):
            self._view.wanted = None
        pager = self._view.pager
        if reply.progress and reply.subject in ("reload", "scale"):
            self._view.message = f"{reply.subject}: {printable(reply.progress)}"
        elif pager is not None and pager.subject == reply.subject and not reply.progress:
            pager.text = reply.error or printable(_TEXTS[reply.subject](reply.answer))
        elif reply.error:
            self._view.message = f"{reply.subject}: {reply.error}"
        elif reply.subject in _DONE:
            self._view.message = _DONE[reply.subject].format(**reply.answer)

    def _read_sample(self, reply: Reply) -> None:
        """Show a new sample; after an error the last one stays on the screen, with the error."""
        if reply.error:
            self._view.trouble = f"waiting for the server: {reply.error}"
        elif not reply.progress:
            self._view.trouble = ""
            self._interval = between(self._interval.document, reply.answer)
            self._queues.note(reply.answer)


_DONE = {
    "reload": "reloaded: generation {generation}, in {took_s:.1f} s",
    "scale": "scaled: {workers} workers, before {before}, in {took_s:.1f} s",
}


def _deaths(answer: Any) -> str:
    return deaths_page({"count": answer["count"], "deaths": answer["deaths"][::-1]})


_TEXTS = {"stack": stacks_page, "deaths": _deaths}


# --- the command


def _interval(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return max(0.1, positive_duration(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(epilog=EXITS)
@needs_server
@click.option(
    "--interval", "every_s", default="1s", show_default=True, metavar="DURATION", callback=_interval,
    help="The time between two samples, at least 100ms.",
)  # fmt: skip
def top(place: str, every_s: float) -> None:
    """Watch a running server live. See rates, latencies, each current request. Press h for the keys."""
    if not (sys.stdout.isatty() and sys.stdin.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise click.UsageError("prefork top needs a terminal that can move its cursor; prefork status prints once")
    screen = Screen()
    path = find(place)
    first = ask(path, SAMPLE, progress=_ignore)
    with Keyboard(sys.stdin.fileno()) as keyboard, screen:
        requests = Requests(place, path)
        Loop(requests=requests, first=first, every_s=every_s, screen=screen, keyboard=keyboard).run()


def _ignore(_text: str) -> None:
    pass
