"""WORKER. What the asyncio engine and the services share: a service serves the connections of one kind of app."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefork.core.listener import Listener
from prefork.engines.aio.connections import ConnectionSet
from prefork.engines.aio.heartbeat import Heartbeat
from prefork.engines.aio.waiting import LoopTimers
from prefork.engines.context import WorkerContext
from prefork.engines.error_log import RateLimitedLog
from prefork.status.scoreboard import GONE, REFUSED, TIMED_OUT


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopContext:
    """WORKER. What every service of a loop is given. `ssl`: arguments for a transport, empty without TLS.

    `variables`: the context variables that the server was started with. Each connection and each call of an application
    begins with a copy of its own: asyncio would give it those of whatever code happens to run, such as another request.
    """

    worker: WorkerContext
    loop: asyncio.AbstractEventLoop
    connections: ConnectionSet
    heartbeat: Heartbeat
    timers: LoopTimers[Any]
    errors: RateLimitedLog
    ssl: dict[str, Any]
    variables: contextvars.Context = field(default_factory=contextvars.copy_context)

    def adopt(self, sock: socket.socket, factory: Callable[[], asyncio.BaseProtocol], peer: str) -> None:
        """Make an accepted socket a transport of the loop, with the protocol that `factory` returns.

        `peer`: whom the log names if a handshake fails.
        """
        accepting = self.loop.connect_accepted_socket(factory, sock, **self.ssl)
        self.variables.copy().run(AcceptedSocket, self, accepting, peer)


class Service(Protocol):
    """How the connections of one kind of app are served."""

    takes_proxy_header: bool  # whether --proxy-protocol is of use

    def __init__(self, context: LoopContext, /) -> None: ...

    def accept(self, sock: socket.socket, listener: Listener, sockaddr: Any, queue_ms: int | None, /) -> None:
        """Serve a connection that was accepted, and has waited for `queue_ms` in the kernel (None: not known)."""

    def protocol(self, listener: Listener, /) -> asyncio.BaseProtocol:
        """Return the protocol for a connection that the loop itself has accepted. Must not raise."""

    async def begin(self) -> None:
        """Start, before the first connection. Raises BootError."""

    def retire(self, *, stopping: bool) -> None:
        """Ask the clients to end. `stopping`: the whole server stops, else a successor goes on."""

    @property
    def busy(self) -> int:
        """The number of calls that still run, connected or not."""

    def names(self) -> dict[asyncio.Task[None], str]:
        """Return which task serves whom. A signal handler calls this, so it must change nothing."""

    def cut(self) -> None:
        """Cancel what still runs: the graceful timeout is over."""

    async def end(self, timeout_s: float) -> None:
        """Shut down, after the last connection."""


class AcceptedSocket:
    """WORKER. Drives `loop.connect_accepted_socket` without a task (measured: 4 of 41 us a connection)."""

    __slots__ = ("_context", "_coroutine", "_peer", "_told")

    def __init__(self, context: LoopContext, coroutine: Coroutine[Any, Any, Any], peer: str) -> None:
        self._context = context
        self._coroutine = coroutine
        self._peer = peer
        self._told = False  # that its handshake has failed
        if context.ssl:
            _SOCKET.set(self)
        self._step()

    def _step(self, _waited_for: Any = None) -> None:
        try:
            future: asyncio.Future[Any] = self._coroutine.send(None)
        except StopIteration:
            return
        except (OSError, RuntimeError, asyncio.CancelledError) as error:
            self._fail(error)  # the client has left meanwhile (to uvloop a RuntimeError), or cannot speak TLS
            return
        future._asyncio_future_blocking = False  # what a task does with a future that it is given to wait for
        future.add_done_callback(self._step)

    def _fail(self, error: BaseException) -> None:
        context = self._context
        context.connections.lose()
        if not context.ssl:
            context.errors.note("connection failed", ours=False, error=str(error) or type(error).__name__)
        elif not self._told:  # it has left in its handshake, or is late
            late = isinstance(error, ConnectionAbortedError)
            context.worker.rows[0].cells[TIMED_OUT if late else GONE] += 1

    @staticmethod
    def tell(error: OSError) -> None:
        """Count and log that a handshake has failed, of the connection whose variables are the current ones."""
        self = _SOCKET.get()
        self._told = True
        self._context.worker.rows[0].cells[REFUSED] += 1
        self._context.errors.note("connection failed", ours=False, peer=self._peer, error=str(error))


_SOCKET: contextvars.ContextVar[AcceptedSocket] = contextvars.ContextVar("prefork accepted socket")
