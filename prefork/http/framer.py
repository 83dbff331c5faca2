"""The framing of one response: what is sent to the client for each piece of the body. Pure.

WsgiCall (wsgi.py) and AsgiResponse (asgi.py) are the two kinds of ResponseFramer. The head waits for the first piece of
the body: until then the application may replace it, and as most bodies have only one piece, head and body are sent
together. response.py has the rules of framing.

What can go wrong, and what the client sees:
- the application fails before the head was given out: a plain 500, and the connection is closed;
- it fails later: nothing more, and no end of the body that would make it look complete (`aborted`);
- the body is longer than its Content-Length: it is cut there, and the connection is closed;
- the body is shorter: the connection is closed.

A request that the application is not called for, as it has enough to do, gets a 503, and the connection may go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http.chunked import LAST_CHUNK, chunk
from prefork.http.limits import page
from prefork.http.response import (
    CHUNKED,
    CLOSE,
    LENGTH,
    NO_BODY,
    OF_STAMP,
    SIZED,
    TO_THE_END,
    UPGRADE,
    WSGI_HEADS,
    ResponseError,
    error_response,
    frame,
    without,
)

if TYPE_CHECKING:
    from prefork.http.head import Request


class ResponseFramer:
    """The half of a response that is the same for WSGI and ASGI.

    When the application starts the response, the subclass sets `status`, `_head`, `_length` and `_given`, which are one
    checked head. It does so itself: a method here would be one more call for each request.

    `status`: 0 until the application has started the response. `sent`: bytes of the body so far. `keep_alive`: another
    request may follow on the connection; the engine may set it to False before the head is given out. `done`: nothing
    more is to be sent. `aborted`: the body ended too early. `error`: what the application did wrong, for the log.
    """

    __slots__ = (
        "_given",
        "_head",
        "_length",
        "_mode",
        "aborted",
        "done",
        "error",
        "keep_alive",
        "request",
        "sent",
        "status",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self._head = b""  # the status line and the fields of the application; empty until there is a correct head
        self._given = 0  # which of the fields with a meaning for the server they contain (response.py)
        self._length: int | None = None  # of the whole body, if it is known
        self._mode = 0  # how the body ends (response.py); 0 until the head is given out
        self.status = 0
        self.sent = 0
        self.keep_alive = request.keep_alive
        self.done = False
        self.aborted = False
        self.error: BaseException | None = None

    @property
    def head(self) -> bytes:
        """The status line and the fields that the application gave; b"" if the response is not the application's."""
        return self._head

    @property
    def framed(self) -> bool:
        """Whether the client can see that an aborted body is incomplete. If it cannot, only a reset tells it."""
        return self._mode != TO_THE_END

    def piece(self, data: bytes, stamp: bytes, known: int | None = None) -> bytes:
        """Return what is to be sent for one piece of the body, with the head before the first piece.

        `known`: the size of the whole body, if it is known. Raises ResponseError if there is no head.
        """
        head = b"" if self._mode else self._finish_head(stamp, len(data), known)
        if self._mode == SIZED:
            room = (self._length or 0) - self.sent
            if len(data) > room:
                self._mismatch(self.sent + len(data))
                data = data[:room]
        elif self._mode == NO_BODY:
            return head
        self.sent += len(data)
        if self._mode == CHUNKED:
            return head + chunk(data) if data else head
        return head + data

    def last(self, data: bytes, stamp: bytes) -> bytes:
        """Return what is to be sent for the last piece of the body, as `piece` does, and end the response."""
        if self._mode != 0:
            data = self.piece(data, stamp)
            if self._mode == CHUNKED:
                data += LAST_CHUNK
            else:
                self._check_length()
            self.done = True
            return data
        size = len(data)
        request = self.request
        if (
            self._given == LENGTH
            and self._length == size
            and self.status == 200
            and self.keep_alive
            and request.minor
            and request.method != "HEAD"
        ):
            # The usual case. The code below would return the same (measured: 0.7 us more).
            self._mode = SIZED
            head = self._head + stamp
        else:
            head = self._finish_head(stamp, size, size)
            if self._mode == NO_BODY:
                data = b""
            elif size != self._length:
                data = data[: self._length]
            size = len(data)
        self.sent = size
        self.done = True
        return head + data

    def fail(self, stamp: bytes) -> bytes:
        """End the response, as the application cannot: with an error page, unless the head was given out already."""
        self.keep_alive = False
        self.done = True
        if self._mode:
            self.aborted = True
            return b""
        self.status = 500
        self._head = b""
        self._mode = SIZED
        request = self.request
        html = any(name.lower == b"accept" and b"text/html" in value for name, value in request.fields)
        response = error_response(500, stamp, html=html, head=request.method == "HEAD")
        self.sent = len(response) - response.index(b"\r\n\r\n") - 4
        return response

    def turn_away(self, stamp: bytes) -> bytes:
        """Return the whole response to a request that the application does not get now: 503, and when to come again.

        It ends the connection only if `keep_alive` is False.
        """
        body = page(503, html=False)
        kind, size = ("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))
        head = WSGI_HEADS["503 Service Unavailable", kind, size, ("Retry-After", "1")]  # RFC 9110 10.2.3: seconds
        self.status, self._head, self._length, self._given = head
        return self.last(body, stamp)

    def _no_head(self) -> ResponseError:
        """Return the error that says why there is no head for the body."""
        raise NotImplementedError

    def _finish_head(self, stamp: bytes, size: int, known: int | None) -> bytes:
        """Return the head as it is sent; from here on it cannot be replaced.

        `size`: of the first piece of the body. `known`: of the whole body, if it is known.
        """
        if not self._head:
            raise self._no_head()
        request = self.request
        is_head = request.method == "HEAD"
        if self._length is None and (known or not is_head):  # an empty body for HEAD says nothing about that for GET
            self._length = known
        self._mode, framing = frame(self.status, self._given, self._length, head=is_head, minor=request.minor)
        if self._mode == TO_THE_END or self._given & CLOSE:
            self.keep_alive = False
        if self._mode == SIZED and self._length != known:
            if known is not None:
                self._mismatch(known)
            elif size > (self._length or 0):
                self._mismatch(size)
        option = b"" if self.keep_alive else b"close"
        if self.keep_alive and not request.minor:
            option = b"keep-alive"
        if self._given & UPGRADE:  # RFC 9110 7.8: Connection names it
            option += b", Upgrade" if option else b"Upgrade"
        if option:
            framing += b"Connection: %b\r\n" % option
        if self._given & OF_STAMP:
            stamp = without(stamp, self._given)
        return self._head + framing + stamp

    def _check_length(self) -> None:
        """Check that a body that is complete has the size of its Content-Length."""
        if self._mode == SIZED and self.sent != self._length:
            self._mismatch(self.sent)

    def _mismatch(self, size: int) -> None:
        """Note that the body does not have the size of its Content-Length: the client would misread what follows."""
        self.keep_alive = False
        said = f"the Content-Length is {self._length}"
        self.error = self.error or ResponseError(
            f"the body has only {size} bytes: {said}"
            if size < (self._length or 0)
            else f"the body has at least {size} bytes and was cut: {said}"
        )
