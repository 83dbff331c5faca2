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

from ..http.asgi_response import AsgiResponse, Message
from ..http.response import ResponseError
from .bell import Bell

if TYPE_CHECKING:
    from ..http.request import Request
    from ..http.scope import Scope
    from .asgi_connection import HttpConnection

_FILE_BYTES = 262144  # read of a file at a time
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_DISCONNECT = "http.disconnect"


class ClientDisconnected(OSError):  # noqa: N818 - as ASGI calls it
    """Raised by `send` when the client has left."""


class Exchange:
    """WORKER. `body_open`: more of the body is to come. `buffered`: bytes of it that the application has not read."""

    __slots__ = (
        "_connection", "_delivered", "_news", "_pieces", "_scope", "_site", "began_ns", "body_open", "buffered",
        "continues", "gone", "hung_up", "peer", "received", "request", "response",
    )  # fmt: skip

    def __init__(self, connection: HttpConnection, request: Request, scope: Scope) -> None:
        self._connection = connection
        self._site = connection.site
        self._scope = scope
        self._pieces: list[bytes] = []
        self._delivered = False  # the application has the whole body
        self._news = Bell()
        self.request = request
        self.peer = connection.peer
        self.response = AsgiResponse(request)
        self.began_ns = monotonic_ns()
        self.body_open = not request.complete
        self.continues = request.expects_continue
        self.buffered = 0
        self.received = 0
        self.hung_up = False  # the client sends no more, or the worker retires and this would never end
        self.gone = False  # the connection is closed

    async def run(self) -> None:
        """Call the application. It is all in one coroutine, as a request's task has no other."""
        site = self._site
        try:
            await site.app(self._scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            self._failed(error)
        else:
            if not self.response.done and not self.gone:
                what = "before its response was complete" if self.response.status else "without a response"
                self._failed(ResponseError(f"the application returned {what}"))
        del site.running[self]

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next piece of the body, or that the client has left."""
        if not self._delivered:
            if self.continues:
                self.continues = False
                self._connection.write(_CONTINUE)
            while self.body_open and not self._pieces and not self.hung_up:
                await self._news.heard()
            if self._pieces or not self.body_open:
                body = b"".join(self._pieces)
                self._pieces.clear()
                self.buffered = 0
                self._delivered = not self.body_open
                if self.body_open:
                    self._connection.flow()
                return {"type": "http.request", "body": body, "more_body": self.body_open}
        while not self.hung_up and not self.response.done:
            await self._news.heard()
        return {"type": _DISCONNECT}

    async def send(self, message: Message) -> None:
        """ASGI: a part of the response. Raises ClientDisconnected, and ResponseError for what must not be sent."""
        response, connection = self.response, self._connection
        if self.gone:
            raise ClientDisconnected("the client has left")
        if self.response.done:
            raise ResponseError("a message was sent after the response was complete")
        if self.body_open and not response.begun:
            response.keep_alive = False  # the rest of the body may never come, or never be read
        if message["type"] == "http.response.pathsend":
            await self._send_file(message["path"])
            return
        data = response.take(message, self._site.stamp)
        if response.done:
            self._site.count(self)
            if data:
                connection.write(data)
            connection.finished(self)
            self._news.ring()
            return
        if data:
            connection.write(data)
        if connection.paused:
            await connection.drained()

    def feed(self, data: bytes) -> None:
        """A piece of the body has come."""
        self._pieces.append(data)
        self.buffered += len(data)
        self.received += len(data)
        self.continues = False
        self._news.ring()

    def feed_end(self) -> None:
        """The body is complete."""
        self.body_open = False
        self._news.ring()

    def hang_up(self) -> None:
        """The client sends no more: whoever waits for it to leave is told so."""
        self.hung_up = True
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
            left = os.fstat(file.fileno()).st_size
            self.response.expect(left)
            more = True
            while more:
                data = await loop.run_in_executor(None, file.read, min(left, _FILE_BYTES))
                left -= len(data)
                more = bool(data and left)
                await self.send({"type": "http.response.body", "body": data, "more_body": more})

    def _failed(self, error: BaseException) -> None:
        """The application raised, or did not do what it has to."""
        response = self.response
        if response.done or self.gone:
            # Nobody reads it any more; but say it, unless it is just that.
            if not (self.gone and isinstance(error, (OSError, asyncio.CancelledError))):
                self._site.blame(error, self.peer)
            return
        data = response.fail(self._site.stamp)
        response.error = error
        self._site.count(self)
        if data:
            self._connection.write(data)
        self._connection.finished(self)
