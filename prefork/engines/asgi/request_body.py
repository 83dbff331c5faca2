"""WORKER. A request's body on its way to an ASGI application, piece by piece as the client sends it."""

from __future__ import annotations

from time import monotonic_ns

from prefork.engines.aio.bell import Bell


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
