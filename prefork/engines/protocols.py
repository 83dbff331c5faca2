"""WORKER. Unmodified `asyncio.Protocol` classes, and factories of protocols.

The loop talks to the application's own object. To know when a connection begins and ends, its class is replaced by a
subclass, made once for each class, that has the same layout and tells us before it goes on: so nothing stands between
the loop and the application when data comes, but a count.

A protocol keeps its own time: --idle-timeout does not apply, as nobody can tell what it waits for.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import Any

from ..histogram import array_index
from ..listener import Listener
from ..scoreboard import COMPLETED, ERRORS, GONE, HISTOGRAM, TOOK_NS
from .service import Premises


class ProtocolService:
    """WORKER. Serves kind `protocol`."""

    def __init__(self, premises: Premises) -> None:
        self._target = premises.station.app.target
        self._cells = premises.station.rows[0].cells
        self._crowd = premises.crowd
        self._pulse = premises.pulse
        self._complaints = premises.complaints
        self._loop = premises.loop
        self._classes: dict[type, type] = {}  # of the application, and the subclass that tells us
        # By id() of the protocol, which its transport keeps alive meanwhile: the transport, and when it began.
        self._held: dict[int, tuple[asyncio.Transport, int]] = {}
        self._faulty: set[int] = set()  # whose code has raised

    def protocol(self, _listener: Listener) -> asyncio.BaseProtocol:
        """The application's object for the next connection."""
        protocol: asyncio.BaseProtocol = self._target()
        own = type(protocol)
        protocol.__class__ = self._classes.get(own) or self._observed(own)
        return protocol

    async def begin(self) -> None:
        """Nothing is needed."""

    def retire(self, *, stopping: bool) -> None:
        """There is no way to tell a protocol; it may end in its own time, up to the graceful timeout."""

    @property
    def busy(self) -> int:
        """Nothing runs without a connection."""
        return 0

    def cut(self) -> None:
        """The crowd cuts the connections, and that ends the protocols."""

    async def end(self, timeout_s: float) -> None:
        """Nothing is needed."""

    def _observed(self, own: type) -> type:
        """Make the subclass of an application's class."""
        service, pulse = self, self._pulse
        made, lost = own.connection_made, own.connection_lost  # type: ignore[attr-defined]

        def connection_made(self: Any, transport: Any) -> None:
            service._came(self, transport)
            try:
                made(self, transport)
            except Exception as error:  # noqa: BLE001 - the border of the application
                service._failed(self, error)

        def connection_lost(self: Any, error: Exception | None) -> None:
            service._left(self, error)
            lost(self, error)

        members: dict[str, Any] = {
            "__slots__": (),
            "__module__": own.__module__,
            "__qualname__": own.__qualname__,
            "connection_made": connection_made,
            "connection_lost": connection_lost,
        }
        if data_received := getattr(own, "data_received", None):

            def count(self: Any, data: bytes) -> None:
                if not pulse.on:
                    pulse.begin()
                pulse.bytes_in += len(data)
                try:
                    data_received(self, data)
                except Exception as error:  # noqa: BLE001 - the border of the application
                    service._failed(self, error)

            members["data_received"] = count
        observed = type(own.__name__, (own,), members)
        self._classes[own] = observed
        return observed

    def _came(self, protocol: Any, transport: asyncio.Transport) -> None:
        self._held[id(protocol)] = transport, monotonic_ns()
        self._crowd.join(transport)

    def _left(self, protocol: Any, error: Exception | None) -> None:
        key = id(protocol)
        transport, since_ns = self._held.pop(key)
        took_ns = monotonic_ns() - since_ns
        cells = self._cells
        cells[HISTOGRAM + array_index(took_ns)] += 1
        cells[TOOK_NS] += took_ns
        if key in self._faulty:
            self._faulty.remove(key)
            cells[ERRORS] += 1
        else:
            cells[COMPLETED if error is None else GONE] += 1
        self._crowd.leave(transport)

    def _failed(self, protocol: Any, error: Exception) -> None:
        """The application's code raised: the connection ends, as it would without us."""
        transport, _ = self._held[id(protocol)]
        self._faulty.add(id(protocol))
        self._complaints.add(error, str(transport.get_extra_info("peername")))
        transport.abort()
