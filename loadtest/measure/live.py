"""What the generator does right now, for the person who waits. No figure of a round comes from here."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tell = Callable[[float, int], None]  # exchanges per second just now, failed exchanges so far

_SPAN = 3  # looks that a rate is taken over: the generator writes twice a second, so that is one second


class Live:
    """Reads the line that the generator writes again and again (users/adapter.py); a probe among those of a round."""

    def __init__(self, file: Path, tell: Tell) -> None:
        self._file = file
        self._tell = tell
        self._seen: deque[tuple[int, int, int]] = deque(maxlen=_SPAN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.unlink(missing_ok=True)

    def sample(self) -> None:
        """Look, and tell if there is something new."""
        try:
            at_ns, well, failed = map(int, self._file.read_bytes().split())
        except (OSError, ValueError):
            return  # not there yet, or half written
        if not self._seen or at_ns != self._seen[-1][0]:
            self._seen.append((at_ns, well, failed))
            (first_ns, before, _), (last_ns, now, _) = self._seen[0], self._seen[-1]
            if last_ns > first_ns:
                self._tell((now - before) / ((last_ns - first_ns) / 1e9), failed)
