"""WORKER. Errors that may come by the thousand: one traceback a second, and a count of the others."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, Any

from prefork.core.log import Log

if TYPE_CHECKING:
    from prefork.http.head import Request

_EVERY_S = 1.0
_MOST_TARGET = 200  # bytes


def name_of(request: Request | None) -> str | None:
    """What a line says of a request: its method and its target, which may be cut."""
    return f"{request.method} {request.target[:_MOST_TARGET].decode('latin1')}" if request else None


class RateLimitedLog:
    """WORKER, shared by its threads. What is not logged is counted and told with the next line of the same event."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = Lock()
        self._next_s: dict[str, float] = {}  # per event: when a line may be written again
        self._held_back: dict[str, int] = {}  # per event: lines not written since

    def add(self, error: BaseException, peer: str, request: Request | None = None) -> None:
        """A handler raised: log its traceback, unless one was logged within the last second."""
        self.note("handler failed", exc=error, peer=peer, request=name_of(request), error=type(error).__name__)

    def note(self, event: str, *, exc: BaseException | None = None, ours: bool = True, **fields: Any) -> None:
        """Log one event with these fields, at most once a second: an error, or, if not `ours`, a warning."""
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._next_s.get(event, 0.0):
                self._held_back[event] = self._held_back.get(event, 0) + 1
                return
            self._next_s[event] = now_s + _EVERY_S
            also = self._held_back.pop(event, 0)
        write = self._log.error if ours else self._log.warning
        write(event, exc=exc, also=also or None, **fields)
