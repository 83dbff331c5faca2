"""What one connection has asked for so far: whole requests in their order, and the one that is still arriving. Pure.

Every request that is handed out is complete, with its body, so that who answers it never waits for the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http.body import BodyBuffer
from prefork.http.head import Request
from prefork.http.limits import Refusal
from prefork.http.parser import END, RequestParser

if TYPE_CHECKING:
    from prefork.http.fields import FieldTable
    from prefork.http.limits import Limits
    from prefork.http.parser import Event

Whole = tuple[Request | Refusal, BodyBuffer | None]


class Incoming:
    """Bytes in, whole requests out.

    `reading`: the request whose body is arriving; `received`: bytes of that body so far. `continues`: its client
    waits for 100 Continue before it sends any. `ended`: the client has sent its last. `quiet`: nothing of a next one
    has come, whole ones that wait left aside.
    """

    __slots__ = ("_body", "_parser", "_whole", "continues", "ended", "quiet", "reading", "received")

    def __init__(self, limits: Limits, fields: FieldTable) -> None:
        self._parser = RequestParser(limits, fields)
        self._whole: list[Whole] = []
        self._body: BodyBuffer | None = None
        self.reading: Request | None = None
        self.received = 0
        self.continues = False
        self.ended = False
        self.quiet = True

    def feed(self, data: bytes) -> Whole | None:
        """Take what the client sent, b"" at its end; return the next whole request, if there is one now."""
        if not data:
            self.ended = True
        events = self._parser.feed(data) if data else self._parser.eof()
        if len(events) == 1 and not self._whole:
            request = events[0]
            if type(request) is Request and request.complete:  # the usual case, straight through
                self.quiet = self._parser.idle
                return request, None
        for event in events:
            self._sort(event)
        self.quiet = not self.ended and self.reading is None and self._parser.idle
        return self._whole.pop(0) if self._whole else None

    def take(self) -> Whole:
        """The next whole request, with its body if it has one, or the refusal that ends the connection."""
        return self._whole.pop(0)

    def refuse(self, refusal: Refusal) -> None:
        """Give up what is arriving."""
        self._give_up()
        self._whole.append((refusal, None))

    def close(self) -> None:
        """Let go of everything."""
        for _, body in self._whole:
            if body is not None:
                body.close()
        self._whole.clear()
        self._give_up()

    @property
    def waiting(self) -> int:
        """Whole requests that nobody has taken yet."""
        return len(self._whole)

    @property
    def in_head(self) -> bool:
        """Whether the head of a request has begun, and is not complete."""
        return self.reading is None and not self._parser.idle

    def _sort(self, event: Event) -> None:
        if type(event) is Request and event.complete:
            self._whole.append((event, None))
        elif type(event) is Request:
            self.reading, self._body = event, BodyBuffer()
            self.received = 0
            self.continues = event.expects_continue
        elif type(event) is bytes:
            assert self._body is not None
            self._body.add(event)
            self.received += len(event)
            self.continues = False
        elif event is END:
            assert self.reading is not None
            self._whole.append((self.reading, self._body))
            self.reading = self._body = None
        else:
            assert type(event) is Refusal
            self.refuse(event)

    def _give_up(self) -> None:
        if self._body is not None:
            self._body.close()
        self.reading = self._body = None
