"""The link of the websocket scenario: messages on a kept connection, each echoed byte for byte before the next."""

from __future__ import annotations

import secrets
from ssl import SSLWantReadError
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from .failure import CLOSED_EARLY, WRONG_REPLY, ExchangeError, cause_of
from .link import CHUNK, Link
from .websocket import CLOSE, NORMAL, PING, PONG, Messages, close_cause, frame

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .engine import Engine
    from .websocket import Opening


class WebSocketLink(Link):
    """Opens a connection, which has a clock of its own as in echo, and sends its message again and again.

    The message is made into a frame once, and so is the reply: one that comes alone and in one piece, as it does
    nearly always, needs no parser. A ping is answered. The last that a connection says is a close frame, for whose
    answer nobody waits.
    """

    __slots__ = (
        "_came",
        "_exchanges",
        "_expected",
        "_left",
        "_mask",
        "_message",
        "_messages",
        "_open",
        "_opening",
        "_reply",
        "_size",
        "_usual",
        "connecting",
    )

    def __init__(self, engine: Engine, opening: Opening, opcode: int, payload: bytes, exchanges: int = 0) -> None:
        """`exchanges` on one connection; 0: as many as the server allows."""
        self._mask = secrets.token_bytes(4)
        self._message = frame(opcode, payload, self._mask)
        super().__init__(engine, self._message)
        self._opening = opening
        self._expected = (opcode, payload)
        self._reply = frame(opcode, payload)
        self._usual: bytes | None = None  # the reply, while that may come and needs no parser
        self._size = CHUNK  # bytes to read at once: one more than the usual
        self._exchanges = exchanges
        self._left = 0  # messages that this connection still takes; never 0 again if that is not limited
        self._open = False  # whether the server has agreed
        self._came = b""  # before it has
        self._messages = Messages(len(payload))
        self.connecting = False

    def begin(self) -> None:
        """Start an exchange now. A handshake that it needs first has a clock of its own."""
        self.sent_ns = clock()
        if not self._open:
            self.connecting = True
            self.request = self._opening.request
            self.connect()
        elif self._rest:  # of a pong
            self._say(self.request)
        else:
            self.send()

    def ready(self, mask: int) -> None:  # noqa: ARG002 # what recv says is enough
        """The reply has come; or something unusual."""
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
            if not self._left:
                self.drop()
            engine.freed.append(self)
        else:
            self._examine(data)

    def _examine(self, data: bytes) -> None:
        """Read what is not the usual, or is a part of it."""
        if self._usual and len(data) == self._size:
            data += self._more()
        self._usual, self._size = None, CHUNK
        try:
            if not data:
                raise ExchangeError(CLOSED_EARLY)
            if self.connecting:
                self._came += data
                if (rest := self._opening.read(self._came)) is None:
                    return
                data = rest
            else:
                self.engine.batch.received += len(data)
            self._hear(self._messages.feed(data))
        except ExchangeError as error:
            self.fail(str(error))  # if nothing was asked, that is none: the connection ends
            return
        if self.connecting:
            self._opened()
        if self._open and self._messages.between:
            self._usual, self._size = self._reply, len(self._reply) + 1

    def _hear(self, messages: Iterable[tuple[int, bytes]]) -> None:
        for opcode, payload in messages:
            if opcode == PING:
                self._say(frame(PONG, payload, self._mask))
            elif opcode == CLOSE:
                raise ExchangeError(close_cause(payload))
            elif (opcode, payload) == self._expected and self.sent_ns and self._open:
                self.note(0)  # the bytes are counted
                self.sent_ns = 0  # what follows it is not about this exchange
                self._left -= 1
                if not self._left:
                    self.drop()
                self.engine.freed.append(self)
            elif opcode != PONG:
                raise ExchangeError(WRONG_REPLY)

    def _opened(self) -> None:
        """The server has agreed: the clock of the exchange starts."""
        now_ns = clock()
        self.engine.batch.connects.append((self.sent_ns, now_ns))
        self.connecting = False
        self._open = True
        self._left = self._exchanges
        self.sent_ns = now_ns
        self.request = self._message
        if self._rest:
            self._say(self.request)
        else:
            self.send()

    def _more(self) -> bytes:
        """What else has come: a close after the reply is to be heard before the next message is sent."""
        try:
            return self.connection.recv(CHUNK)
        except OSError:
            return b""  # nothing; or an error, which will be heard the next time

    def _say(self, data: bytes) -> None:
        """Send it after what is not sent yet."""
        self._rest += data
        self.send_rest()

    def drop(self) -> None:
        """Close the connection, with a close frame where one is in place, and forget the exchange."""
        if self._open and not self._rest:
            try:
                self.connection.send(frame(CLOSE, NORMAL, self._mask))
            except OSError:
                pass  # the server went first, or reads nothing
        super().drop()
        self.connecting = self._open = False
        self._left = 0
        self._usual, self._size, self._came = None, CHUNK, b""
        self._messages = Messages(len(self._expected[1]))
