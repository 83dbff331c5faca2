"""The only polling in the suite: a test waits for an event, with a deadline, and never for an amount of time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

INTERVAL_S = 0.01


def eventually(look: Callable[[], T], *, within_s: float, what: str = "") -> T:
    """Return what `look` answers as soon as that is true; fail with `what` and the last answer after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        late = time.monotonic() >= deadline  # before the look: who had no CPU until now has not looked yet
        if seen := look():
            return seen
        if late:
            raise AssertionError(f"not within {within_s:g} s: {what or look}; last seen: {seen!r}")
        time.sleep(INTERVAL_S)


def marked(path: Path, lines: list[str]) -> None:
    """Wait until an application has noted these lines, and no others, in a file."""
    eventually(lambda: path.exists() and path.read_text().splitlines() == lines, within_s=30, what=f"{lines} in {path}")
