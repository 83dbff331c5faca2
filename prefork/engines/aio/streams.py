"""WORKER. Coroutine handlers `async def handle(reader, writer)`, as `asyncio.start_server` runs them.

The reader and the writer are asyncio's own. Three things are added. A handler's return closes the connection. A close
with unread input lingers, so that the client can read what was written (engines/linger.py). And a wait for the client,
to send or to read, may last for --idle-timeout, which raises TimeoutError in the handler. For that, a sweep checks a
few times in each --idle-timeout whether a connection still waits for the same thing, so a wait itself costs nothing (a
deadline for each wait would: measured, 5 of 55 us a connection).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from functools import partial
from time import monotonic_ns
from typing import Any

from prefork.core.address import format_sockaddr
from prefork.core.listener import Listener
from prefork.engines.aio.connections import has_unread_input
from prefork.engines.aio.heartbeat import Heartbeat
from prefork.engines.aio.service import LoopContext
from prefork.engines.aio.tasks import stack_of
from prefork.engines.linger import LINGER_S, LingeringTransport, cut, end_sending
from prefork.engines.peer import HttpHint, peer_of
from prefork.engines.request_log import count_unit
from prefork.engines.timers import NEVER
from prefork.runtime.forks import OURS
from prefork.status.scoreboard import BEGAN, COMPLETED, ERRORS, GONE, IDLE_CLOSED, TOO_LONG, row_text

_LIMIT = 65536  # bytes of a line; the default of asyncio.start_server
_LINGER_NS = round(LINGER_S * 1e9)
_NO_PEER = row_text("")
_SWEEPS = 8  # in one --idle-timeout: it is kept to a quarter, as beginning and end are seen so late


class StreamConnection(asyncio.StreamReaderProtocol):
    """WORKER. One connection of a coroutine handler.

    Of asyncio's own attributes it uses `_transport`, `_paused` (the client has to read before drain() goes on) and the
    reader's `_waiter` (there is one while a coroutine waits for data), `_buffer` (bytes that the handler has not read)
    and `_paused` (the buffer is full, so the rest stays in the kernel). Nothing public says what a handler waits for.
    """

    _stream_reader: asyncio.StreamReader | None
    _transport: asyncio.Transport | None
    _paused: bool

    def __init__(self, service: StreamsService, peer_text: bytes) -> None:
        self._reader = _Reader(_LIMIT, service.loop)
        super().__init__(self._reader, service.handle, service.loop)
        self._service = service
        self._heartbeat = service.heartbeat
        self._serving: asyncio.Task[None] | None = None
        self.since_ns = monotonic_ns()
        self._works_since_ns = self.since_ns  # see slow(); 0 = not known
        self._peer_text = peer_text  # for the scoreboard
        self._lost = False
        self._text = ""  # the client's address, once the connection is lost
        self._silent: TimeoutError | None = None  # --idle-timeout has passed
        self._waits_for: Any = None  # what it waited for at the last sweep
        self._waits_since_ns = 0
        self._received = False  # the client has sent something
        self.lingering: LingeringTransport | None = None  # set while the close lingers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. As asyncio's own, without its doubts (measured: 1 of 50 us)."""
        service, reader = self._service, self._reader
        service.connections.join(self)
        self._transport = transport  # type: ignore[assignment]
        reader.set_transport(transport)
        self._over_ssl = transport.get_extra_info("sslcontext") is not None
        writer = _Writer(transport, self, reader, service.loop)  # type: ignore[arg-type]
        writer.heartbeat = service.heartbeat
        self._stream_writer = writer
        # The loop's task factory is the application's, and may begin here and now.
        self._serving = asyncio.Task(self._serve(reader, writer), loop=service.loop)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        heartbeat = self._heartbeat
        if not heartbeat.awake:
            heartbeat.wake()
        heartbeat.bytes_in += len(data)
        self._received = True
        if self.lingering is not None:
            self.lingering.data_received(data)
            return
        if self._reader._waiter is not None:  # type: ignore[attr-defined]
            self._works_since_ns = 0
        self._reader.feed_data(data)  # what asyncio's own does, by way of a weak reference

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        return bool(super().eof_received()) and self.lingering is None

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._lost = True
        if self._serving is not None:
            self._text = self.text  # the handler may go on for long, and asyncio forgets the transport
        if self.lingering is not None:
            self.lingering.connection_lost(exc)
        elif self._transport is not None:
            end_sending(self._transport)
        super().connection_lost(exc or self._silent)
        if self._serving is None:
            self._service.connections.leave(self)

    def end_old_wait(self, late_ns: int) -> None:
        """End a wait for the client that began before `late_ns`."""
        waits_for = self._awaited()
        if waits_for is None or waits_for != self._waits_for:
            self._waits_for = waits_for
            self._waits_since_ns = monotonic_ns()
        elif self._waits_since_ns < late_ns:
            self._silent = TimeoutError("the client was silent for --idle-timeout")
            if isinstance(waits_for, int):
                self.abort()
            elif not waits_for.done():
                waits_for.set_exception(self._silent)  # of this wait only: a handler may go on, and wait anew

    def abort(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        if self._transport is not None:
            cut(self._transport)

    def linger(self, *, sends: bool = False) -> bool:
        """Begin a lingering close if a plain one would reset the connection; return whether it lingers.

        `sends`: it is known that the client still sends.
        """
        transport = self._transport
        if self.lingering is not None:
            return True
        if transport is None or self._over_ssl or transport.is_closing():
            return False
        reader: Any = self._reader
        # To ask the kernel at every close would make a connection 65 us instead of 50, because of what the loop reads.
        if not (sends or reader._buffer or reader._paused or (not self._received and has_unread_input(transport))):
            return False
        self.lingering = LingeringTransport(transport, self._service.timers, _unsent_ns)
        return True

    @property
    def task(self) -> asyncio.Task[None] | None:
        """Return the task of the handler, while it runs."""
        return self._serving

    @property
    def works(self) -> bool:
        """Return whether the handler runs, and does not wait for the client."""
        return self._serving is not None and self._awaited() is None

    def slow(self, now_ns: int, slow_ns: int) -> int:
        """Return for how long (ns) the handler has not waited for the client, once that is too long, and only once.

        Called with each heartbeat.
        """
        if not self.works:
            self._works_since_ns = 0
        elif not self._works_since_ns:
            self._works_since_ns = now_ns
        elif (worked_ns := now_ns - self._works_since_ns) >= slow_ns:
            self._works_since_ns = NEVER
            return worked_ns
        return 0

    @property
    def text(self) -> str:
        """Return the client's address."""
        return self._text or peer_of(self._transport)

    def cancel(self) -> None:
        """Cancel the handler."""
        if self._serving is not None:
            self._serving.cancel()

    def _awaited(self) -> Any:
        """Return what the connection waits for: the client to read (bytes left), to send (a future), or nothing."""
        transport = self._transport
        if transport is None:
            return None
        if self._paused or self.lingering is not None or transport.is_closing():
            return transport.get_write_buffer_size()
        return self._reader._waiter  # type: ignore[attr-defined]

    async def _serve(self, reader: _Reader, writer: _Writer) -> None:
        service, cells = self._service, self._service.cells
        outcome = COMPLETED
        row = service.row
        row.memory[row.latest_place] = self._peer_text  # named in the report if the worker dies now
        self.since_ns = monotonic_ns()  # not before: other connections of the loop may come first
        cells[BEGAN] = self.since_ns
        try:
            await service.handle(reader, writer)
        except BaseException as error:  # noqa: BLE001 - the handler border
            if OURS.forked:
                OURS.end(error)
            outcome = self._judge(error, writer)
        counted = IDLE_CLOSED if self._silent and outcome != ERRORS else outcome
        count_unit(row, counted, monotonic_ns() - self.since_ns - reader.waited_ns - writer.waited_ns)
        self._serving = None
        if cells[BEGAN] == self.since_ns:
            cells[BEGAN] = 0
        if self._lost:
            service.connections.leave(self)
        elif not writer.is_closing():
            if outcome == TOO_LONG:
                self.linger(sends=True)
            writer.close()

    def _judge(self, error: BaseException, writer: asyncio.StreamWriter) -> int:
        """Return as what a handler's exception is counted, the client's fault or the application's; log the latter."""
        outcome = self._outcome(error)
        if outcome == ERRORS:
            self._service.errors.add(error, peer_of(writer.transport))
        return outcome

    def _outcome(self, error: BaseException) -> int:
        if isinstance(error, BaseExceptionGroup):  # of a TaskGroup: the client's fault if all of it is
            outcomes = [self._outcome(each) for each in error.exceptions]
            return ERRORS if ERRORS in outcomes else outcomes[0]
        if isinstance(error, asyncio.CancelledError | asyncio.IncompleteReadError):
            return GONE
        if self._silent and isinstance(error, TimeoutError):
            return IDLE_CLOSED
        if self._lost and (isinstance(error, OSError) or _is_closed(error)):
            return GONE
        if isinstance(error, asyncio.LimitOverrunError) or isinstance(error.__context__, asyncio.LimitOverrunError):
            return TOO_LONG
        return ERRORS


class FirstLook(StreamConnection):
    """WORKER. A StreamConnection whose first bytes are looked at."""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._received:
            self._service.hint.look(data)
        StreamConnection.data_received(self, data)


class _Reader(asyncio.StreamReader):
    """WORKER. Counts how long the handler waited for the client to send. All its methods wait in `_wait_for_data`."""

    waited_ns = 0

    async def _wait_for_data(self, func_name: str) -> None:
        began_ns = monotonic_ns()
        await super()._wait_for_data(func_name)  # type: ignore[misc]
        self.waited_ns += monotonic_ns() - began_ns


class _Writer(asyncio.StreamWriter):
    """WORKER. Counts the bytes written and the waits for the client to read, and lingers at the close if need be."""

    _protocol: StreamConnection
    heartbeat: Heartbeat
    waited_ns = 0

    async def drain(self) -> None:
        """See asyncio.StreamWriter."""
        if not self._protocol._paused:
            await super().drain()
            return
        began_ns = monotonic_ns()
        await super().drain()
        self.waited_ns += monotonic_ns() - began_ns

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.StreamWriter."""
        if self._protocol.lingering is None:  # else it is closed; asyncio's own writer takes bytes then, too
            super().write(data)
            self.heartbeat.bytes_out += len(data)

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """See asyncio.StreamWriter."""
        if self._protocol.lingering is None:
            pieces = list(data)
            super().writelines(pieces)
            self.heartbeat.bytes_out += sum(map(len, pieces))

    def close(self) -> None:
        """See asyncio.StreamWriter."""
        if not self._protocol.linger():
            super().close()

    def is_closing(self) -> bool:
        """See asyncio.StreamWriter."""
        return self._protocol.lingering is not None or super().is_closing()


def _is_closed(error: BaseException) -> bool:
    """Return whether uvloop raised it for a write to a closed transport; asyncio's own loop raises nothing."""
    return isinstance(error, RuntimeError) and "handler is closed" in str(error)


def _unsent_ns(now_ns: int) -> int:
    """Return when to look again whether all bytes are sent; --idle-timeout limits the time for that."""
    return now_ns + _LINGER_NS


class StreamsService:
    """WORKER. Serves kind `streams`."""

    takes_proxy_header = False

    def __init__(self, context: LoopContext) -> None:
        worker = context.worker
        self._context = context
        self.handle = worker.app.target
        self.row = worker.rows[0]
        self.cells = worker.rows[0].cells
        self.connections = context.connections
        self.heartbeat = context.heartbeat
        self.timers = context.timers
        self.errors = context.errors
        self.loop = context.loop
        self.hint = HttpHint(worker)
        self._idle_s = worker.config.idle_timeout_s
        self._link = worker.link
        self._slow_ns = round(worker.config.slow_s * 1e9)
        context.heartbeat.oldest = self._oldest
        if self._slow_ns:
            context.heartbeat.on_beat.append(self._report_slow)

    def accept(self, sock: socket.socket, listener: Listener, sockaddr: Any, _queue_ms: int | None) -> None:
        """Serve a connection that was accepted."""
        peer = format_sockaddr(listener.sock.family, sockaddr)
        self._context.adopt(sock, partial(self._connection, row_text(peer)), peer)

    def protocol(self, _listener: Listener) -> asyncio.BaseProtocol:
        """Return the protocol for a connection that the loop itself has accepted."""
        return self._connection(_NO_PEER)

    def _connection(self, peer_text: bytes) -> StreamConnection:
        return (FirstLook if self.hint.looks > 0 else StreamConnection)(self, peer_text)

    async def begin(self) -> None:
        """Begin to look for silent clients."""
        self._sweep()

    def retire(self, *, stopping: bool) -> None:
        """Do nothing: a handler gets no notice, and may run until the graceful timeout."""

    @property
    def busy(self) -> int:
        """Nothing: a connection stays in the set until its handler has returned."""
        return 0

    def names(self) -> dict[asyncio.Task[None], str]:
        """Return the client of each task."""
        return {connection.task: connection.text for connection in self._open() if connection.task is not None}

    def cut(self) -> None:
        """Cancel the handlers, so that their `finally` clauses run."""
        for connection in list(self._open()):
            connection.cancel()

    async def end(self, timeout_s: float) -> None:
        """Nothing: a handler has no shutdown."""

    def _open(self) -> Iterator[StreamConnection]:
        return (member for member in self.connections.members if isinstance(member, StreamConnection))

    def _report_slow(self) -> None:
        """Tell the master which handlers have become slow, and the stack of the slowest. Called with each heartbeat."""
        now_ns = monotonic_ns()
        found = [(each, took_ns) for each in self._open() if (took_ns := each.slow(now_ns, self._slow_ns))]
        if found:
            connection, took_ns = max(found, key=lambda each: each[1])
            assert connection.task is not None  # it works
            self._link.slow(connection.text, took_ns / 1e9, stack_of(connection.task), also=len(found) - 1)

    def _oldest(self) -> tuple[int, bytes]:
        """Return when the oldest handler began that does not wait for its client, and its text."""
        oldest = min((each for each in self._open() if each.works), key=lambda each: each.since_ns, default=None)
        return (0, b"") if oldest is None else (oldest.since_ns, row_text(oldest.text))

    def _sweep(self) -> None:
        late_ns = monotonic_ns() - round(self._idle_s * 1e9)
        for connection in list(self._open()):
            connection.end_old_wait(late_ns)
        self.loop.call_later(self._idle_s / _SWEEPS, self._sweep)


SERVICE = StreamsService
