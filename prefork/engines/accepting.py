"""WORKER. Taking connections from the listeners that all workers share, for engines that block.

One blocking listener: plain accept(). Several, or one that somebody made non-blocking: wait on epoll with
EPOLLEXCLUSIVE, so that a connection wakes one waiter and not all. The kernel asks the waiters in the order of their
registration, so each wake-up ends with a new registration, at the tail; else the first would take nearly everything.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from ..listener import ACCEPT_WAIT_S, Listener


class Acceptor:
    """WORKER, one per thread. `take()` waits at most ACCEPT_WAIT_S; `family` is that of the last connection's listener.

    `take` returns (descriptor, peer's sockaddr) and raises BlockingIOError if no connection came in time, other
    OSErrors as accept(2).
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._socks = {listener.sock.fileno(): listener.sock for listener in listeners}
        self._epoll: select.epoll | None = None
        self.family = int(listeners[0].sock.family)
        # The method below socket.accept(): it returns the bare descriptor and makes no second object (2.5 us less).
        self.take: Callable[[], tuple[int, Any]] = listeners[0].sock._accept  # type: ignore[attr-defined]
        if len(listeners) > 1:
            self.poll()

    def poll(self, wait_s: float = ACCEPT_WAIT_S) -> None:
        """From now on wait with epoll, `wait_s` at most."""
        if self._epoll is None:
            self._epoll = select.epoll()
            for fd in self._socks:
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self.take = partial(self._poll, self._epoll, wait_s)

    def ran_out(self) -> None:
        """`take` found nothing. If accept() no longer waits, since another process set O_NONBLOCK, use epoll."""
        if self._epoll is None and not all(map(os.get_blocking, self._socks)):
            self.poll()

    def _poll(self, epoll: select.epoll, wait_s: float) -> tuple[int, Any]:
        for fd, _events in epoll.poll(wait_s, 1):
            sock = self._socks[fd]
            self.family = sock.family
            try:
                return cast("tuple[int, Any]", sock._accept())  # type: ignore[attr-defined]
            finally:
                epoll.unregister(fd)
                epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        raise BlockingIOError("no connection waits")
