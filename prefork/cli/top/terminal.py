"""CLIENT. The terminal's other screen, painted with rich; what was there before is there again afterwards."""

from __future__ import annotations

import importlib.util
import os
from types import TracebackType
from typing import Self

from prefork.cli.top.columns import Line
from prefork.control.client import printable
from prefork.errors import ConfigError


class Screen:
    """CLIENT. While it is entered, `show` replaces what is on it, without flicker."""

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
        """Columns and lines, now; rich would rather believe COLUMNS and LINES, which do not follow a change."""
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
        """Paint."""
        from rich.text import Text  # noqa: PLC0415

        safe = [[(printable(text), style) for text, style in line] for line in lines]
        page = Text("\n").join(Text.assemble(*line) for line in safe)
        page.no_wrap, page.overflow = True, "crop"
        self._live.update(page, refresh=True)
