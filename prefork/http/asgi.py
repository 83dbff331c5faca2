"""One response of an ASGI application: its messages in, bytes for the client out. Pure.

framer.py frames the body and says what the client sees when something goes wrong. A message that breaks the rules
raises ResponseError, in the application, where it awaits `send`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefork.http.fields import TOKEN
from prefork.http.framer import ResponseFramer
from prefork.http.response import ASGI_HEADS, CHUNKED, CONTROLS, ResponseError, check_asgi_head, kind

if TYPE_CHECKING:
    from prefork.http.head import Request

Message = Mapping[str, Any]

# RFC 9110 6.5.1: fields about the framing, the routing or the trailers themselves must come before the body.
_NO_TRAILERS = frozenset({b"connection", b"content-length", b"host", b"trailer", b"transfer-encoding"})


class AsgiResponse(ResponseFramer):
    """The response to one request."""

    __slots__ = ("_awaits_trailers", "_trailers")

    def __init__(self, request: Request) -> None:
        ResponseFramer.__init__(self, request)  # super() makes an object (measured: 6 % of a short response)
        self._trailers: list[bytes] | None = None  # their lines so far, if http.response.start announced any
        self._awaits_trailers = False  # the body is complete

    @property
    def begun(self) -> bool:
        """Whether the head was given out and cannot be replaced."""
        return self._mode != 0

    @property
    def streams_events(self) -> bool:
        """Whether the body is a stream of server-sent events: when that ends, the client connects again by itself."""
        return b"\r\ncontent-type: text/event-stream" in self._head.lower()

    def start(self, message: Message) -> None:
        """Take http.response.start; the head waits for the first piece of the body. Raises ResponseError."""
        if self._head:
            raise ResponseError("http.response.start was sent a second time")
        try:
            key = (message["status"], *message.get("headers", ()))
        except (KeyError, TypeError):
            raise ResponseError("http.response.start needs a `status`, and `headers` have to be an iterable") from None
        try:
            head = ASGI_HEADS[key]
        except TypeError:  # not hashable: its pairs are lists, say
            head = check_asgi_head(key[0], key[1:])
        self.status, self._head, self._length, self._given = head
        if message.get("trailers"):
            self._trailers = []

    def expect(self, size: int) -> None:
        """Set the size of the whole body, in bytes, unless the application gave its Content-Length."""
        if self._length is None:
            self._length = size

    def take(self, message: Message, stamp: bytes) -> bytes:
        """Take a message; return what is to be sent now. Raises ResponseError."""
        what = message["type"]
        if what == "http.response.body":
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = _bytes(body)
            if self.done or self._awaits_trailers:
                raise ResponseError("http.response.body was sent after the last one")
            if message.get("more_body", False):
                return self.piece(body, stamp)
            if self._trailers is None:
                return self.last(body, stamp)
            return self._take_last_before_trailers(body, stamp)
        if what == "http.response.start":
            self.start(message)
            return b""
        return self._take_rare(what, message)

    def _no_head(self) -> ResponseError:
        return ResponseError("http.response.body was sent before http.response.start")

    def _take_last_before_trailers(self, body: bytes, stamp: bytes) -> bytes:
        """Frame the last piece of the body. The trailers are behind its end, so its size must not become its length."""
        data = self.piece(body, stamp, None if self._length is None else len(body))
        self._check_length()
        self._awaits_trailers = True
        return data

    def _take_rare(self, what: str, message: Message) -> bytes:
        if self.done:
            raise ResponseError(f"{what} was sent after the response was complete")
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
        if self._trailers is None or not self._awaits_trailers:
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
        lines = self._trailers if wanted else []  # RFC 9110 6.5.1: only for clients that accept trailers
        return b"0\r\n%b\r\n" % b"".join(lines)


def _checked(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value.translate(None, CONTROLS)) < len(value):
        raise ResponseError(f"the value {value!r} is not bytes without control characters")
    return value


def _bytes(body: object) -> bytes:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise ResponseError(f"the body is {kind(body)}, not bytes" + (": encode it" if isinstance(body, str) else ""))
