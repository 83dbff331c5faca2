"""Ctrl-C and SIGTERM as something to look at, not as an exception between a fork and the line that keeps its pid.

The handler only notes. Every wait of a round watches the interrupt's descriptor too and then raises Interrupted from
a place where all processes are known and end with their context.
"""

from __future__ import annotations

import os
import signal
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818  # like KeyboardInterrupt: no error
    """Somebody wants the run to end."""


class Interrupt:
    """Takes the signals over for the length of its context; readable (for select) once one came."""

    def __init__(self) -> None:
        self.came = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._write)
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def _note(self, *_: object) -> None:
        self.came = True

    def fileno(self) -> int:
        """A descriptor that becomes readable with the first signal, and stays so."""
        return self._read

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.came:
            raise Interrupted
