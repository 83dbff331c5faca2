"""WORKER. One request of an ASGI application and its response: the `receive` and `send` that the application awaits.

The request's body comes in pieces as the client sends them. When the client has left, `receive` returns
http.disconnect and `send` raises ClientDisconnected, an OSError; the application is not cancelled. It may go on after
its response is complete, for as long as it likes.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from prefork.engines.aio.waiting import Notify
from prefork.engines.asgi.phases import TURN_BYTES
from prefork.http.asgi import AsgiResponse, Message
from prefork.http.head import CONTINUE
from prefork.http.response import ResponseError
from prefork.runtime.forks import OURS

if TYPE_CHECKING:
    from prefork.engines.asgi.app import AsgiApp, AsgiPeer
    from prefork.http.head import Request
    from prefork.http.scope import Scope


_FILE_BYTES = 262144  # read of a file at a time
_MOST_DISCARDED = 65536  # of a body that nobody wants: up to here that costs less than a new connection


class Connection(Protocol):
    """What a cycle needs of its connection (connection.py). `paused`: the client has to read before more is sent."""

    paused: bool

    def write(self, data: bytes) -> None:
        """Send bytes."""

    async def drained(self) -> None:
        """Wait until the client has read enough. Raises ClientDisconnected if it has left."""

    def flow(self) -> None:
        """Read from the client or stop reading, after the application has taken some of the body."""

    def finished(self, cycle: RequestResponseCycle, now_ns: int) -> None:
        """Go on with the next request, or close: the response is complete, or has failed."""

    def abort(self) -> None:
        """Close the connection at once."""


class RequestBody:
    """WORKER. A request's body, piece by piece as the client sends it.

    `open`: the end has not come. `buffered`: bytes that the application has not taken; `received`: bytes in all.
    `continues`: the client waits for 100 Continue before it sends any.
    """

    __slots__ = ("_changed", "_pieces", "_taken", "began_ns", "buffered", "continues", "open", "received")

    def __init__(self, changed: Notify, *, continues: bool) -> None:
        self._changed = changed
        self._pieces: list[bytes] = []
        self._taken = False
        self.began_ns = monotonic_ns()
        self.open = True
        self.buffered = 0
        self.received = 0
        self.continues = continues

    @property
    def ready(self) -> bool:
        """Whether `take` has something for the application: a piece, or the end."""
        return bool(self._pieces) or not (self.open or self._taken)

    @property
    def taken(self) -> bool:
        """Whether the application has taken the end."""
        return self._taken

    def feed(self, data: bytes) -> None:
        """Add a piece."""
        self._pieces.append(data)
        self.buffered += len(data)
        self.received += len(data)
        self.continues = False
        self._changed.set()

    def end(self) -> None:
        """Mark the body as complete."""
        self.open = False
        self._changed.set()

    def take(self) -> bytes:
        """Return all pieces that were not taken yet."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.buffered = 0
        self._taken = not self.open
        return data


class ClientDisconnected(OSError):  # noqa: N818 - as ASGI calls it
    """Raised by `send` when the client has left."""


class RequestResponseCycle:
    """WORKER. One call of the application. `body`: None for a request without one."""

    __slots__ = (
        "_app",
        "_body_told",
        "_changed",
        "_connection",
        "_scope",
        "began_ns",
        "body",
        "gone",
        "hung_up",
        "peer",
        "request",
        "response",
        "waited_ns",
    )

    def __init__(self, app: AsgiApp, connection: Connection, peer: AsgiPeer, request: Request, scope: Scope) -> None:
        self._app = app
        self._connection = connection
        self._scope = scope
        self._body_told = False  # `receive` has said that there is no body
        self._changed: Notify | None = None  # wakes `receive`
        self.body: RequestBody | None = None
        if not request.complete:
            self._changed = Notify()
            self.body = RequestBody(self._changed, continues=request.expects_continue)
        self.request = request
        self.peer = peer
        self.response = AsgiResponse(request)
        self.began_ns = 0  # when the application was called
        self.waited_ns = 0  # of that, for the client to send the body and to read the response
        self.hung_up = False  # the client sends no more, or the worker retires and the response has no end
        self.gone = False  # the connection is closed

    @property
    def text(self) -> str:
        """The client's address, the method and the target."""
        return f"{self.peer.text} {self.request.method} {self.request.target.decode('ascii')}"

    async def run(self) -> None:
        """Call the application. It is all in one coroutine, as a request's task has no other."""
        app = self._app
        self.began_ns = (
            monotonic_ns()
        )  # not before: other requests of the loop may come first, for as long as they take
        app.begin(self)
        try:
            await app.target(self._scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            self._failed(error)
        else:
            if not self.response.done and not self.gone:
                await self._returned()
        app.end(self)

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next piece of the body, or that the client has left."""
        body = self.body
        if body is not None and not body.taken:
            if body.continues and not self.response.begun and not self.gone:
                body.continues = False
                self._connection.write(CONTINUE)
            if not body.ready:
                await self._wait_for_body(body)
            if body.ready:
                data = body.take()
                self._connection.flow()
                return {"type": "http.request", "body": data, "more_body": body.open}
        elif body is None and not self._body_told:
            self._body_told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while not self.hung_up and not self.response.done:
            await self._wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: a part of the response. Raises ClientDisconnected, and ResponseError for what must not be sent.

        What comes after the response is complete is ignored, as ASGI says.
        """
        if self.response.done:
            return
        if self.gone:
            raise ClientDisconnected("the client has left")
        response, connection, what = self.response, self._connection, message["type"]
        if what == "http.response.start":
            response.start(message)
            return
        if what == "http.response.pathsend":
            await self._send_file(message["path"])
            return
        if self.body is not None and self.body.open and not response.begun:
            response.keep_alive = False  # the rest of the body may never come, or never be read
        data = response.take(message, self._app.context.stamp)
        if response.done:
            now_ns = self._finish()
            if data:
                connection.write(data)
            connection.finished(self, now_ns)
            if self._changed is not None:
                self._changed.set()
            return
        if data:
            connection.write(data)
        if self._app.retire_code and response.streams_events:
            self.hang_up()
        if connection.paused or self._app.heartbeat.bytes_out > TURN_BYTES:
            await self._wait_for_room()

    @property
    def body_open(self) -> bool:
        """Whether more of the request's body is to come."""
        return self.body is not None and self.body.open

    def hang_up(self) -> None:
        """Let `receive` return http.disconnect from now on."""
        self.hung_up = True
        if self._changed is not None:
            self._changed.set()

    def cut(self) -> None:
        """Note that the connection is closed, or no longer this request's."""
        self.gone = True
        self.hang_up()

    def retire(self) -> None:
        """The worker retires: let this be the connection's last response, unless others take its connections.

        A stream of events ends if it listens.
        """
        if not self.response.begun:
            self.response.keep_alive &= not self._app.context.draining
        elif self.response.streams_events:
            self.hang_up()

    async def _send_file(self, path: str) -> None:
        """Send a file as the body (the extension http.response.pathsend)."""
        loop = self._app.loop
        with await loop.run_in_executor(None, open, path, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            more = True
            if left:
                self.response.expect(left)
            else:
                left = _FILE_BYTES << 40  # empty, or like those of /proc: its size says nothing
            if self.request.method == "HEAD":
                left = 0  # only its length is sent
            while more:
                data = await loop.run_in_executor(None, file.read, min(left, _FILE_BYTES))
                left -= len(data)
                more = bool(data and left)
                await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def _returned(self) -> None:
        """Handle an incomplete response: an error, unless `receive` had said that the client has left."""
        if not self.hung_up:
            what = "before its response was complete" if self.response.status else "without a response"
            self._failed(ResponseError(f"the application returned {what}"))
        elif self.response.begun and self.response.streams_events:
            await self.send({"type": "http.response.body"})  # the worker retires; the client is still there
        else:
            self._connection.abort()

    def _finish(self) -> int:
        """Count and log the complete response, before its last bytes leave. Returns the time (CLOCK_MONOTONIC ns)."""
        if OURS.forked:
            OURS.end()
        app = self._app
        now_ns = monotonic_ns()
        app.log.finish(app.row, self.peer, self.request, self.response, now_ns - self.began_ns - self.waited_ns)
        return now_ns

    def _failed(self, error: BaseException) -> None:
        """Handle an exception of the application, or a break of ASGI's rules."""
        if OURS.forked:
            OURS.end(error)
        response = self.response
        if response.done or self.gone:
            # No response can tell it any more. Log it, unless the client's leaving is the cause.
            if not (self.gone and tells_of_leaving(error)):
                self._app.report_failure(error, self.peer, self.request, gone=self.gone)
            return
        data = response.fail(self._app.context.stamp)
        response.error = error
        now_ns = self._finish()
        if data:
            self._connection.write(data)
        self._connection.finished(self, now_ns)

    async def _wait_for_body(self, body: RequestBody) -> None:
        """Wait until the client has sent more of the body, has left, or has its response."""
        began_ns = monotonic_ns()
        while not (body.ready or self.hung_up or self.response.done):
            await self._wait()
        self.waited_ns += monotonic_ns() - began_ns

    async def _wait_for_room(self) -> None:
        """Wait after much was written: for the client to read, or for a turn of the loop."""
        if self._connection.paused:
            began_ns = monotonic_ns()
            await self._connection.drained()
            self.waited_ns += monotonic_ns() - began_ns
        else:
            await self._app.pause()
            if self.gone:
                raise ClientDisconnected("the client has left")

    async def _wait(self) -> None:
        if self._changed is None:
            self._changed = Notify()
        await self._changed.wait()


class LimitedCycle(RequestResponseCycle):
    """WORKER. A cycle where --max-in-flight is given: beyond it, the server answers, and the application is not called.

    That is decided when the loop comes to it. Before, a pipelined request would meet the call that is about to return.
    """

    __slots__ = ()

    async def run(self) -> None:
        """Call the application if it has room; else answer 503."""
        app = self._app
        if not app.full:
            app.in_flight += 1
            try:
                await RequestResponseCycle.run(self)
            finally:
                app.in_flight -= 1
            return
        self.began_ns = monotonic_ns()
        try:
            await self._turn_away()
        finally:
            app.end(self)

    async def _turn_away(self) -> None:
        """Answer. A small body is read first, and discarded, so that the connection can go on."""
        body, response, size = self.body, self.response, self.request.content_length
        if body is not None and not body.continues and size is not None and size <= _MOST_DISCARDED:
            while body.open and not self.hung_up:
                await self.receive()
        if self.gone:
            return
        response.keep_alive &= not self.body_open
        data = response.turn_away(self._app.context.stamp)
        self._app.log.turn_away(self.peer, self.request, response)
        self._connection.write(data)
        self._connection.finished(self, monotonic_ns())


def tells_of_leaving(error: BaseException | None) -> bool:
    """Return whether an application's exception comes from ClientDisconnected, or from its cancellation."""
    while error is not None:
        if isinstance(error, (OSError, asyncio.CancelledError)):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(map(tells_of_leaving, error.exceptions))
        error = error.__cause__ or error.__context__
    return False
