"""WORKER. Unmodified `asyncio.Protocol` classes, and factories of protocols.

The loop talks to the application's own object. To know when a connection begins and ends, its class is replaced by a
subclass, made once for each class, that has the same layout and tells us before it goes on: so nothing stands between
the loop and the application when data comes, but a count. A class that will not have a subclass is introduced by a
protocol of ours, and then left alone; that its connection has ended is seen from time to time.

What the application raises ends the connection, as it does without us: the loop sees to that in most callbacks, and
tells the engine. A protocol keeps its own time: --idle-timeout does not apply, as nobody can tell what it waits for.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import Any

from prefork.core.listener import Listener
from prefork.engines.aio.heartbeat import Pulse
from prefork.engines.aio.service import Premises
from prefork.engines.peer import peer_of
from prefork.status.histogram import array_index
from prefork.status.scoreboard import COMPLETED, ERRORS, GONE, HISTOGRAM, TOOK_NS

_SWEEP_S = 1.0


class ProtocolService:
    """WORKER. Serves kind `protocol`."""

    def __init__(self, premises: Premises) -> None:
        self._target = premises.station.app.target
        self._cells = premises.station.rows[0].cells
        self._crowd = premises.crowd
        self._pulse = premises.pulse
        self._complaints = premises.complaints
        self._loop = premises.loop
        self._classes: dict[type, type | None] = {}  # of the application, and the subclass that tells us; None: no way
        # By id() of the protocol: itself, which keeps the number its own; its transport; when it began.
        self._held: dict[int, tuple[Any, asyncio.Transport, int]] = {}

    def protocol(self, _listener: Listener, _sockaddr: Any = None) -> asyncio.BaseProtocol:
        """The application's object for the next connection. Never raises: a loop that accepts would not go on."""
        try:
            protocol = self._target()
            own = type(protocol)
            observed = self._classes[own] if own in self._classes else self._observed(own)
            if observed is None:
                return _Introduction(self, protocol)
            object.__setattr__(protocol, "__class__", observed)  # its own __setattr__ may refuse
            if id(protocol) in self._held:
                raise ValueError("the factory has returned a protocol that serves another connection")
        except Exception as error:  # noqa: BLE001 - the border of the application
            return _Refusal(self, error)
        made: asyncio.BaseProtocol = protocol
        return made

    async def begin(self) -> None:
        """Begin to look for those who have left without a word."""
        self._sweep()

    def retire(self, *, stopping: bool) -> None:
        """There is no way to tell a protocol; it may end in its own time, up to the graceful timeout."""

    @property
    def busy(self) -> int:
        """Nothing runs without a connection."""
        return 0

    def names(self) -> dict[asyncio.Task[None], str]:
        """Nobody can tell."""
        return {}

    def cut(self) -> None:
        """The crowd cuts the connections, and that ends the protocols."""

    async def end(self, timeout_s: float) -> None:
        """Nothing is needed."""

    def came(self, protocol: Any, transport: Any) -> None:
        """A connection begins."""
        self._crowd.join(transport)
        self._held[id(protocol)] = protocol, transport, monotonic_ns()

    def left(self, protocol: Any, error: BaseException | None) -> None:
        """It has ended, for this reason."""
        held = self._held.pop(id(protocol), None)
        if held is None:
            return  # it was given up before
        _, transport, since_ns = held
        took_ns = monotonic_ns() - since_ns
        cells = self._cells
        cells[HISTOGRAM + array_index(took_ns)] += 1
        cells[TOOK_NS] += took_ns
        cells[COMPLETED if error is None else GONE if isinstance(error, OSError) else ERRORS] += 1
        self._crowd.leave(transport)

    def failed(self, protocol: Any, error: Exception) -> None:
        """The application's code raised where the loop would go on with the connection, or has ended it."""
        held = self._held.get(id(protocol))
        if held is not None:
            _, transport, _ = held
            self._complaints.add(error, peer_of(transport))
            transport.abort()
            self.left(protocol, error)

    def _observed(self, own: type) -> type | None:
        """Make the subclass of an application's class; None if it does not let us."""
        if not issubclass(own, asyncio.Protocol | asyncio.BufferedProtocol):
            raise TypeError(f"the factory has returned {own.__qualname__!r}, which is no protocol of a stream")
        # All that these need is at hand, as they are called for every connection.
        service, join, held = self, self._crowd.join, self._held
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
                service.left(self, error)

        members: dict[str, Any] = {
            "__slots__": (),
            "__module__": own.__module__,
            "__qualname__": own.__qualname__,
            "__doc__": own.__doc__,
            "connection_made": connection_made,
            "connection_lost": connection_lost,
            **_counting(own, self._pulse),
        }
        try:
            observed = type(own.__name__, (own,), members)
        except Exception:  # noqa: BLE001 - whatever its metaclass or __init_subclass__ raises, or a compiled class
            self._classes[own] = None
            return None
        self._classes[own] = self._classes[observed] = observed
        return observed

    def _sweep(self) -> None:
        """Give up those that have handed their transport to another protocol, which does not tell us of its end."""
        for protocol, transport, _ in list(self._held.values()):
            if transport.is_closing() and transport.get_protocol() is not protocol:
                self.left(protocol, None)
        self._loop.call_later(_SWEEP_S, self._sweep)


def _counting(own: Any, pulse: Pulse) -> dict[str, Any]:
    """The method of a subclass that counts what comes."""
    if issubclass(own, asyncio.BufferedProtocol):
        updated = own.buffer_updated

        def buffer_updated(self: Any, count: int) -> None:
            if not pulse.on:
                pulse.begin()
            pulse.bytes_in += count
            updated(self, count)

        return {"buffer_updated": buffer_updated}
    received = own.data_received

    def data_received(self: Any, data: bytes) -> None:
        if not pulse.on:
            pulse.begin()
        pulse.bytes_in += len(data)
        received(self, data)

    return {"data_received": data_received}


class _Introduction(asyncio.Protocol):
    """WORKER. Makes a connection known, and hands it to a protocol that cannot tell us of it."""

    def __init__(self, service: ProtocolService, protocol: Any) -> None:
        self._service = service
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._service.came(self, transport)
        transport.set_protocol(self._protocol)
        try:
            self._protocol.connection_made(transport)
        except Exception as error:  # noqa: BLE001 - the border of the application
            self._service.failed(self, error)


class _Refusal(asyncio.Protocol):
    """WORKER. Stands for a connection that the application has no protocol for."""

    def __init__(self, service: ProtocolService, error: Exception) -> None:
        self._service = service
        self._error = error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._service.came(self, transport)
        self._service.failed(self, self._error)
