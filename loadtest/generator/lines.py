"""The line protocols: the bytes that both engines send and expect, and the links of talkback (also nap's) and echo.

Replies are compared byte for byte.
"""

from __future__ import annotations

from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from loadtest.generator.failure import CLOSED_EARLY, TIMEOUT, WRONG_REPLY, cause_of
from loadtest.generator.link import CHUNK, HUNG_UP, IN, OUT, Link

if TYPE_CHECKING:
    from loadtest.generator.link import EngineApi


GREETING = b"hello from prefork\n"
PREFIX = b"you said: "


def numbered(number: int, size: int) -> bytes:
    """Return a line of `size` bytes and its newline. Where the size allows it, other numbers give other lines."""
    return (b"%x " % number)[:size].ljust(size, b".") + b"\n"


# A reply that may not fit into the kernel's buffers has to be read as it comes, or the server could not go on.
_SURE_TO_FIT = 16384


class TalkbackLink(Link):
    """Makes a connection for every exchange: connect, send the line at once, read to the end of the stream."""

    __slots__ = ("_expected", "_got", "interest")

    def __init__(self, engine: EngineApi, line: bytes) -> None:
        super().__init__(engine, line)
        self._expected = GREETING + PREFIX + line
        self._got = b""
        # To wait for the end of the stream alone saves the wake-up for the greeting: all is read in one go.
        self.interest = HUNG_UP if len(self._expected) <= _SURE_TO_FIT else HUNG_UP | IN

    def begin(self) -> None:
        """Start an exchange now."""
        self.sent_ns = clock()
        self.connect()

    def ready(self, mask: int) -> None:
        """Handle the end of the stream; anything else is unusual."""
        if mask == HUNG_UP and not self._rest:
            try:
                got = self.connection.recv(len(self._expected) + 1)
            except OSError as error:
                self.fail(cause_of(error))
                return
            if got == self._expected and not self._got:
                self.note(len(got))
                self.connection.close()
                self.engine.freed.append(self)
                return
            self._got += got
        self._unusual(mask)

    def _unusual(self, mask: int) -> None:
        """Handle a reply in pieces, a wrong one, a broken connection, or a line that is not sent yet."""
        if mask & OUT and not self.send_rest():
            return
        try:
            while piece := self.connection.recv(CHUNK):
                self._got += piece
                if not self._expected.startswith(self._got):
                    break
        except BlockingIOError:
            pass  # there is more to come
        except OSError as error:
            self.fail(cause_of(error))
        else:
            self._ended()

    def _ended(self) -> None:
        """Judge the reply, which is complete or too long."""
        if self._got == self._expected:
            self.note(len(self._got))
            self.drop()
            self.engine.freed.append(self)
        else:
            self.fail(CLOSED_EARLY if self._expected.startswith(self._got) else WRONG_REPLY)

    def drop(self) -> None:
        """Close the connection and forget the exchange."""
        super().drop()
        self._got = b""

    def expire(self) -> None:
        """End the exchange: a server that sent something else and never closed is wrong, not slow."""
        try:
            self._got += self.connection.recv(CHUNK)
        except OSError:
            pass  # nothing came, or the connection is not even made: too long it took
        self.fail(TIMEOUT if self._expected.startswith(self._got) else WRONG_REPLY)


class EchoLink(Link):
    """Keeps a connection for some exchanges, each line sent when the one before has come back, then makes a new one."""

    __slots__ = ("_exchanges", "_got", "_left", "connecting")

    interest = IN | HUNG_UP

    def __init__(self, engine: EngineApi, line: bytes, exchanges: int) -> None:
        super().__init__(engine, line)
        self._exchanges = exchanges
        self._left = 0  # exchanges that this connection still serves
        self._got = b""
        self.connecting = False

    def begin(self) -> None:
        """Start an exchange now. A connect that comes first is timed on its own."""
        self.sent_ns = clock()
        if self._left:
            super().send()
        else:
            self.connecting = True
            self.connect()

    def send(self) -> None:
        """Send the line on a new connection: its clock starts now, if the handshake is over."""
        now_ns = clock()
        super().send()
        if self.sent_ns and len(self._rest) < len(self.request):
            self._connected(now_ns)

    def _connected(self, now_ns: int) -> None:
        self.engine.batch.connects.append((self.sent_ns, now_ns))
        self.connecting = False
        self.sent_ns = now_ns
        self._left = self._exchanges

    def ready(self, mask: int) -> None:
        """Handle the line that came back; anything else is unusual."""
        if mask != IN and not self._go_on(mask):
            return
        try:
            got = self.connection.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(cause_of(error))
            return
        if got == self.request and not self._got and self.sent_ns:
            self._came(len(got), mask)
        else:
            self._came_in_part(got, mask)

    def _go_on(self, mask: int) -> bool:
        """Send the rest when there is room, and note a connect that is over. Return whether the exchange goes on."""
        now_ns = clock()
        if mask & OUT and not self.send_rest():
            return False
        if self.connecting and len(self._rest) < len(self.request):
            self._connected(now_ns)
        return True

    def _came_in_part(self, piece: bytes, mask: int) -> None:
        self._got += piece
        if not piece:
            self.fail(CLOSED_EARLY)
        elif not self.request.startswith(self._got):
            self.fail(WRONG_REPLY)
        elif len(self._got) == len(self.request):
            self._came(len(self._got), mask)

    def _came(self, received: int, mask: int) -> None:
        self.note(received)
        self._got = b""
        self._left = 0 if mask & HUNG_UP else self._left - 1  # the server has closed: nothing more is sent there
        if not self._left:
            self.connection.close()
        self.engine.freed.append(self)

    def drop(self) -> None:
        """Close the connection and forget the exchange."""
        super().drop()
        self.connecting = False
        self._left = 0
        self._got = b""
