"""The link of the http scenario: a request on a kept connection, its response checked by status and length."""

from __future__ import annotations

from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from .failure import ExchangeError, cause_of
from .link import CHUNK, IN, OUT, Link
from .response import Response

if TYPE_CHECKING:
    from .engine import Engine


_NEVER = b"\0"  # no response is like that


def get(host: str) -> bytes:
    """The request that the http scenario sends: `/`, with a keep-alive connection."""
    return f"GET / HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n\r\n".encode()


class WebLink(Link):
    """Sends the request when the response to the one before is complete; connects when there is no connection.

    Servers repeat themselves: within a second all their responses are alike. A response that came in one piece, and
    was found good and complete, is kept, and as long as the next ones equal it byte for byte they need no parser.
    """

    __slots__ = ("_response", "_usual")

    def __init__(self, engine: Engine, request: bytes) -> None:
        super().__init__(engine, request)
        self._usual = _NEVER
        self._response: Response | None = None  # the one that has come in part

    def begin(self) -> None:
        """Start an exchange now; a connect that it needs is part of it."""
        self.sent_ns = clock()
        if self.connection.fileno() < 0:
            self.connect()
        else:
            self.send()

    def ready(self, mask: int) -> None:
        """The response has come; or something unusual."""
        if mask != IN and mask & OUT and not self.send_rest():
            return
        try:
            data = self.connection.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(cause_of(error))
            return
        if data == self._usual and self.sent_ns:
            self.note(len(data))
            self.engine.model.finished(self)
        elif not self.sent_ns:
            self.drop()  # the server closed an idle connection, or talks without having been asked
        else:
            self._examine(data)

    def _examine(self, data: bytes) -> None:
        """Read a response that is not the usual one, or comes in pieces."""
        self._usual = _NEVER
        in_one_piece = self._response is None
        response = self._response = self._response or Response()
        try:
            if data:
                response.feed(data)
            else:
                response.end()
        except ExchangeError as error:
            self.fail(str(error))
            return
        if not response.complete:
            self.engine.batch.received += len(data)
            return
        self._response = None
        if response.status != 200:
            self.fail(f"status {response.status}", keep=response.keeps_alive)
            return
        self.note(len(data))
        if not response.keeps_alive:
            self.connection.close()
        elif in_one_piece:
            self._usual = data
        self.engine.model.finished(self)

    def drop(self) -> None:
        """Close the connection and forget the exchange."""
        super().drop()
        self._response = None
