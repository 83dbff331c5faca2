"""One client of the fast engine: at most one connection, and at most one exchange on it.

A link is driven by calls that never wait: `begin` starts an exchange, `ready` hears what epoll says of the connection,
`expire` ends an exchange that took too long, `drop` forgets one. A link that cannot go on right now puts itself on the
engine's list `again`. When an exchange has ended well, its link notes both its times and tells the engine; one that
failed is reported with its cause, and its connection is closed.

This is the hot path of the generator, where a microsecond is a tenth of an exchange: bound methods are kept in slots,
and what is usual is tried first, in place. What is unusual (a reply in pieces, a send that would block, an error) goes
through methods of its own.
"""

from __future__ import annotations

import select
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from .failure import CLOSED_EARLY, TIMEOUT, WRONG_REPLY, cause_of

if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 # a class, as in the socket module

    from .engine import Engine

IN, OUT, CLOSED = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
CHUNK = 65536  # bytes to read at once


class Link:
    """What the links of all scenarios share: the connection, its descriptor's place in the epoll, and the end."""

    __slots__ = ("_ended", "_handler", "_rest", "_sent", "connection", "due_ns", "engine", "request", "sent_ns")

    def __init__(self, engine: Engine, request: bytes) -> None:
        self.engine = engine
        self.request = request
        self.connection: Socket | None = None
        self.sent_ns = 0  # when the clock of the exchange in flight started; 0: there is none
        self.due_ns = 0  # the open model: when it should have started
        self._rest = b""  # of the request: not yet sent
        self._handler = self.ready
        self._sent = engine.sent_ns.append
        self._ended = engine.end_ns.append

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
        if self.connection is not None:
            self.connection.close()  # which takes it out of the epoll
            self.connection = None

    def done(self, received: int) -> None:
        """The exchange ended well, now."""
        self.engine.received += received
        self._sent(self.sent_ns)
        self._ended(clock())
        self.engine.finished(self)

    def fail(self, cause: str) -> None:
        """The exchange failed, now; the connection is of no more use."""
        start_ns = self.sent_ns
        self.drop()
        self.engine.failed(self, start_ns, cause)

    def dial(self) -> bool:
        """Make the connection. False: not now, and the link has seen to it (it failed, or tries again)."""
        try:
            self.connection = self.engine.dialer()
        except BlockingIOError:  # a Unix server's accept queue is full, for which nothing can be waited
            self.engine.again.append(self.dialled)
            return False
        except OSError as error:
            self.fail(cause_of(error))
            return False
        return True

    def dialled(self) -> None:
        """Try once more what `dial` could not, unless the exchange has been given up since."""
        raise NotImplementedError

    def send(self) -> None:
        """Send the request on a connection that is new to the epoll, and wait for the reply, or for room to send."""
        assert self.connection is not None
        try:
            sent = self.connection.send(self.request)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.fail(cause_of(error))
            return
        self._rest = self.request[sent:]
        self.watch(self.interest | OUT if self._rest else self.interest)

    @property
    def interest(self) -> int:
        """The events to wait for when all is sent."""
        return IN

    def watch(self, mask: int) -> None:
        """Enter the connection into the epoll."""
        assert self.connection is not None
        fd = self.connection.fileno()
        self.engine.handlers[fd] = self._handler
        self.engine.poller.register(fd, mask)

    def send_rest(self) -> bool:
        """Send more of the request, now that there is room. False if that failed."""
        assert self.connection is not None
        try:
            self._rest = self._rest[self.connection.send(self._rest) :]
        except BlockingIOError:
            return True
        except OSError as error:
            self.fail(cause_of(error))
            return False
        if not self._rest:
            self.engine.poller.modify(self.connection.fileno(), self.interest)
        return True
