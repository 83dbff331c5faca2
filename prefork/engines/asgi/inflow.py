"""WORKER. What a client has sent and nobody has taken yet: events in their order, and bytes that are not understood.

Bytes are understood a chunk at a time, and only when all events before them were taken: each chunk may be full of
requests, and then costs many times its size.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from prefork.http.parser import RequestParser
from prefork.http.request import Request

if TYPE_CHECKING:
    from prefork.engines.asgi.app import AsgiSite
    from prefork.http.parser import Event

_CHUNK = 16384


class Inflow:
    """WORKER. `in_head`: what was understood last is the beginning of a head."""

    __slots__ = ("_events", "_parser", "_raw", "in_head")

    def __init__(self, site: AsgiSite) -> None:
        self._parser = RequestParser(site.limits, site.fields, upgrades=True)
        self._events: deque[Event] = deque()
        self._raw = b""
        self.in_head = False

    @property
    def waiting(self) -> bool:
        """Whether something was not taken."""
        return bool(self._events or self._raw)

    @property
    def between(self) -> bool:
        """Whether nothing of a next request has come."""
        return self._parser.idle and not self._raw

    def feed(self, data: bytes, *, free: bool) -> Request | None:
        """Take what has come. Returns a request that came whole and alone, if one is wanted (`free`)."""
        if self._raw or len(data) > _CHUNK:
            self._raw += data
            return None
        events = self._parser.feed(data)
        if free and len(events) == 1 and not self.in_head:
            request = events[0]
            if type(request) is Request and request.complete and not request.upgrade and self._parser.idle:
                return request  # the usual case, straight through
        self._events.extend(events)
        return None

    def take(self) -> Event | None:
        """The next event, if there is one."""
        while not self._events:
            if not self._raw:
                self.in_head = not self._parser.idle
                return None
            piece, self._raw = self._raw[:_CHUNK], self._raw[_CHUNK:]
            self._events.extend(self._parser.feed(piece))
        return self._events.popleft()

    def put_back(self, event: Event) -> None:
        """Its turn has not come."""
        self._events.appendleft(event)

    def eof(self) -> list[Event]:
        """The client sends no more; see RequestParser."""
        return self._parser.eof()

    def detach(self) -> bytes:
        """Give up, and return what is not understood: it is of another protocol."""
        rest, self._raw = self._parser.detach() + self._raw, b""
        self._events.clear()
        return rest
