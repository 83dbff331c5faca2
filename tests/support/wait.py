"""The only polling in the suite: a test waits for an event, with a deadline, and never for an amount of time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

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
