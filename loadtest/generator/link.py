"""One client of the fast engine: at most one connection, and at most one exchange on it.

A link is driven by calls that never wait: `begin` starts an exchange, `ready` hears what epoll says of the connection,
`expire` ends an exchange that took too long, `drop` forgets one. A link that cannot go on right now puts itself on the
engine's list `again`. An exchange that ended well is noted with both its times and told to the engine; one that failed
is reported with its cause, and its connection is closed.

This is the hot path of the generator, where a microsecond is a tenth of an exchange: what is usual is tried first and
in place; what is unusual (a reply in pieces, a send that would block, an error) goes through methods of its own. There
is always a socket in `connection`; without a connection it is a closed one, whose descriptor is -1.
"""

from __future__ import annotations

import select
from _socket import socket as Socket  # noqa: N812 # a class, as in the socket module
from ssl import SSLWantReadError
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from .failure import TIMEOUT, cause_of

if TYPE_CHECKING:
    from .dialer import Connection
    from .engine import Engine

IN, OUT, HUNG_UP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
CHUNK = 65536  # bytes to read at once
_NO_CONNECTION = Socket()
_NO_CONNECTION.close()


class Link:
    """What the links of all scenarios share: making a connection, sending the request, and the two ends."""

    __slots__ = ("_handler", "_rest", "connection", "due_ns", "engine", "request", "sent_ns")

    interest = IN  # the events to wait for once all is sent
    connecting = False  # whether a failure now is one of a connect that is timed on its own

    def __init__(self, engine: Engine, request: bytes) -> None:
        self.engine = engine
        self.request = request
        self.connection: Connection = _NO_CONNECTION
        self.sent_ns = 0  # when the clock of the exchange in flight started; 0: there is none
        self.due_ns = 0  # when it should have started; 0 in the closed model
        self._rest = b""  # of the request, not yet sent
        self._handler = self.ready

    def begin(self) -> None:
        """Start an exchange now."""
        raise NotImplementedError

    def ready(self, mask: int) -> None:
        """The connection has something to tell, as epoll's mask says."""
        raise NotImplementedError

    def expire(self) -> None:
        """End the exchange, which took too long."""
        self.fail(TIMEOUT)

    def drop(self) -> None:
        """Close the connection, if there is one, and forget what is in flight."""
        self.sent_ns = 0
        self._rest = b""
        self.connection.close()  # which takes it out of the epoll too

    def note(self, received: int) -> None:
        """The exchange ended well, now. What follows (to close, to go on) is not on its clock any more."""
        batch = self.engine.batch
        batch.end_ns.append(clock())
        batch.sent_ns.append(self.sent_ns)
        batch.received += received

    def fail(self, cause: str, *, keep: bool = False) -> None:
        """The exchange failed, now; so did the connection, unless it is to keep. Without an exchange only that."""
        start_ns, connecting = self.sent_ns, self.connecting
        if keep:
            self.sent_ns = 0
        else:
            self.drop()
        if start_ns:
            self.engine.failed(self, start_ns, cause, connecting=connecting)

    def connect(self) -> None:
        """Make the connection and send the request on it."""
        try:
            connection = self.connection = self.engine.dialer()
        except BlockingIOError:  # a Unix server's accept queue is full, and no event tells when it is not
            self.engine.again.append(self._connect_again)
            return
        except OSError as error:
            self.fail(cause_of(error))
            return
        fd = connection.fileno()
        self.engine.handlers[fd] = self._handler
        self.engine.register(fd, self.interest)
        self.send()

    def _connect_again(self) -> None:
        if self.sent_ns and self.connection.fileno() < 0:  # else it has expired meanwhile
            self.connect()

    def send(self) -> None:
        """Send the request, as far as there is room now, which there is not before the handshake is over."""
        try:
            sent = self.connection.send(self.request)
        except BlockingIOError:
            sent = 0
        except SSLWantReadError:  # the rest goes when something came, for which the epoll waits anyway
            self._rest = self.request
            return
        except OSError as error:
            self.fail(cause_of(error))
            return
        if sent < len(self.request):
            self._rest = self.request[sent:]
            self.engine.modify(self.connection.fileno(), self.interest | OUT)

    def send_rest(self) -> bool:
        """Send more, if something is left. Returns whether the exchange goes on."""
        if self._rest:
            interest = self.interest | OUT
            try:
                self._rest = self._rest[self.connection.send(self._rest) :]
            except BlockingIOError:
                pass
            except SSLWantReadError:
                interest = self.interest
            except OSError as error:
                self.fail(cause_of(error))
                return False
            self.engine.modify(self.connection.fileno(), interest if self._rest else self.interest)
        return True
