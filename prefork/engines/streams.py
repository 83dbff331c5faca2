"""WORKER. Coroutine handlers `async def handle(reader, writer)`, as `asyncio.start_server` runs them.

The reader and the writer are asyncio's own. Two things are added. A handler's return closes the connection. And a wait
for the client, to read or to drain, may last for --idle-timeout, which raises TimeoutError in the handler: a sweep
looks from time to time whether a connection still waits for the same thing, so that a wait costs nothing (a deadline
of its own would: measured, 5 of 55 us a connection).
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import Any

from ..errors import CLIENT_GONE
from ..histogram import array_index
from ..listener import Listener
from ..scoreboard import COMPLETED, ERRORS, GONE, HISTOGRAM, IDLE_CLOSED, TOOK_NS
from .service import Premises

_LIMIT = 65536  # bytes of a line; the default of asyncio.start_server
_SWEEPS = 8  # in one --idle-timeout: it is kept to an eighth


class StreamsService:
    """WORKER. Serves kind `streams`."""

    def __init__(self, premises: Premises) -> None:
        self.handle = premises.station.app.target
        self.cells = premises.station.rows[0].cells
        self.crowd = premises.crowd
        self.pulse = premises.pulse
        self.complaints = premises.complaints
        self.loop = premises.loop
        self._idle_s = premises.station.config.idle_timeout_s

    def protocol(self, _listener: Listener) -> asyncio.BaseProtocol:
        """What serves the next connection."""
        return StreamConnection(self)

    async def begin(self) -> None:
        """Begin to look for silent clients."""
        self._sweep()

    def retire(self, *, stopping: bool) -> None:
        """There is no way to tell a handler; it may go on up to the graceful timeout."""

    @property
    def busy(self) -> int:
        """Nothing runs without a connection."""
        return 0

    def cut(self) -> None:
        """Cancel the handlers, so that they can put in order what they leave."""
        for connection in list(self.crowd.members):
            if isinstance(connection, StreamConnection):
                connection.cancel()

    async def end(self, timeout_s: float) -> None:
        """Nothing is needed."""

    def _sweep(self) -> None:
        late_ns = monotonic_ns() - round(self._idle_s * 1e9)
        for connection in list(self.crowd.members):
            if isinstance(connection, StreamConnection):
                connection.look(late_ns)
        self.loop.call_later(self._idle_s / _SWEEPS, self._sweep)


class StreamConnection(asyncio.StreamReaderProtocol):
    """WORKER. One connection."""

    def __init__(self, service: StreamsService) -> None:
        super().__init__(asyncio.StreamReader(_LIMIT, service.loop), self._connected, service.loop)
        self._service = service
        self._serving: asyncio.Task[None] | None = None
        self._since_ns = monotonic_ns()
        self._lost = False
        self._silent = False  # --idle-timeout has passed
        self._waits_for: Any = None  # what it waited for when it was looked at last
        self._waits_since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._service.crowd.join(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        pulse = self._service.pulse
        if not pulse.on:
            pulse.begin()
        pulse.bytes_in += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._lost = True
        super().connection_lost(exc)
        if self._serving is None:
            self._service.crowd.leave(self)

    def look(self, late_ns: int) -> None:
        """End a wait for the client that is older than that."""
        waits_for = self._awaited()
        if waits_for is None or waits_for is not self._waits_for:
            self._waits_for = waits_for
            self._waits_since_ns = monotonic_ns()
        elif self._waits_since_ns < late_ns:
            self._silent = True
            if waits_for is _READ or self._stream_reader is None:  # type: ignore[attr-defined] # asyncio's own
                self.abort()
            else:
                self._stream_reader.set_exception(TimeoutError("the client was silent for --idle-timeout"))  # type: ignore[attr-defined]

    def abort(self) -> None:
        """Cut the connection."""
        transport: asyncio.Transport | None = self._transport  # type: ignore[attr-defined] # asyncio's own
        if transport is not None:
            transport.abort()

    def cancel(self) -> None:
        """Cancel the handler."""
        if self._serving is not None:
            self._serving.cancel()

    def _awaited(self) -> Any:
        """What the connection waits for: that its client reads, data (then a future that changes), or nothing."""
        if self._paused or self._serving is None:  # type: ignore[attr-defined] # asyncio's own: the buffer is full
            return _READ
        reader = self._stream_reader  # type: ignore[attr-defined]
        return reader._waiter if reader is not None else None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving = self._service.loop.create_task(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service, cells = self._service, self._service.cells
        fate = COMPLETED
        try:
            await service.handle(reader, writer)
        except BaseException as error:  # noqa: BLE001 - the handler border
            fate = self._judge(error, writer)
        took_ns = monotonic_ns() - self._since_ns
        cells[IDLE_CLOSED if self._silent else fate] += 1
        cells[HISTOGRAM + array_index(took_ns)] += 1
        cells[TOOK_NS] += took_ns
        self._serving = None
        if self._lost:
            service.crowd.leave(self)
        else:
            writer.close()

    def _judge(self, error: BaseException, writer: asyncio.StreamWriter) -> int:
        """What a handler's end by an exception is counted as: the client's fault, or the application's."""
        if isinstance(error, asyncio.CancelledError | asyncio.IncompleteReadError):
            return GONE
        if isinstance(error, OSError) and (error.errno in CLIENT_GONE or self._silent or self._lost):
            return GONE
        self._service.complaints.add(error, str(writer.get_extra_info("peername")))
        return ERRORS


_READ = object()  # what is waited for when the client has to read
