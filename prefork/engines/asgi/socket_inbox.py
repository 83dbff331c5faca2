"""WORKER. What a WebSocket's client has sent and the application has not taken, and how the WebSocket ended."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from prefork.engines.aio.bell import Bell
from prefork.http.websocket import OPEN
from prefork.http.websocket_close import Closed

if TYPE_CHECKING:
    from prefork.http.websocket import WebSocket

_MOST_MESSAGES = 32
_MOST_BYTES = 65536


class SocketInbox:
    """WORKER. `news` rings with each message, and at the end.

    `closed`: how it ended, None as long as it has not; the first reason is what the application hears.
    """

    __slots__ = ("_asked", "_bytes", "_messages", "closed", "news")

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self.news = Bell()
        self._asked = False  # the application has had websocket.connect
        self.closed: Closed | None = None

    @property
    def full(self) -> bool:
        """Whether the client has to wait."""
        return len(self._messages) > _MOST_MESSAGES or self._bytes > _MOST_BYTES

    def hear(self, ws: WebSocket, data: bytes) -> Closed | None:
        """Take what the client says, and what was left of it before, as far as there is room. Returns its end."""
        while True:
            for event in ws.feed(data):
                if isinstance(event, Closed):
                    return event
                self._messages.append(event)
                self._bytes += len(event)
                self.news.ring()
            if not ws.behind or (self.full and ws.state == OPEN):
                return None
            data = b""

    def close(self, closed: Closed) -> None:
        """Nothing more will come."""
        if self.closed is None:
            self.closed = closed
            self.news.ring()

    def take(self) -> dict[str, Any] | None:
        """ASGI's next event; None if there is nothing new."""
        if self._messages and self._asked:
            message = self._messages.popleft()
            self._bytes -= len(message)
            return {"type": "websocket.receive", "text" if type(message) is str else "bytes": message}
        if not self._asked:
            self._asked = True
            return {"type": "websocket.connect"}
        if self.closed is None:
            return None
        return {"type": "websocket.disconnect", "code": self.closed.code, "reason": self.closed.reason}
