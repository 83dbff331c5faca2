"""One call of a WSGI application (PEP 3333), from start_response to close(). Bytes out; no socket is seen here.

The engine makes a WsgiCall for each request and calls `step` until `done`: each step returns bytes, or a part of a
file, which the engine sends before the next step. So the client gets what an application yields before the application
is asked for more, as PEP 3333 demands, and a slow client costs no more memory than one block. A step in which the
application yields b"" returns b"": others have their turn.

framer.py frames the body and says what the client sees when something goes wrong. Whatever happens, the close() of what
the application returned is called exactly once.

What the application gives to write() goes to the engine at once, from within the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

from prefork.http.body import BodyBuffer, FilePart, FileWrapper
from prefork.http.environ import Environ
from prefork.http.framer import ResponseFramer
from prefork.http.head import Request
from prefork.http.response import NO_BODY, SIZED, WSGI_HEADS, ResponseError, check_head, kind

Application = Callable[[Environ, Callable[..., Callable[[bytes], None]]], Iterable[bytes]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

MOST_COPIED = 131072  # bytes that are copied behind their head: up to here that costs less than a second send
BLOCK_BYTES = 65536  # the chunks of a list are joined up to this size


class Client(Protocol):
    """Where the engine sends what an application gives to write()."""

    def write(self, data: bytes, /) -> None:
        """Send data; keep what the client does not take at once. Raises ConnectionError if the client has left."""


class WsgiCall(ResponseFramer):
    """The call of the application for one request, and its response. `busy_ns` is for the engine to count.

    `client`: where write() sends. `gone`: write() has told the application that the client left.
    """

    __slots__ = (
        "_app",
        "_body",
        "_chunks",
        "_environ",
        "_next",
        "_result",
        "_sendfile",
        "_stamp",
        "_started",
        "busy_ns",
        "client",
        "gone",
    )
    client: Client  # set before the first step

    def __init__(
        self,
        app: Application,
        environ: Environ,
        request: Request,
        stamp: bytes,
        body: BodyBuffer | None = None,
        sendfile: bool = True,
    ) -> None:
        # As ResponseFramer.__init__, without a call (measured: 4 % of a short response).
        self.request = request
        self._head = b""
        self._given = 0
        self._length = None
        self._mode = 0
        self.status = 0
        self.sent = 0
        self.keep_alive = request.keep_alive
        self.done = False
        self.aborted = False
        self.error = None
        # Of the call itself.
        self._app = app
        self._environ = environ
        self._stamp = stamp
        self._body = body
        self._sendfile = sendfile
        self._started = False  # start_response was called
        self._result: Any = None  # what the application returned, for its close()
        self._chunks: Iterator[bytes | FilePart] | None = None  # what is left of that
        self._next: bytes | FilePart | None = None  # what the next step returns
        self.busy_ns = 0
        self.gone = False

    @property
    def environ(self) -> Environ:
        """What the application was called with, as it has left it."""
        return self._environ

    @property
    def complete(self) -> bool:
        """Whether the steps so far returned the whole response: at most the application's own end is left."""
        return self.done or (self._mode == SIZED and self.sent == self._length and self._next is None)

    def step(self) -> bytes | FilePart:
        """Run the application up to its next output and return that; b"" for none. Raises nothing."""
        try:
            if self._chunks is None and not self.done:
                result = self._app(self._environ, self.start_response)
                if type(result) is list and len(result) == 1:
                    only = result[0]
                    if type(only) is bytes and len(only) <= MOST_COPIED:  # the usual case: all of it in one step
                        if self._body is not None:
                            self._body.close()
                        return self.last(only, self._stamp)
                return self._begin(result)
            if self._next is not None:
                output = self._next
                self._next = None
                return output
            return b"" if self.done else self._continue()
        except BaseException as error:  # noqa: BLE001 - the border of the application
            self.close()
            if not (self.gone and isinstance(error, ConnectionError)):
                self.error = error
            return self.fail(self._stamp)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333: take the head. Raises ResponseError, within the application, if it must not be sent."""
        if self._started:
            if exc_info is None:
                raise ResponseError("start_response was called again, and without exc_info")
            try:
                if self._mode:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its frames hold this one
            self._head = b""
            self._given = 0
        self._started = True
        try:
            head = WSGI_HEADS[status, *headers] if type(headers) is list else check_head(status, headers)
        except TypeError:  # not hashable: odd, or wrong
            head = check_head(status, headers)
        self.status, self._head, self._length, self._given = head
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333: send data, while the application proceeds.

        Raises ResponseError or, if the client has left, ConnectionError, within the application.
        """
        if self.done:
            raise ResponseError("write() was called after the response was complete")
        if not isinstance(data, bytes):
            raise _not_bytes(data, "write() was given")
        room = None if self._length is None or self._mode == NO_BODY else self._length - self.sent
        output = self.piece(data, self._stamp)
        if output:
            try:
                self.client.write(output)
            except ConnectionError:
                self.gone = True
                raise
        if room is not None and len(data) > room and self._mode == SIZED:
            raise ResponseError(f"write() was given more than the Content-Length of {self._length}")

    def close(self) -> None:
        """End the call in whatever state it is, but not during a step. May be called again."""
        self.done = True
        result = self._result
        self._result = None
        self._next = None
        try:
            if hasattr(result, "close"):
                result.close()
        except BaseException as error:  # noqa: BLE001 - the border of the application
            self.error = self.error or error
        if self._body is not None:
            self._body.close()

    def _no_head(self) -> ResponseError:
        if self._started:
            return ResponseError("start_response failed, and the application went on")
        return ResponseError("the application did not call start_response before its first output")

    def _begin(self, result: Any) -> bytes | FilePart:
        """Return the first output of what the application returned."""
        self._result = result
        # Behind what was written, a file needs a body whose end does not depend on chunks.
        chunks, known = _read(result, sendfile=self._sendfile and self._mode in (0, SIZED, NO_BODY))
        self._chunks = chunks
        return self._continue(known)

    def _continue(self, known: int | None = None) -> bytes | FilePart:
        """Return the next output, or the end. `known`: the size of the whole body, if it is known."""
        for data in self._chunks or ():
            if isinstance(data, bytes):
                size = len(data)
                if not size:
                    return b""
            elif isinstance(data, FilePart):
                size = data.count
            else:
                raise _not_bytes(data, "the application's iterable gave")
            before = self.sent
            if size <= MOST_COPIED and isinstance(data, bytes):
                output: bytes | FilePart = self.piece(data, self._stamp, known)
            else:
                output = self._lend(data, size, known)
            if self.sent != before + size:  # the response has no body, or its Content-Length is reached
                self._chunks = iter(())
                if self.sent == before:
                    self.close()
            return output
        end = self.last(b"", self._stamp)
        self.close()
        return end

    def _lend(self, data: bytes | FilePart, size: int, known: int | None) -> bytes | FilePart:
        """Return a file or a long piece without a copy; if the head comes first, the next step returns the data."""
        head = b"" if self._mode else self._finish_head(self._stamp, size, known)
        if isinstance(data, bytes):
            data = self.piece(data, self._stamp)
        elif self._mode == NO_BODY:
            return head
        else:  # SIZED, as the size of a file is known
            room = (self._length or 0) - self.sent
            if size > room:
                self._mismatch(self.sent + size)
                data.count = room
            if not room:
                return head
            self.sent += data.count
        if head:
            self._next = data
            return head
        return data


def _read(result: Any, *, sendfile: bool) -> tuple[Iterator[bytes | FilePart], int | None]:
    """Return an iterator over what the application returned, and how many bytes that will give, None if unknown.

    A list or tuple is complete: its chunks are joined to blocks. Everything else is asked for one chunk at a time,
    because PEP 3333 allows no delay between two. Raises ResponseError if it is not an iterable of bytes.
    """
    if type(result) in (list, tuple):
        for chunk in result:
            if not isinstance(chunk, bytes):
                raise _not_bytes(chunk, "the application's list has")
        return _join(result), sum(map(len, result))
    if type(result) is FileWrapper and sendfile and (part := result.part()) is not None:
        return iter((part,)), part.count
    if isinstance(result, (str, bytes)):
        raise ResponseError(f"the application returned {kind(result)}: it must be in a list, as [body]")
    if not isinstance(result, Iterable) and not hasattr(result, "__getitem__"):
        hint = ". Is a `return` missing?" if result is None else ""
        raise ResponseError(f"the application returned {kind(result)}, not an iterable of bytes{hint}")
    return iter(result), None


def _join(chunks: Sequence[bytes]) -> Iterator[bytes]:
    """Join chunks to blocks of at least BLOCK_BYTES; the last may be smaller."""
    first = 0
    size = 0
    for end, chunk in enumerate(chunks, 1):
        size += len(chunk)
        if size >= BLOCK_BYTES:
            yield b"".join(chunks[first:end])
            first = end
            size = 0
    if size:
        yield b"".join(chunks[first:])


def _not_bytes(chunk: object, where: str) -> ResponseError:
    """Return the error for a chunk that is not bytes."""
    hint = ": encode it" if isinstance(chunk, str) else ""
    return ResponseError(f"{where} {kind(chunk)}, not bytes{hint}")
