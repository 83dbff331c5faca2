"""WORKER. One request of an ASGI application and its response: the `receive` and `send` that the application awaits.

The request's body comes in pieces as the client sends them; the client is not read from while many of them wait. When
the client has left, `receive` gives http.disconnect and `send` raises ClientDisconnected, an OSError; the application
is never cancelled for that. What it does after its response is complete is its own affair.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.engines.aio.waiting import Bell
from prefork.engines.asgi.phases import TURN_BYTES
from prefork.http.asgi import AsgiResponse, Message
from prefork.http.response import ResponseError

if TYPE_CHECKING:
    from prefork.engines.asgi.connection import HttpConnection
    from prefork.http.head import Request
    from prefork.http.scope import Scope


# --- A request's body on its way to an ASGI application, piece by piece as the client sends it.


class RequestBody:
    """WORKER. `open`: more of it is to come. `buffered`: bytes that the application has not taken; `received`: in all.

    `continues`: the client waits for 100 Continue before it sends any.
    """

    __slots__ = ("_news", "_pieces", "_taken", "began_ns", "buffered", "continues", "open", "received")

    def __init__(self, news: Bell, *, continues: bool) -> None:
        self._news = news
        self._pieces: list[bytes] = []
        self._taken = False
        self.began_ns = monotonic_ns()
        self.open = True
        self.buffered = 0
        self.received = 0
        self.continues = continues

    @property
    def ready(self) -> bool:
        """Whether there is something for the application: a piece, or the news that there are no more."""
        return bool(self._pieces) or not (self.open or self._taken)

    @property
    def taken(self) -> bool:
        """Whether the application has all of it."""
        return self._taken

    def feed(self, data: bytes) -> None:
        """A piece has come."""
        self._pieces.append(data)
        self.buffered += len(data)
        self.received += len(data)
        self.continues = False
        self._news.ring()

    def end(self) -> None:
        """It is complete."""
        self.open = False
        self._news.ring()

    def take(self) -> bytes:
        """All that has come and was not taken yet."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.buffered = 0
        self._taken = not self.open
        return data


_FILE_BYTES = 262144  # read of a file at a time
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientDisconnected(OSError):  # noqa: N818 - as ASGI calls it
    """Raised by `send` when the client has left."""


class Exchange:
    """WORKER. `body`: None for a request without one."""

    __slots__ = (
        "_connection", "_news", "_scope", "_site", "_told", "began_ns", "body", "gone", "hung_up", "peer", "request",
        "response",
    )  # fmt: skip

    def __init__(self, connection: HttpConnection, request: Request, scope: Scope) -> None:
        self._connection = connection
        self._site = connection.site
        self._scope = scope
        self._told = False  # that there is no body
        self._news: Bell | None = None  # for who waits in `receive`
        self.body: RequestBody | None = None
        if not request.complete:
            self._news = Bell()
            self.body = RequestBody(self._news, continues=request.expects_continue)
        self.request = request
        self.peer = connection.peer
        self.response = AsgiResponse(request)
        self.began_ns = monotonic_ns()
        self.hung_up = False  # the client sends no more, or the worker retires and this would never end
        self.gone = False  # the connection is closed

    @property
    def text(self) -> str:
        """Whose request it is, and which: for people."""
        return f"{self.peer.text} {self.request.method} {self.request.target.decode('ascii')}"

    async def run(self) -> None:
        """Call the application. It is all in one coroutine, as a request's task has no other."""
        site = self._site
        site.begins(self)
        try:
            await site.app(self._scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            self._failed(error)
        else:
            if not self.response.done and not self.gone:
                await self._returned()
        site.ends(self)

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next piece of the body, or that the client has left."""
        body = self.body
        if body is not None and not body.taken:
            if body.continues and not self.response.begun and not self.gone:
                body.continues = False
                self._connection.write(_CONTINUE)
            while not (body.ready or self.hung_up or self.response.done):
                await self._wait()
            if body.ready:
                data = body.take()
                self._connection.flow()
                return {"type": "http.request", "body": data, "more_body": body.open}
        elif body is None and not self._told:
            self._told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while not self.hung_up and not self.response.done:
            await self._wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: a part of the response. Raises ClientDisconnected, and ResponseError for what must not be sent."""
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
        data = response.take(message, self._site.stamp)
        if response.done:
            now_ns = self._site.count(self)
            if data:
                connection.write(data)
            connection.finished(self, now_ns)
            if self._news is not None:
                self._news.ring()
            return
        if data:
            connection.write(data)
        if self._site.retire_code and response.streams_events:
            self.hang_up()
        if connection.paused or self._site.pulse.bytes_out > TURN_BYTES:
            await self._rest()

    @property
    def body_open(self) -> bool:
        """Whether more of the request's body is to come."""
        return self.body is not None and self.body.open

    def hang_up(self) -> None:
        """The client sends no more: whoever waits for it to leave is told so."""
        self.hung_up = True
        if self._news is not None:
            self._news.ring()

    def lose(self) -> None:
        """The connection is closed."""
        self.gone = True
        self.hang_up()

    def retire(self) -> None:
        """The worker retires: this is the connection's last response, and an endless one ends if it listens."""
        if not self.response.begun:
            self.response.keep_alive = False
        elif self.response.streams_events:
            self.hang_up()

    async def _send_file(self, path: str) -> None:
        """The extension http.response.pathsend: the body is a file's content."""
        loop = self._site.loop
        with await loop.run_in_executor(None, open, path, "rb") as file:
            left, more = os.fstat(file.fileno()).st_size, True
            if left:
                self.response.expect(left)
            else:
                left = _FILE_BYTES << 40  # empty, or like those of /proc: its size says nothing
            if self.request.method == "HEAD":
                left = 0  # its length is all that is told
            while more:
                data = await loop.run_in_executor(None, file.read, min(left, _FILE_BYTES))
                left -= len(data)
                more = bool(data and left)
                await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def _returned(self) -> None:
        """The application has returned with its response incomplete, as it may if it was told that the client left."""
        if not self.hung_up:
            what = "before its response was complete" if self.response.status else "without a response"
            self._failed(ResponseError(f"the application returned {what}"))
        elif self.response.begun and self.response.streams_events:
            await self.send({"type": "http.response.body"})  # it was the worker who wanted it to end
        else:
            self._connection.abort()

    def _failed(self, error: BaseException) -> None:
        """The application raised, or did not do what it has to."""
        response = self.response
        if response.done or self.gone:
            # Nobody reads it any more; but say it, unless it is just that.
            if not (self.gone and tells_of_leaving(error)):
                self._site.blame(error, self.peer, gone=self.gone)
            return
        data = response.fail(self._site.stamp)
        response.error = error
        now_ns = self._site.count(self)
        if data:
            self._connection.write(data)
        self._connection.finished(self, now_ns)

    async def _rest(self) -> None:
        """Enough is written for now."""
        if self._connection.paused:
            await self._connection.drained()
        else:
            await self._site.pause()
            if self.gone:
                raise ClientDisconnected("the client has left")

    async def _wait(self) -> None:
        if self._news is None:
            self._news = Bell()
        await self._news.heard()


def tells_of_leaving(error: BaseException | None) -> bool:
    """Whether it is what an application made of ClientDisconnected, or of being cut."""
    while error is not None:
        if isinstance(error, (OSError, asyncio.CancelledError)):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(map(tells_of_leaving, error.exceptions))
        error = error.__cause__ or error.__context__
    return False
