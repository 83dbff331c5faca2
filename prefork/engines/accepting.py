"""WORKER. Taking connections from the listeners that all workers share, for engines that block.

One blocking listener: plain accept(). Several, or one that somebody made non-blocking: wait on epoll with
EPOLLEXCLUSIVE, so that a connection wakes one waiter and not all. The kernel asks the waiters in the order of their
registration, so each wake-up ends with a new registration, at the tail; else the first would take nearly everything.
"""

from __future__ import annotations

import os
import select
from typing import Any

from ..listener import ACCEPT_WAIT_S, Listener


class Acceptor:
    """WORKER, one per thread. `accept()` waits at most ACCEPT_WAIT_S."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._listeners = {listener.sock.fileno(): listener.sock for listener in listeners}
        self._only = listeners[0].sock if len(listeners) == 1 else None
        self._epoll: select.epoll | None = None

    def accept(self, *, wait: bool = True) -> tuple[int, Any, int]:
        """Return (descriptor, peer's sockaddr, address family) of a new connection.

        Raises BlockingIOError if none came in time, at once without `wait`; other OSErrors as accept(2).
        """
        if self._only is not None and wait and self._epoll is None:
            try:
                fd, sockaddr = self._only._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                if not os.get_blocking(self._only.fileno()):  # another process changed it: it is no wait any more
                    self._epoll = self._register()
                raise
            return fd, sockaddr, self._only.family
        if self._epoll is None:
            self._epoll = self._register()
        return self._poll(self._epoll, ACCEPT_WAIT_S if wait else 0.0)

    def _register(self) -> select.epoll:
        epoll = select.epoll()
        for fd in self._listeners:
            epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        return epoll

    def _poll(self, epoll: select.epoll, wait_s: float) -> tuple[int, Any, int]:
        for ready, _events in epoll.poll(wait_s, 1):
            sock = self._listeners[ready]
            try:
                fd, sockaddr = sock._accept()  # type: ignore[attr-defined]
                return fd, sockaddr, sock.family
            finally:
                epoll.unregister(ready)
                epoll.register(ready, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        raise BlockingIOError("no connection waits")
