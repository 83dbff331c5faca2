"""CLIENT. Keys and the alternate screen of the terminal; afterwards the terminal is as it was before."""

from __future__ import annotations

import importlib.util
import os
import re
import termios
from types import TracebackType
from typing import Self

from prefork.cli.top.view import Line
from prefork.control.client import printable
from prefork.errors import ConfigError

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
