"""The link of the http scenario: requests on a kept connection, each response checked by status and length."""

from __future__ import annotations

from ssl import SSLWantReadError
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from ..plan.request import Expectation
from .failure import ExchangeError, cause_of
from .link import CHUNK, Link
from .response import Response

if TYPE_CHECKING:
    from .engine import Engine


class WebLink(Link):
    """Sends the request when the response to the one before is complete; connects when there is no connection.

    Servers repeat themselves: within a second all their responses are alike. A response that came in one piece, and
    was found good and complete, is kept, and as long as the next ones equal it byte for byte they need no parser.
    """

    __slots__ = ("_exchanges", "_expected", "_keeps", "_left", "_response", "_size", "_usual")

    def __init__(self, engine: Engine, request: bytes, expected: Expectation | None = None, exchanges: int = 0) -> None:
        """`exchanges` on one connection; 0: as many as the server allows."""
        super().__init__(engine, request)
        self._expected = expected or Expectation()
        self._exchanges = exchanges
        self._left = 0  # requests that this connection still takes; never 0 again if that is not limited
        self._usual: bytes | None = None
        self._size = CHUNK  # bytes to read at once: one more than the usual, as little memory is had faster than much
        self._keeps = False  # whether a response like that leaves the connection open
        self._response: Response | None = None  # the one that has come in part

    def begin(self) -> None:
        """Start an exchange now; a connect that it needs is part of it, and so is a TLS handshake."""
        self.sent_ns = clock()
        if self.connection.fileno() < 0:
            self._left = self._exchanges
            self.connect()
        else:
            self.send()

    def ready(self, mask: int) -> None:  # noqa: ARG002 # what recv says is enough
        """The response has come; or something unusual.

        To read comes before to send: a server that takes no more of a request (413) says so, and resets.
        """
        try:
            data = self.connection.recv(self._size)
        except (BlockingIOError, SSLWantReadError):
            self.send_rest()
            return
        except OSError as error:
            self.fail(cause_of(error))
            return
        if data == self._usual and self.sent_ns and not self._rest:
            engine = self.engine
            batch = engine.batch  # `note`, without the call
            batch.end_ns.append(clock())
            batch.sent_ns.append(self.sent_ns)
            batch.received += len(data)
            self._left -= 1
            if not self._left or not self._keeps:
                self.connection.close()
            engine.freed.append(self)
        elif not self.sent_ns:
            self.drop()  # the server closed an idle connection, or talks without having been asked
        else:
            self._examine(data)

    def _examine(self, data: bytes) -> None:
        """Read a response that is not the usual one, or comes in pieces."""
        self._usual, self._size = None, CHUNK
        in_one_piece = self._response is None
        response = self._response = self._response or Response(bodiless=self._expected.bodiless)
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
        self._left -= 1
        # An answer to a request that is not wholly sent: what is left of that would be taken for the next one.
        keeps = response.keeps_alive and self._left and not self._rest
        if flaw := self._expected.flaw(response.status, response.length):
            self.fail(flaw, keep=bool(keeps))
            return
        self.note(len(data))
        if in_one_piece and not self._rest:
            self._usual, self._size, self._keeps = data, len(data) + 1, response.keeps_alive
        if not keeps:
            self._rest = b""
            self.connection.close()
        self.engine.freed.append(self)

    def drop(self) -> None:
        """Close the connection and forget the exchange."""
        super().drop()
        self._response = None
