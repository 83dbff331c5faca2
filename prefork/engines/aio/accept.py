"""WORKER. How an asyncio worker accepts connections.

LoopAcceptor decides itself when to accept and how many, as all engines do (engines/accept.py). Its epoll is registered
in the event loop, so a new connection on a shared listener wakes every worker that accepts; a worker that holds more
than the average does not accept for a while.

UvloopAcceptor lets uvloop accept, which is cheaper (measured: 11 of 47 us a connection), where the listeners are this
worker's own (--accept per-worker). But uvloop knows no --max-connections, and if the process has no descriptor left, it
closes the connections that wait. So it accepts only while both are plentiful; else a LoopAcceptor takes over.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import resource
import select
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any

from prefork.core.listener import Listener
from prefork.engines.accept import AcceptBalance, EpollAcceptor
from prefork.engines.aio.connections import ConnectionSet
from prefork.engines.context import WorkerContext
from prefork.engines.error_log import RateLimitedLog
from prefork.engines.timers import NEVER
from prefork.runtime.forks import OURS

_CHECK_S = 0.2
# uvloop may take so many connections of a listener before the turn ends and they are counted; 3 were seen.
_TURN_MOST = 8
# Shares of the connections and of the descriptors that are allowed. From 0.75 in use on, our own acceptor takes over;
# below 0.5, uvloop accepts again. The last quarter of the descriptors, thousands, is more than an application opens
# between two checks.
_SCARCE = 0.75
_PLENTY = 0.5
_STEP = 64  # connections more than at the last check make the next one
_FEWEST_FDS = 4096  # with fewer descriptors, they are never plentiful

Admit = Callable[[int, Any, Listener], None]


class LoopAcceptor:
    """WORKER. Calls `admit(descriptor, sockaddr, listener)` for each connection."""

    def __init__(
        self,
        worker: WorkerContext,
        loop: asyncio.AbstractEventLoop,
        *,
        connections: ConnectionSet,
        balance: AcceptBalance,
        errors: RateLimitedLog,
        admit: Admit,
    ) -> None:
        self._loop = loop
        self._balance = balance
        self._epoll = select.epoll()
        OURS.own(self._epoll.fileno())
        self._timer: asyncio.TimerHandle | None = None
        self._armed_ns = NEVER
        self._acceptor = EpollAcceptor(
            worker.listeners,
            epoll=self._epoll,
            balance=balance,
            errors=errors,
            admit=admit,
            room=connections.room,
            make_room=connections.make_room,
            held=connections.held,
        )
        self._handlers = self._acceptor.handlers()

    def open(self) -> None:
        """Begin to accept."""
        self._acceptor.open()
        self._loop.add_reader(self._epoll.fileno(), self._on_readable)

    def close(self) -> None:
        """Stop accepting; the listeners stay open."""
        self._loop.remove_reader(self._epoll.fileno())
        self._acceptor.stop_accepting()
        self._arm()

    def end_turn(self) -> None:
        """Accept again at once if a turn of the loop has ended the reason not to: a client has asked, or has left."""
        if self._acceptor.check_ns != NEVER:
            self._maintain()

    def drain(self) -> bool:
        """Accept what waits in the kernel when the server stops; return False if that has to be tried again."""
        return self._acceptor.drain()

    def _on_readable(self) -> None:
        now_ns = monotonic_ns()
        for fd, _mask in self._epoll.poll(0):
            self._handlers[fd](fd, now_ns)
        self._arm()

    def _arm(self) -> None:
        """Set the timer for when the listeners have to be looked at again."""
        check_ns = self._acceptor.check_ns
        if check_ns == self._armed_ns:
            return
        self._armed_ns = check_ns
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if check_ns != NEVER:
            # In whole milliseconds, rounded up: uvloop knows no shorter ones, and would come back again and again.
            after_ms = max(0, -((monotonic_ns() - check_ns) // 1_000_000))
            self._timer = self._loop.call_later(after_ms / 1e3, self._on_time)

    def _on_time(self) -> None:
        self._armed_ns = NEVER
        self._maintain()

    def _maintain(self) -> None:
        self._acceptor.maintain(monotonic_ns())
        self._arm()


class UvloopAcceptor:
    """WORKER. `protocol(listener)` makes the protocol for a connection; it must not raise.

    At any time either uvloop accepts (`_servers`) or `own` does. The change from one to the other is one synchronous
    step: uvloop's create_server() does not suspend when it is given a socket, so there is no task that a stop could
    cancel halfway. No connection can be lost between the two, as those that come meanwhile wait in the kernel's queue.
    """

    def __init__(
        self,
        worker: WorkerContext,
        loop: asyncio.AbstractEventLoop,
        *,
        connections: ConnectionSet,
        own: LoopAcceptor,
        protocol: Callable[[Listener], asyncio.BaseProtocol],
    ) -> None:
        self._loop = loop
        self._listeners = worker.listeners
        self._backlog = worker.config.backlog
        self._most = worker.config.max_connections - _TURN_MOST * len(worker.listeners)
        self._connections = connections
        self._log = worker.log
        self._own = own
        self._protocol = protocol
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None
        self._most_fds = 0
        self._check_at = 0.0  # connections
        # A loop runs what it accepts in the context of who began to accept. That must not be an application's task.
        self._context = contextvars.copy_context()

    def open(self) -> None:
        """Begin to accept."""
        self._own.open()
        self._check()

    def close(self) -> None:
        """Stop accepting; the listeners stay open."""
        if self._timer is not None:
            self._timer.cancel()
        self._close_servers()
        self._own.close()

    def drain(self) -> bool:
        """Accept what waits in the kernel when the server stops; return False if that has to be tried again."""
        return self._own.drain()

    def on_change(self, held: int) -> None:
        """Choose the acceptor again, if the number of connections has changed enough."""
        if not self._servers or held >= self._check_at:
            self._choose()

    def _check(self) -> None:
        """Choose again from time to time: descriptors come and go without connections, and uvloop may fail."""
        self._most_fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if any(_has_failed(server) for server in self._servers):
            self._context.run(self._use_own)
        self._choose()
        self._timer = self._loop.call_later(_CHECK_S, self._check)

    def _choose(self) -> None:
        if self._servers:
            if not self._plenty(_SCARCE):
                self._log.debug("accepting with care", connections=self._connections.held(), descriptors=self._most_fds)
                self._context.run(self._use_own)
        elif self._plenty(_PLENTY):
            self._context.run(self._use_uvloop)

    def _use_own(self) -> None:
        self._close_servers()
        self._own.open()

    def _use_uvloop(self) -> None:
        self._own.close()
        try:
            for listener in self._listeners:
                self._servers.append(self._listen(listener))
        except OSError:  # no descriptor for the copy, or for the loop
            self._use_own()

    def _listen(self, listener: Listener) -> asyncio.Server:
        """Let uvloop accept on a copy of the listener, as it closes what it is given. Raises OSError."""
        connections, protocol = self._connections, self._protocol

        def arrive() -> asyncio.BaseProtocol:
            made = protocol(listener)
            connections.arrived()
            return made

        copy = listener.copy()
        # Without the backlog, the loop would set another one.
        starting = self._loop.create_server(arrive, sock=copy, backlog=self._backlog)
        try:
            starting.send(None)
        except StopIteration as finished:
            server: asyncio.Server = finished.value
            return server
        except OSError:
            copy.close()
            raise
        starting.close()
        copy.close()
        raise OSError("create_server() has suspended")

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _plenty(self, share: float) -> bool:
        """Return whether less than this share of the connections, and of the descriptors, is in use."""
        held = self._connections.held()
        most = share * self._most
        if held >= most or self._most_fds < _FEWEST_FDS:
            return False
        self._check_at = min(held + _STEP, most)
        try:
            lowest_free = os.dup(self._listeners[0].sock.fileno())
        except OSError:
            return False
        os.close(lowest_free)
        return lowest_free < share * self._most_fds


def _has_failed(server: asyncio.Server) -> bool:
    """Return whether uvloop has closed a server by itself. It does so at an error of accept(), and says nothing."""
    sockets: Sequence[Any] = server.sockets  # None for one of uvloop's that is closed
    return any(sock is None or sock.fileno() < 0 for sock in sockets)


Acceptor = LoopAcceptor | UvloopAcceptor
