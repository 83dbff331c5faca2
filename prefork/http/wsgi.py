"""One call of a WSGI application (PEP 3333), from start_response to close(). Bytes out; no socket is seen here.

The engine makes a WsgiCall for each request and calls `step` until `done`: each gives bytes to send, or a part of a
file. They are sent before the next step: what an application yields is on its way before it is asked for more, as
PEP 3333 demands, and a slow client costs no more memory than one block.

What can go wrong, and what the client sees; `error` has it for the log:
- an exception before the head has left: a plain 500, and the connection is closed;
- one behind it: nothing more, and no fake end (`aborted`);
- a body longer than its Content-Length is cut there; behind a shorter one the connection is closed.
Whatever happens, the iterable's close() is called exactly once.

What is given to write() is kept until the application returns, in a file if it is much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any

from prefork.http.body import BodyBuffer, FilePart
from prefork.http.chunked import LAST_CHUNK, chunk
from prefork.http.environ import Environ
from prefork.http.head import Request
from prefork.http.iterable import BLOCK_BYTES, check, read
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
    persistence,
    read_head,
    without,
)

Application = Callable[[Environ, Callable[..., Callable[[bytes], None]]], Iterable[bytes]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

WHOLE_BYTES = 131072  # the most that is copied behind its head: up to here that costs less than a second send


class WsgiCall:
    """One request's call of the application.

    For the engine: `done`; `keep_alive`, which it may set to False before the first step; `aborted`; `error`, what to
    log; `status` and `sent`, the bytes of the body, for the access log; `busy_ns`, which is the engine's to count.
    """

    __slots__ = (
        "_app", "_body", "_chunks", "_environ", "_given", "_head", "_held", "_length", "_mode", "_result", "_sendfile",
        "_stamp", "_started", "_written", "aborted", "busy_ns", "done", "error", "keep_alive", "request", "sent",
        "status",
    )  # fmt: skip

    def __init__(
        self,
        app: Application,
        environ: Environ,
        request: Request,
        stamp: bytes,
        body: BodyBuffer | None = None,
        sendfile: bool = True,
    ) -> None:
        self._app = app
        self._environ = environ
        self.request = request
        self._stamp = stamp
        self._body = body
        self._sendfile = sendfile
        # What start_response was told: whether anything at all, the checked head, its Content-Length, what it contains.
        self._started = False
        self._head = b""
        self._length: int | None = None
        self._given = 0
        self._mode = 0  # how the body's end is marked (response.py); 0 until the head leaves
        # What the application returned, for its close(); its chunks; what the next step gives; what was written.
        self._result: Any = None
        self._chunks: Iterator[bytes | FilePart] | None = None
        self._held: bytes | FilePart | None = None
        self._written: BodyBuffer | None = None
        self.status = 0
        self.sent = 0
        self.keep_alive = request.keep_alive
        self.done = False
        self.aborted = False
        self.busy_ns = 0
        self.error: BaseException | None = None

    @property
    def complete(self) -> bool:
        """Whether the steps so far gave the whole response: all that may be left is the application's own ending."""
        return self.done or (self._mode == SIZED and self.sent == self._length and self._held is None)

    @property
    def framed(self) -> bool:
        """Whether the client can tell an aborted body from a whole one; if not, only a reset tells it."""
        return self._mode != TO_THE_END

    def step(self) -> bytes | FilePart:
        """Run the application up to its next output and return that; b"" only when `done`. Raises nothing."""
        try:
            if self._chunks is None and not self.done:
                result = self._app(self._environ, self.start_response)
                if type(result) is list and len(result) == 1 and type(result[0]) is bytes and self._written is None:
                    return self._whole(result[0])
                return self._begin(result)
            if self._held is not None:
                held, self._held = self._held, None
                return held
            return b"" if self.done else self._more()
        except BaseException as error:  # noqa: BLE001 - the border of the application
            return self._failed(error)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333. Raises ResponseError, within the application, for what must not be sent."""
        if self._started:
            if exc_info is None:
                raise ResponseError("start_response was called again, and without exc_info")
            try:
                if self._mode or self._written is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its frames hold this one
            self._head = b""
        self._started = True
        self.status, self._head, self._length, self._given = read_head(status, headers)
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333. Keep data until the application has returned. Raises ResponseError, within the application."""
        if self._chunks is not None:
            raise ResponseError("write() was called from within the iterable that the application returned")
        check(data, "write() was given")
        if self._written is None:
            self._written = BodyBuffer()
        self._written.add(data)
        if self._length is not None and self._written.size > self._length:
            raise ResponseError(f"write() was given more than the Content-Length of {self._length}")

    def close(self) -> None:
        """End the call in whatever state it is, but not during a step. May be called again."""
        self.done = True
        result, self._result, self._held = self._result, None, None
        try:
            if hasattr(result, "close"):
                result.close()
        except BaseException as error:  # noqa: BLE001 - the border of the application
            self.error = self.error or error
        for buffer in (self._body, self._written):
            if buffer is not None:
                buffer.close()

    def _whole(self, body: bytes) -> bytes | FilePart:
        """Answer with the one chunk of a list. The usual case: all in one piece, and nothing to come back for."""
        size = len(body)
        if size > WHOLE_BYTES:
            return self._begin([body])
        request = self.request
        if (
            self._given == LENGTH and self._length == size and self.status == 200
            and self.keep_alive and request.minor and request.method != "HEAD" and self._body is None
        ):  # fmt: skip
            # What the rest would find out as well (measured: 0.6 us less).
            self._mode, self.sent, self.done = SIZED, size, True
            return self._head + self._stamp + body
        head = self._leave(size)
        if self._mode == NO_BODY:
            body = b""
        elif len(body) != self._length:
            body = body[: self._length]
        self.sent = len(body)
        self.done = True
        if self._body is not None:
            self._body.close()
        return head + body

    def _begin(self, result: Any) -> bytes | FilePart:
        """Go on to the first output of what the application returned."""
        self._result = result
        chunks, known = read(result, sendfile=self._sendfile)
        if self._written is not None:
            written = iter(partial(self._written.input().read, BLOCK_BYTES), b"")
            chunks, known = chain(written, chunks), None if known is None else known + self._written.size
        self._chunks = chunks
        return self._more(known)

    def _more(self, known: int | None = None) -> bytes | FilePart:
        """Return the next output, or the end. `known`: the size of the whole body, if that is known."""
        for data in self._chunks or ():
            if isinstance(data, FilePart):
                return self._emit(data, data.count, known)
            check(data, "the application's iterable gave")
            if data:
                return self._emit(data, len(data), known)
        end = b"" if self._mode else self._leave(0)
        if self._mode == CHUNKED:
            end += LAST_CHUNK
        elif self._mode == SIZED and self.sent != self._length:
            self._mismatch(self.sent)
        self.close()
        return end

    def _emit(self, data: bytes | FilePart, size: int, known: int | None) -> bytes | FilePart:
        """Frame one chunk; before the first, the head leaves."""
        head = b"" if self._mode else self._leave(known)
        room = (self._length or 0) - self.sent if self._mode == SIZED else size
        if room < size:
            self._mismatch(self.sent + size)
            self._chunks = iter(())
            size = room
            if isinstance(data, FilePart):
                data.count = room
            else:
                data = data[:room]
        if self._mode == NO_BODY or not size:
            self.close()
            return head
        self.sent += size
        if isinstance(data, bytes) and self._mode == CHUNKED:
            return head + chunk(data)
        if isinstance(data, bytes) and size <= WHOLE_BYTES:
            return head + data
        if not head:
            return data
        self._held = data
        return head

    def _leave(self, known: int | None) -> bytes:
        """Return the head: from here on it cannot be taken back. `known`: the size of the body, if that is known."""
        if not self._head:
            raise ResponseError(
                "start_response failed, and the application went on"
                if self._started
                else "the application did not call start_response before its first output"
            )
        request = self.request
        head = request.method == "HEAD"
        if self._length is None and (known or not head):  # no bytes for HEAD say nothing about those for GET
            self._length = known
        self._mode, framing = frame(self.status, self._given, self._length, head=head, minor=request.minor)
        if self._mode == TO_THE_END or self._given & CLOSE:
            self.keep_alive = False
        if self._mode == SIZED and known is not None and known != self._length:
            self._mismatch(known)
        stamp = without(self._stamp, self._given) if self._given & (DATE | SERVER) else self._stamp
        return self._head + framing + persistence(keep_alive=self.keep_alive, minor=request.minor) + stamp

    def _mismatch(self, size: int) -> None:
        """Note that the application promised another length: what follows on this connection would be misread."""
        self.keep_alive = False
        said = f"the Content-Length is {self._length}"
        self.error = self.error or ResponseError(
            f"the body has only {size} bytes: {said}"
            if size < (self._length or 0)
            else f"the body has at least {size} bytes and was cut: {said}"
        )

    def _failed(self, error: BaseException) -> bytes:
        """End with an error page, or, if the head has left, without anything."""
        self.keep_alive = False
        self.close()
        self.error = error
        if self._mode:
            self.aborted = True
            return b""
        request = self.request
        self.status = 500
        self._mode = SIZED
        html = any(name.lower == b"accept" and b"text/html" in value for name, value in request.fields)
        response = error_response(500, self._stamp, html=html, head=request.method == "HEAD")
        self.sent = len(response) - response.index(b"\r\n\r\n") - 4
        return response
