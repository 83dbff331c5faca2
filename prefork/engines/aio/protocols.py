"""WORKER. Unmodified `asyncio.Protocol` classes, and factories of protocols.

The loop calls the application's own object. To know when a connection begins and ends, the object's class is replaced
by a subclass, made once for each class, that has the same layout and reports to the service first. So nothing but a
count of bytes stands between the loop and the application. If a class cannot have a subclass, a protocol of ours
receives the connection and hands it over; that it has ended is then found by a check every second.

An exception of the application ends the connection, as it does in asyncio: in most callbacks the loop does it, and
reports to the engine. --idle-timeout does not apply, as it is not known what a protocol waits for.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from time import monotonic_ns
from typing import Any

from prefork.core.address import format_sockaddr
from prefork.core.listener import Listener
from prefork.engines.aio.heartbeat import Heartbeat
from prefork.engines.aio.service import LoopContext
from prefork.engines.linger import end_sending
from prefork.engines.peer import peer_of
from prefork.engines.request_log import count_unit
from prefork.status.scoreboard import COMPLETED, ERRORS, GONE

_SWEEP_S = 1.0


class ProtocolService:
    """WORKER. Serves kind `protocol`."""

    takes_proxy_header = False

    def __init__(self, context: LoopContext) -> None:
        self._context = context
        self._target = context.worker.app.target
        self._row = context.worker.rows[0]
        self._connections = context.connections
        self._heartbeat = context.heartbeat
        self._errors = context.errors
        self._loop = context.loop
        self._classes: dict[type, type | None] = {}  # the application's -> our subclass, None if there is none
        # id() of a protocol -> the protocol (a reference keeps the id its own), its transport, when it began (ns).
        self._held: dict[int, tuple[Any, asyncio.Transport, int]] = {}

    def accept(self, sock: socket.socket, listener: Listener, sockaddr: Any, _queue_ms: int | None) -> None:
        """Serve a connection that was accepted."""
        peer = format_sockaddr(listener.sock.family, sockaddr) if self._context.ssl else ""
        self._context.adopt(sock, partial(self.protocol, listener), peer)

    def protocol(self, _listener: Listener) -> asyncio.BaseProtocol:
        """Return the application's object for the next connection. Never raises, as uvloop would stop to accept."""
        try:
            protocol = self._target()
            own = type(protocol)
            observed = self._classes[own] if own in self._classes else self._observed(own)
            if observed is None:
                return _HandOver(self, protocol)
            object.__setattr__(protocol, "__class__", observed)  # its own __setattr__ may refuse
            if id(protocol) in self._held:
                raise ValueError("the factory has returned a protocol that serves another connection")
        except Exception as error:  # noqa: BLE001 - the border of the application
            return _FailedFactory(self, error)
        made: asyncio.BaseProtocol = protocol
        return made

    async def begin(self) -> None:
        """Begin to look for connections whose end is not reported."""
        self._sweep()

    def retire(self, *, stopping: bool) -> None:
        """Do nothing: a protocol gets no notice, and may run until the graceful timeout."""

    @property
    def busy(self) -> int:
        """Nothing: a protocol has no call that outlives its connection."""
        return 0

    def names(self) -> dict[asyncio.Task[None], str]:
        """Nothing: which tasks belong to a protocol is not known."""
        return {}

    def cut(self) -> None:
        """Nothing: the engine closes the connections, and that ends the protocols."""

    async def end(self, timeout_s: float) -> None:
        """Nothing: a protocol class has no shutdown."""

    def began(self, protocol: Any, transport: Any) -> None:
        """Record that a connection begins."""
        self._connections.join(transport)
        self._held[id(protocol)] = protocol, transport, monotonic_ns()

    def ended(self, protocol: Any, error: BaseException | None) -> None:
        """Count a connection that has ended; `error`: why, None at an orderly end."""
        held = self._held.pop(id(protocol), None)
        if held is None:
            return  # it was counted before
        _, transport, since_ns = held
        outcome = COMPLETED if error is None else GONE if isinstance(error, OSError) else ERRORS
        count_unit(self._row, outcome, monotonic_ns() - since_ns)
        end_sending(transport)
        self._connections.leave(transport)

    def failed(self, protocol: Any, error: Exception) -> None:
        """Log an exception of the application where the loop does not end the connection itself, and end it."""
        held = self._held.get(id(protocol))
        if held is not None:
            _, transport, _ = held
            self._errors.add(error, peer_of(transport))
            transport.abort()
            self.ended(protocol, error)

    def _observed(self, own: type) -> type | None:
        """Make the subclass of an application's class; None if the class allows none."""
        if not issubclass(own, asyncio.Protocol | asyncio.BufferedProtocol):
            raise TypeError(f"the factory has returned {own.__qualname__!r}, which is no protocol of a stream")
        # Local names, as these functions are called for every connection.
        service, join, held = self, self._connections.join, self._held
        made, lost = own.connection_made, own.connection_lost

        def connection_made(self: Any, transport: Any) -> None:
            join(transport)
            held[id(self)] = self, transport, monotonic_ns()
            try:
                made(self, transport)
            except Exception as error:  # noqa: BLE001 - the border of the application
                service.failed(self, error)

        def connection_lost(self: Any, error: Exception | None) -> None:
            try:
                lost(self, error)
            except Exception as fault:  # noqa: BLE001 - the border of the application
                service.failed(self, fault)
            else:
                service.ended(self, error)

        members: dict[str, Any] = {
            "__slots__": (),
            "__module__": own.__module__,
            "__qualname__": own.__qualname__,
            "__doc__": own.__doc__,
            "connection_made": connection_made,
            "connection_lost": connection_lost,
            **_counting(own, self._heartbeat),
        }
        try:
            observed = type(own.__name__, (own,), members)
        except Exception:  # noqa: BLE001 - whatever its metaclass or __init_subclass__ raises, or a compiled class
            self._classes[own] = None
            return None
        self._classes[own] = observed
        self._classes[observed] = observed
        return observed

    def _sweep(self) -> None:
        """Count the connections that have ended under another protocol, which does not report to us."""
        for protocol, transport, _ in list(self._held.values()):
            if transport.is_closing() and transport.get_protocol() is not protocol:
                self.ended(protocol, None)
        self._loop.call_later(_SWEEP_S, self._sweep)


def _counting(own: Any, heartbeat: Heartbeat) -> dict[str, Any]:
    """Return the method of a subclass that counts the bytes received."""
    if issubclass(own, asyncio.BufferedProtocol):
        updated = own.buffer_updated

        def buffer_updated(self: Any, count: int) -> None:
            if not heartbeat.awake:
                heartbeat.wake()
            heartbeat.bytes_in += count
            updated(self, count)

        return {"buffer_updated": buffer_updated}
    received = own.data_received

    def data_received(self: Any, data: bytes) -> None:
        if not heartbeat.awake:
            heartbeat.wake()
        heartbeat.bytes_in += len(data)
        received(self, data)

    return {"data_received": data_received}


class _HandOver(asyncio.Protocol):
    """WORKER. Records a connection, and hands it to a protocol whose class cannot report it."""

    def __init__(self, service: ProtocolService, protocol: Any) -> None:
        self._service = service
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._service.began(self, transport)
        transport.set_protocol(self._protocol)
        try:
            self._protocol.connection_made(transport)
        except Exception as error:  # noqa: BLE001 - the border of the application
            self._service.failed(self, error)


class _FailedFactory(asyncio.Protocol):
    """WORKER. Ends a connection for which the application's factory has failed."""

    def __init__(self, service: ProtocolService, error: Exception) -> None:
        self._service = service
        self._error = error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._service.began(self, transport)
        self._service.failed(self, self._error)


SERVICE = ProtocolService
