"""One response of an ASGI application: the messages that it sends, as bytes for the client. Pure.

The head waits for the first body message: usually that is the only one, and then all leaves in one piece. The rules of
framing are those of response.py; what breaks them is a ResponseError, raised in the application where it awaits `send`.

What can go wrong, and what the client sees:
- the application fails before the head has left: `fail` gives a plain 500, and the connection is closed;
- behind it: nothing more, and no fake end (`aborted`);
- more body than its Content-Length is cut there, less ends the connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefork.http.chunked import LAST_CHUNK, chunk
from prefork.http.fields import TOKEN
from prefork.http.response import (
    CHUNKED,
    CLOSE,
    DATE,
    LENGTH,
    NO_BODY,
    SERVER,
    SIZED,
    TO_THE_END,
    ResponseError,
    error_response,
    frame,
    kind,
    persistence,
    read_asgi_head,
    without,
)

if TYPE_CHECKING:
    from prefork.http.head import Request
    from prefork.http.response import Head

Message = Mapping[str, Any]

_VALUE_END = frozenset(b"\r\n\0")
# RFC 9110 6.5.1: what says where the message ends, whom it is for, or what follows it, has to stand before the body.
_NO_TRAILERS = frozenset({b"connection", b"content-length", b"host", b"trailer", b"transfer-encoding"})


class AsgiResponse:
    """What a request's client is to get.

    `status`: 0 until the application has begun. `sent`: bytes of the body. `keep_alive`: whether another request may
    follow; to be set to False, if at all, before the head leaves. `done`: all of it was given out. `error`: what the
    application did wrong without being told.
    """

    __slots__ = (
        "_head", "_length", "_mode", "_trailers", "_whole", "aborted", "done", "error", "keep_alive", "request", "sent",
        "status",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.request = request
        self._head: Head | None = None  # of http.response.start
        self._length: int | None = None  # of the whole body, if that is known
        self._mode = 0  # how the body's end is marked (response.py); 0 until the head leaves
        self._trailers: list[bytes] | None = None  # announced: their lines so far
        self._whole = False  # all of the body was given, and only they are to come
        self.status = 0
        self.sent = 0
        self.keep_alive = request.keep_alive
        self.done = False
        self.aborted = False
        self.error: BaseException | None = None

    @property
    def begun(self) -> bool:
        """Whether the head has left: it cannot be taken back."""
        return self._mode != 0

    @property
    def framed(self) -> bool:
        """Whether the client can tell an aborted body from a whole one; if not, only a reset tells it."""
        return self._mode != TO_THE_END

    @property
    def streams_events(self) -> bool:
        """Whether it is a stream of server-sent events, whose client comes back by itself when it ends."""
        return self._head is not None and b"\r\ncontent-type: text/event-stream" in self._head[1].lower()

    def take(self, message: Message, stamp: bytes) -> bytes:
        """Take a message of the application's; return what is to be sent now. Raises ResponseError."""
        what = message["type"]
        if what == "http.response.body":
            if self._head is None:
                raise ResponseError("http.response.body was sent before http.response.start")
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = _bytes(body)
            more = message.get("more_body", False)
            return self._piece(body, stamp) if more else self._last(body, stamp)
        if what == "http.response.start":
            self.start(message)
            return b""
        return self._take_rare(what, message)

    def expect(self, size: int) -> None:
        """So many bytes of body will come, in however many pieces."""
        if self._length is None:
            self._length = size

    def fail(self, stamp: bytes) -> bytes:
        """The application cannot go on: an error page, or nothing if the head has left."""
        self.keep_alive = False
        self.done = True
        if self._mode:
            self.aborted = True
            return b""
        self.status = 500
        self._mode = SIZED
        request = self.request
        html = any(name.lower == b"accept" and b"text/html" in value for name, value in request.fields)
        response = error_response(500, stamp, html=html, head=request.method == "HEAD")
        self.sent = len(response) - response.index(b"\r\n\r\n") - 4
        return response

    def start(self, message: Message) -> None:
        """The head, which waits for the first piece of the body. Raises ResponseError."""
        if self._head is not None:
            raise ResponseError("http.response.start was sent a second time")
        self._head = head = read_asgi_head(message["status"], message.get("headers", ()))
        self.status = head[0]
        if self._length is None:
            self._length = head[2]
        if message.get("trailers"):
            self._trailers = []

    def _last(self, body: bytes, stamp: bytes) -> bytes:
        """The last piece of the body; of most responses the only one."""
        head = self._head
        assert head is not None
        request = self.request
        size = len(body)
        if (
            not self._mode and head[3] == LENGTH and head[2] == size and head[0] == 200 and self.keep_alive
            and request.minor and request.method != "HEAD" and self._trailers is None
        ):  # fmt: skip
            # What the rest would find out as well (measured: 0.7 us less).
            self._mode, self.sent, self.done = SIZED, size, True
            return head[1] + stamp + body
        if not self._mode and self._length is None and self._trailers is None and (size or request.method != "HEAD"):
            self._length = size
        data = self._piece(body, stamp, last=True)
        if self._mode == SIZED and self.sent != self._length:
            self.keep_alive = False
            self.error = ResponseError(f"the body has only {self.sent} bytes: the Content-Length is {self._length}")
        if self._trailers is not None:
            self._whole = True
            return data
        self.done = True
        return data + LAST_CHUNK if self._mode == CHUNKED else data

    def _piece(self, body: bytes, stamp: bytes, *, last: bool = False) -> bytes:
        """Frame a piece of the body; before the first, the head leaves."""
        if self.done or self._whole:
            raise ResponseError("http.response.body was sent after the last one")
        head = b"" if self._mode else self._leave(stamp, len(body), last=last)
        if self._mode == SIZED:
            room = (self._length or 0) - self.sent
            if len(body) > room:
                self.keep_alive = False
                body = body[:room]
                text = f"the body is longer and was cut: the Content-Length is {self._length}"
                self.error = ResponseError(text)
        elif self._mode == NO_BODY:
            return head
        self.sent += len(body)
        if self._mode == CHUNKED:
            return head + chunk(body) if body else head
        return head + body

    def _leave(self, stamp: bytes, size: int, *, last: bool) -> bytes:
        """Return the head, before so many bytes of body: from here on it cannot be taken back."""
        assert self._head is not None
        code, text, _, given = self._head
        request = self.request
        is_head = request.method == "HEAD"
        self._mode, framing = frame(code, given, self._length, head=is_head, minor=request.minor)
        wrong = (
            self._mode == SIZED and self._length is not None and (size > self._length or (last and size < self._length))
        )
        if wrong or self._mode == TO_THE_END or given & CLOSE:
            self.keep_alive = False
        if given & (DATE | SERVER):
            stamp = without(stamp, given)
        return text + framing + persistence(keep_alive=self.keep_alive, minor=request.minor) + stamp

    def _take_rare(self, what: str, message: Message) -> bytes:
        if what == "http.response.trailers":
            return self._take_trailers(message)
        if what == "http.response.early_hint":
            if self._mode or not self.request.minor:  # RFC 9110 15.2: never to a client of HTTP/1.0
                return b""
            links = [_checked(link) for link in message.get("links", ())]
            fields = b"".join(b"Link: %b\r\n" % link for link in links)
            return b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % fields
        raise ResponseError(f"a message of type {what!r} cannot be sent here")

    def _take_trailers(self, message: Message) -> bytes:
        if self._trailers is None or not self._whole:
            raise ResponseError("http.response.trailers needs `trailers` in http.response.start, and follows the body")
        for name, value in message.get("headers", ()):
            if not TOKEN.fullmatch(name):
                raise ResponseError(f"the trailer name {name!r} is not a token (RFC 9110 5.6.2)")
            if name.lower() in _NO_TRAILERS:
                raise ResponseError(f"the field {name!r} must not be a trailer (RFC 9110 6.5.1)")
            self._trailers.append(b"%b: %b\r\n" % (name, _checked(value)))
        if message.get("more_trailers", False):
            return b""
        self.done = True
        if self._mode != CHUNKED:
            return b""
        wanted = any(name.lower == b"te" and b"trailers" in value.lower() for name, value in self.request.fields)
        lines = self._trailers if wanted else []  # RFC 9110 6.5.1: only for who has said that it takes them
        return b"0\r\n%b\r\n" % b"".join(lines)


def _checked(value: object) -> bytes:
    if not isinstance(value, bytes) or not _VALUE_END.isdisjoint(value):
        raise ResponseError(f"the value {value!r} is not bytes without line ends")
    return value


def _bytes(body: object) -> bytes:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise ResponseError(f"the body is {kind(body)}, not bytes" + (": encode it" if isinstance(body, str) else ""))
