"""WORKER. Taking connections from the listeners that all workers share, for engines that block.

One blocking listener: plain accept(). Several, or one that somebody made non-blocking: wait on epoll with
EPOLLEXCLUSIVE, so that a connection wakes one waiter and not all. The kernel asks the waiters in the order of their
registration, so each wake-up ends with a new registration, at the tail; else the first would take nearly everything.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Sequence
from typing import Any, cast

from prefork.core.listener import ACCEPT_WAIT_S, Listener
from prefork.errors import QUEUE_EMPTY


class Acceptor:
    """WORKER, one per thread. `take()` waits at most ACCEPT_WAIT_S; `family` is that of the last connection's listener.

    `take` returns (descriptor, peer's sockaddr) and raises BlockingIOError if no connection came in time, other
    OSErrors as accept(2).
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._socks = {listener.sock.fileno(): listener.sock for listener in listeners}
        self._epoll = select.epoll()  # made now, as descriptors may be out when it is needed
        self._polls = False
        self._draining = list(self._socks.values())  # that may still have a queue when the server stops
        self.family = int(listeners[0].sock.family)
        # The method below socket.accept(): it returns the bare descriptor and makes no second object (2.5 us less).
        self.take: Callable[[], tuple[int, Any]] = listeners[0].sock._accept  # type: ignore[attr-defined]
        if len(listeners) > 1:
            self._poll()

    def ran_out(self) -> None:
        """`take` found nothing. If accept() no longer waits, since another process set O_NONBLOCK, use epoll."""
        if not self._polls and not all(map(os.get_blocking, self._socks)):
            self._poll()

    def take_queued(self) -> tuple[int, Any]:
        """Take what waits on any of the listeners, which are non-blocking by now; BlockingIOError: all are empty."""
        while self._draining:
            self.family = self._draining[-1].family
            try:
                return cast("tuple[int, Any]", self._draining[-1]._accept())  # type: ignore[attr-defined]
            except OSError as error:
                if error.errno not in QUEUE_EMPTY:
                    raise
                self._draining.pop()
        raise BlockingIOError(errno.EAGAIN, "no connection waits")

    def _poll(self) -> None:
        """From now on wait with epoll. Registered before it is needed, it would be woken instead of accept()."""
        self._polls = True
        for fd in self._socks:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self.take = self._take_polled

    def _take_polled(self) -> tuple[int, Any]:
        epoll = self._epoll
        for fd, _events in epoll.poll(ACCEPT_WAIT_S, 1):
            sock = self._socks[fd]
            self.family = sock.family
            try:
                return cast("tuple[int, Any]", sock._accept())  # type: ignore[attr-defined]
            finally:
                epoll.unregister(fd)
                epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        raise BlockingIOError(errno.EAGAIN, "no connection waits")
