"""WORKER. The listeners in an event loop's epoll: when to take connections, how many, and when to stay off.

Open, the listeners are registered; off, they are not, and others take what comes. A worker goes off when it is full,
when it holds its share (balance.py), and for a while when the system is out of descriptors. Whoever opens again is
last in the kernel's order, so each wake-up ends with that, too.

With a listener of its own (--accept per-worker) there is nobody to share with: it is open unless full or paused.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Any

from prefork.core.listener import Listener
from prefork.engines.balance import OFF_NS, Balance
from prefork.engines.error_log import Complaints
from prefork.engines.timers import NEVER
from prefork.errors import ACCEPT_IGNORED, ACCEPT_PAUSE, ACCEPT_PAUSE_S, QUEUE_EMPTY

_MOST = 64  # connections taken in one turn; the loop's clients have their turn in between
_PAUSE_NS = round(ACCEPT_PAUSE_S * 1e9)
_EXCLUSIVELY = select.EPOLLIN | select.EPOLLEXCLUSIVE

Admit = Callable[[int, Any, Listener], None]


class Entrance:
    """WORKER. `admit(descriptor, sockaddr, listener)` gets each connection; `held()` says how many there are.

    `look_ns` is when the loop has to call `tend`, on its own clock.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        epoll: select.epoll,
        balance: Balance,
        complaints: Complaints,
        admit: Admit,
        room: Callable[[], bool],
        held: Callable[[], int],
    ) -> None:
        self._listeners = {listener.sock.fileno(): listener for listener in listeners}
        self._shared = any(listener.slot is None for listener in listeners)
        self._epoll = epoll
        self._balance = balance
        self._complaints = complaints
        self._admit = admit
        self._room = room
        self._held = held
        self._look = select.poll()  # whether anything waits
        for fd in self._listeners:
            self._look.register(fd, select.POLLIN)
        self._fds = [*self._listeners, balance.fd] if self._shared else [*self._listeners]
        self._open = False
        self._paused = False
        self._queued = list(self._listeners.values())  # that may still have a queue when the server stops
        self.look_ns = NEVER

    def handlers(self) -> dict[int, Callable[[int, int], None]]:
        """What to call with (descriptor, now_ns) when one of these is readable."""
        return dict.fromkeys(self._listeners, self._take) | ({self._balance.fd: self._nudged} if self._shared else {})

    def open(self) -> None:
        """Begin to accept."""
        for listener in self._listeners.values():
            listener.sock.setblocking(False)
        self._enter()

    def tend(self, now_ns: int) -> None:
        """Open again if the reason to stay off is gone. Call it in each turn while `look_ns` is not NEVER."""
        if self._paused and now_ns < self.look_ns:
            return
        self._paused = False
        if self._shared and now_ns >= self.look_ns and self._room():
            self._balance.look(self._held(), now_ns, waits=self.waits())
        if self._wanted():
            self._enter()
        elif now_ns >= self.look_ns:
            self.look_ns = now_ns + OFF_NS

    def waits(self) -> bool:
        """Whether a connection waits at this moment."""
        return bool(self._look.poll(0))

    def shut(self) -> None:
        """Take nothing any more."""
        self._leave()
        self.look_ns = NEVER

    def drain(self) -> bool:
        """Take what the kernel has accepted for a server that stops; False if that has to be tried again."""
        while self._queued:
            try:
                self._accept(self._queued[-1])
            except OSError as error:
                if error.errno in QUEUE_EMPTY:
                    self._queued.pop()
                elif error.errno in ACCEPT_PAUSE:
                    return False
                elif error.errno not in ACCEPT_IGNORED:
                    raise
        return True

    # --- inside

    def _take(self, fd: int, now_ns: int) -> None:
        """Take what waits on one listener, up to this worker's share."""
        if not self._open:
            return
        listener = self._listeners[fd]
        for _ in range(_MOST):
            if not self._wanted():
                break
            try:
                self._accept(listener)
            except OSError as error:
                if error.errno in QUEUE_EMPTY:
                    break
                if error.errno in ACCEPT_PAUSE:
                    self._pause(error, now_ns)
                    return
                if error.errno not in ACCEPT_IGNORED:
                    raise
        if not self._wanted():
            self._leave()
            self.look_ns = now_ns + OFF_NS
            if self._shared and self.waits():
                self._balance.leave()
        elif self._shared:
            self._epoll.unregister(fd)
            self._epoll.register(fd, _EXCLUSIVELY)

    def _nudged(self, _fd: int, now_ns: int) -> None:
        self._balance.heard()
        for fd, _mask in self._look.poll(0):
            self._take(fd, now_ns)

    def _accept(self, listener: Listener) -> None:
        fd, sockaddr = listener.sock._accept()  # type: ignore[attr-defined] # below accept(): the bare descriptor
        self._admit(fd, sockaddr, listener)

    def _wanted(self) -> bool:
        return self._room() and (not self._shared or self._balance.may_take(self._held()))

    def _pause(self, error: OSError, now_ns: int) -> None:
        self._complaints.note("accept paused", reason=error.strerror, pause=f"{ACCEPT_PAUSE_S:g}s")
        self._leave()
        self._paused = True
        self.look_ns = now_ns + _PAUSE_NS

    def _enter(self) -> None:
        self.look_ns = NEVER
        if not self._open:
            self._open = True
            for fd in self._fds:
                self._epoll.register(fd, _EXCLUSIVELY if self._shared else select.EPOLLIN)

    def _leave(self) -> None:
        if self._open:
            self._open = False
            for fd in self._fds:
                self._epoll.unregister(fd)
