"""Bytes of one connection to requests: the events of HTTP/1.1's server side. Pure.

    request, bytes*, END?       one after the other, as the client pipelines them
    refusal                     the last event, if what came is not a request

`feed` takes bytes as they were received and gives what they amount to. Each line is judged at its end, each length
as soon as it is passed, and how the bytes were cut makes no difference to what comes out.

A parser is always in one step: a method that is given data and a position in it, and returns how far it got. What it
leaves is put before the next bytes; that is never more than a line, which is bounded. Usually a head comes in one
piece, and `feed` takes a short way.

Rejected: a parser in C with callbacks. Measured, its callbacks cost more than splitting the head in Python, and what
it leaves open (Upgrade with a body, chunk extensions, unfinished lines) has to be found again in the raw bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, TypeAlias

from prefork.http.body import BodyBuffer
from prefork.http.chunked import ChunkedDecoder
from prefork.http.fields import FieldTable
from prefork.http.head import HeadReader, Request, again, can_repeat, whole
from prefork.http.limits import Limits, Refusal, RefusalError

_HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"


class End(Enum):
    """The type of END."""

    END = "END"

    def __repr__(self) -> str:
        return self.value


END: Final = End.END  # the body is complete; only after a request with `complete` False
Event: TypeAlias = Request | bytes | End | Refusal
Step: TypeAlias = "Callable[[RequestParser, bytes, int, list[Event]], int]"


class RequestParser:
    """The requests of one connection.

    `table`: shared by all parsers of a worker. `upgrades`: stop after a request that asks to speak another protocol
    (`request.upgrade`) and keep what follows for `detach`; without it such a request is one like any other.
    """

    __slots__ = (
        "_chunks",
        "_head",
        "_is_head",
        "_keep_alive",
        "_left",
        "_limits",
        "_repeated",
        "_rest",
        "_step",
        "_table",
        "_upgrades",
        "_usual",
    )

    def __init__(self, limits: Limits, table: FieldTable | None = None, *, upgrades: bool = False) -> None:
        self._limits = limits
        self._table = FieldTable() if table is None else table
        self._upgrades = upgrades
        self._repeated = b""  # what stood behind the last request line, if it was usual; and what it meant
        self._usual: Request | None = None
        self._step: Step | None = None  # None: at the start of a request
        self._rest = b""  # what came and is not understood yet
        self._head: HeadReader | None = None  # a head that did not come in one piece
        self._left = 0  # bytes still to come of a body with a Content-Length
        self._chunks: ChunkedDecoder | None = None
        self._keep_alive = True  # of the request whose body is read
        self._is_head = False  # the same

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return what they complete. Raises for nothing that a client may send."""
        if self._step is None and data[-4:] == _HEAD_END:
            # A client that keeps its connection sends the same fields again and again: they are judged once
            # (measured: half of the time that a browser's request takes here).
            end = data.find(_LINE_END)
            if self._usual is not None and data[end:] == self._repeated and end <= self._limits.request_line_bytes:
                request = again(data[:end], self._usual, self._table)
            else:
                request = whole(data[:-4], self._table, self._limits)
                self._usual = request if request is not None and can_repeat(request) else None
                self._repeated = data[end:] if self._usual is not None else b""
            if request is not None:  # one head and nothing else: the usual case
                if not request.complete or not request.keep_alive or request.upgrade:
                    self._follow(request)
                return [request]
        if self._rest:
            data = self._rest + data
        events: list[Event] = []
        position = 0
        try:
            position = self._read(data, events)
        except RefusalError as error:
            events.append(self.refusal(error.status, error.reason))
            self._step = RequestParser._discard
            position = len(data)
        self._rest = data[position:]
        return events

    def eof(self) -> list[Event]:
        """The client will send no more: a refusal if it left a request unfinished. Nothing can be fed after that."""
        finished = self.idle or self._step is RequestParser._wait
        self._step = RequestParser._discard
        self._rest = b""
        return [] if finished else [self.refusal(400, "the client's last request has no end")]

    def refusal(self, status: int, reason: str) -> Refusal:
        """Return the refusal of the request that is arriving, with what is known of it."""
        return Refusal(status, reason, head=self._is_head if self._head is None else self._head.is_head)

    def detach(self) -> bytes:
        """Stop, and return what came behind a request with `upgrade`: bytes of the other protocol."""
        rest, self._rest = self._rest, b""
        self._step = RequestParser._discard
        return rest

    @property
    def idle(self) -> bool:
        """Whether nothing of a next request has arrived; so it is when none will be understood any more."""
        between = self._step is None or self._step is RequestParser._discard
        return not self._rest and (between or (self._head is not None and self._head.request is None))

    @property
    def backlog_bytes(self) -> int:
        """How much came that is not understood yet."""
        return len(self._rest)

    def _read(self, data: bytes, events: list[Event]) -> int:
        """Go from step to step; returns how much of the data is understood."""
        position = 0
        while position < len(data):
            start, step = position, self._step
            position = (step or RequestParser._start)(self, data, position, events)
            if position == start and step is self._step:
                break
        return position

    def _start(self, data: bytes, position: int, events: list[Event]) -> int:
        """At the start of a request: try for a whole head."""
        end = data.find(_HEAD_END, position)
        request = whole(data[position:end], self._table, self._limits) if end > 0 else None
        if request is None:
            self._head = HeadReader(self._limits, self._table)
            self._step = RequestParser._read_head
            return position
        events.append(request)
        self._follow(request)
        return end + 4

    def _read_head(self, data: bytes, position: int, events: list[Event]) -> int:
        head = self._head
        assert head is not None
        while end := data.find(b"\n", position) + 1:
            request = head.take(data[position:end])
            position = end
            if request is not None:
                self._head = None
                events.append(request)
                self._follow(request)
                return position
        head.check(data[position:])
        return position

    def _follow(self, request: Request) -> None:
        """Choose the step after a head."""
        self._keep_alive = request.keep_alive
        self._is_head = request.method == "HEAD"
        if request.chunked:
            self._chunks = ChunkedDecoder(self._limits, self._table)
            self._step = RequestParser._read_chunks
        elif not request.complete:
            self._left = request.content_length or 0
            self._step = RequestParser._read_sized
        elif request.upgrade and self._upgrades:
            self._step = RequestParser._wait
        else:
            self._step = None if self._keep_alive else RequestParser._discard

    def _read_sized(self, data: bytes, position: int, events: list[Event]) -> int:
        """A body with a Content-Length."""
        piece = data[position : position + self._left]
        self._left -= len(piece)
        events.append(piece)
        if not self._left:
            self._finish(events)
        return position + len(piece)

    def _read_chunks(self, data: bytes, position: int, events: list[Event]) -> int:
        assert self._chunks is not None
        pieces: list[bytes] = []
        try:
            position = self._chunks.decode(data, position, pieces)
        finally:  # also what came before a fault: it does not depend on where the bytes were cut
            if pieces:
                events.append(b"".join(pieces))
        if self._chunks.done:
            self._finish(events)
        return position

    def _finish(self, events: list[Event]) -> None:
        """The body is complete."""
        events.append(END)
        self._chunks = None
        self._step = None if self._keep_alive else RequestParser._discard

    def _discard(self, data: bytes, position: int, events: list[Event]) -> int:  # noqa: ARG002 - a step
        """After a refusal, or the last request of a connection: whatever comes is not ours to answer."""
        return len(data)

    def _wait(self, data: bytes, position: int, events: list[Event]) -> int:  # noqa: ARG002 - a step
        """Keep the bytes for `detach`: they are not HTTP."""
        return position


# --- What one connection has asked for so far: whole requests in their order, and the one that is still arriving. Pure.
#
# Every request that is handed out is complete, with its body, so that who answers it never waits for the client.


CompleteRequest = tuple[Request | Refusal, BodyBuffer | None]


class RequestQueue:
    """Bytes in, whole requests out.

    `reading`: the request whose body is arriving; `received`: bytes of that body so far. `continues`: its client
    waits for 100 Continue before it sends any. `ended`: the client has sent its last. `quiet`: nothing of a next one
    has come, whole ones that wait left aside.
    """

    __slots__ = ("_body", "_parser", "_whole", "continues", "ended", "quiet", "reading", "received")

    def __init__(self, limits: Limits, fields: FieldTable) -> None:
        self._parser = RequestParser(limits, fields)
        self._whole: list[CompleteRequest] = []
        self._body: BodyBuffer | None = None
        self.reading: Request | None = None
        self.received = 0
        self.continues = False
        self.ended = False
        self.quiet = True

    def feed(self, data: bytes) -> CompleteRequest | None:
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

    def take(self) -> CompleteRequest:
        """The next whole request, with its body if it has one, or the refusal that ends the connection."""
        return self._whole.pop(0)

    def refuse(self, refusal: Refusal) -> None:
        """Give up what is arriving."""
        self._give_up()
        self._whole.append((refusal, None))

    def refusal(self, status: int, reason: str) -> Refusal:
        """Return the refusal of the request that is arriving, with what is known of it."""
        if self.reading is not None:
            return Refusal(status, reason, head=self.reading.method == "HEAD")
        return self._parser.refusal(status, reason)

    def close(self) -> None:
        """Let go of everything."""
        for _, body in self._whole:
            if body is not None:
                body.close()
        self._whole.clear()
        self._give_up()

    @property
    def waiting(self) -> int:
        """Whole requests that were not returned yet."""
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
