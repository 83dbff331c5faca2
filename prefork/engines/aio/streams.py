"""WORKER. Coroutine handlers `async def handle(reader, writer)`, as `asyncio.start_server` runs them.

The reader and the writer are asyncio's own. Three things are added. A handler's return closes the connection. A close
with unread input lingers, so that the client can read what was written. And a wait for the client, to send or to read,
may last for --idle-timeout, which raises TimeoutError in the handler: a sweep looks from time to time whether a
connection still waits for the same thing, so that a wait costs nothing (a deadline of its own would: measured, 5 of 55
us a connection).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic_ns
from typing import Any

from prefork.core.address import format_sockaddr
from prefork.core.listener import Listener
from prefork.engines.aio.heartbeat import Pulse
from prefork.engines.aio.service import Premises
from prefork.engines.aio.tasks import stack_of
from prefork.engines.asgi.phases import LINGER_BYTES, sends_on
from prefork.engines.linger import LINGER_S
from prefork.engines.peer import peer_of
from prefork.engines.timers import NEVER
from prefork.status.histogram import array_index
from prefork.status.scoreboard import BEGAN, COMPLETED, ERRORS, GONE, HISTOGRAM, IDLE_CLOSED, TOO_LONG, TOOK_NS, mark

# --- One connection of a coroutine handler: asyncio's own reader and writer, and what is added to them.
#
# A close with unread input lingers, so that the client can read what was written (see parting.py). What a handler waits
# for is known without a word of it, so that a wait for the client can be ended (streams.py).


_LIMIT = 65536  # bytes of a line; the default of asyncio.start_server


class StreamConnection(asyncio.StreamReaderProtocol):
    """WORKER. One connection.

    Of asyncio's own attributes it uses `_transport`, `_paused` (the client has to read before drain() goes on) and the
    reader's `_waiter` (there is one while a coroutine waits for data), `_buffer` (what nobody has taken) and `_paused`
    (that is so much that the rest stays with the kernel): nothing public tells what a handler waits for, and leaves.
    """

    _stream_reader: asyncio.StreamReader | None
    _transport: asyncio.Transport | None
    _paused: bool

    def __init__(self, service: StreamsService, marked: bytes) -> None:
        self._reader = asyncio.StreamReader(_LIMIT, service.loop)
        super().__init__(self._reader, service.handle, service.loop)
        self._service = service
        self._pulse = service.pulse
        self._serving: asyncio.Task[None] | None = None
        self.since_ns = monotonic_ns()
        self._works_since_ns = self.since_ns  # see slow(); 0 = not known
        self._mark = marked  # for the scoreboard: whom it serves
        self._lost = False
        self._text = ""  # once it is lost: whose it was
        self._silent: TimeoutError | None = None  # --idle-timeout has passed
        self._waits_for: Any = None  # what it waited for when it was looked at last
        self._waits_since_ns = 0
        self.parting: asyncio.TimerHandle | None = None  # set while the close lingers
        self._left = LINGER_BYTES  # that are still read then
        self._heard = False  # the client has sent something

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. As asyncio's own, without its doubts (measured: 1 of 50 us)."""
        service, reader = self._service, self._reader
        service.crowd.join(self)
        self._transport = transport  # type: ignore[assignment]
        reader.set_transport(transport)
        self._over_ssl = transport.get_extra_info("sslcontext") is not None
        self._stream_writer = writer = _Writer(transport, self, reader, service.loop)  # type: ignore[arg-type]
        writer.pulse = service.pulse
        # The loop's task factory is the application's, and may begin here and now.
        self._serving = asyncio.Task(self._serve(reader, writer), loop=service.loop)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        pulse = self._pulse
        if not pulse.on:
            pulse.begin()
        pulse.bytes_in += len(data)
        self._heard = True
        if self.parting is None:
            if self._reader._waiter is not None:  # type: ignore[attr-defined]
                self._works_since_ns = 0
            self._reader.feed_data(data)  # what asyncio's own does, by way of a weak reference
            return
        self._left -= len(data)
        if self._left < 0:
            self.abort()

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        return bool(super().eof_received()) and self.parting is None

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._lost = True
        if self._serving is not None:
            self._text = self.text  # the handler may go on for long, and asyncio forgets the transport
        if self.parting is not None:
            self.parting.cancel()
        super().connection_lost(exc or self._silent)
        if self._serving is None:
            self._service.crowd.leave(self)

    def look(self, late_ns: int) -> None:
        """End a wait for the client that is older than that."""
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
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def linger(self, *, sends: bool = False) -> bool:
        """Begin the end in place of a close that would reset the connection, as there is unread input; else False.

        `sends`: the client is known to be in the midst of something.
        """
        transport = self._transport
        if self.parting is not None:
            return True
        if transport is None or self._over_ssl or transport.is_closing():
            return False
        reader: Any = self._reader
        if not (sends or reader._buffer or reader._paused or (not self._heard and sends_on(transport))):
            return False  # to ask the kernel at every close: 65 us a connection instead of 50, for what the loop reads
        self.parting = self._service.loop.call_later(LINGER_S, self._end_lingering)
        transport.write_eof()
        transport.resume_reading()
        return True

    def _end_lingering(self) -> None:
        """The client had its time, from when the last byte had left; until then --idle-timeout holds."""
        if self._transport is not None and self._transport.get_write_buffer_size():
            self.parting = self._service.loop.call_later(LINGER_S, self._end_lingering)
        else:
            self.abort()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """Of the handler, while it runs."""
        return self._serving

    @property
    def works(self) -> bool:
        """Its handler runs, and does not wait for the client."""
        return self._serving is not None and self._awaited() is None

    def slow(self, now_ns: int, slow_ns: int) -> int:
        """With each beat: for how long (ns) its handler has not waited for the client, once when that gets too long."""
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
        """Whose connection it is: for people."""
        return self._text or peer_of(self._transport)

    def cancel(self) -> None:
        """Cancel the handler."""
        if self._serving is not None:
            self._serving.cancel()

    def _awaited(self) -> Any:
        """What the connection waits for: that its client reads so many bytes, or sends some (a future), or nothing."""
        transport = self._transport
        if transport is None:
            return None
        if self._paused or self.parting is not None or transport.is_closing():
            return transport.get_write_buffer_size()
        return self._reader._waiter  # type: ignore[attr-defined]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service, cells = self._service, self._service.cells
        fate = COMPLETED
        row = service.row
        row.memory[row.latest_place] = self._mark  # who is to be named if this is the end of the worker
        cells[BEGAN] = self.since_ns
        try:
            await service.handle(reader, writer)
        except BaseException as error:  # noqa: BLE001 - the handler border
            fate = self._judge(error, writer)
        took_ns = monotonic_ns() - self.since_ns
        cells[IDLE_CLOSED if self._silent and fate != ERRORS else fate] += 1
        cells[HISTOGRAM + array_index(took_ns)] += 1
        cells[TOOK_NS] += took_ns
        self._serving = None
        if cells[BEGAN] == self.since_ns:
            cells[BEGAN] = 0
        if self._lost:
            service.crowd.leave(self)
        elif not writer.is_closing():
            if fate == TOO_LONG:
                self.linger(sends=True)
            writer.close()

    def _judge(self, error: BaseException, writer: asyncio.StreamWriter) -> int:
        """What a handler's end by an exception is counted as: the client's fault, or the application's."""
        fate = self._fate(error)
        if fate == ERRORS:
            self._service.complaints.add(error, peer_of(writer.transport))
        return fate

    def _fate(self, error: BaseException) -> int:
        if isinstance(error, BaseExceptionGroup):  # of a TaskGroup: the client's fault if all of it is
            fates = [self._fate(each) for each in error.exceptions]
            return ERRORS if ERRORS in fates else fates[0]
        if isinstance(error, asyncio.CancelledError | asyncio.IncompleteReadError):
            return GONE
        if self._silent and isinstance(error, TimeoutError):
            return IDLE_CLOSED
        if self._lost and (isinstance(error, OSError) or _is_closed(error)):
            return GONE
        if isinstance(error, asyncio.LimitOverrunError) or isinstance(error.__context__, asyncio.LimitOverrunError):
            return TOO_LONG
        return ERRORS


class _Writer(asyncio.StreamWriter):
    """WORKER. Counts what is written, and closes so that the client can read it."""

    _protocol: StreamConnection
    pulse: Pulse

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.StreamWriter."""
        if self._protocol.parting is None:  # else it is closed: asyncio's own loop takes that, too
            super().write(data)
            self.pulse.bytes_out += len(data)

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """See asyncio.StreamWriter."""
        if self._protocol.parting is None:
            pieces = list(data)
            super().writelines(pieces)
            self.pulse.bytes_out += sum(map(len, pieces))

    def close(self) -> None:
        """See asyncio.StreamWriter."""
        if not self._protocol.linger():
            super().close()

    def is_closing(self) -> bool:
        """See asyncio.StreamWriter."""
        return self._protocol.parting is not None or super().is_closing()


def _is_closed(error: BaseException) -> bool:
    """Whether it is what uvloop raises on a write to a transport that is closed; asyncio's own loop takes it."""
    return isinstance(error, RuntimeError) and "handler is closed" in str(error)


_NOBODY = mark("")
_SWEEPS = 8  # in one --idle-timeout: it is kept to a quarter, as beginning and end are seen so late


class StreamsService:
    """WORKER. Serves kind `streams`."""

    def __init__(self, premises: Premises) -> None:
        self.handle = premises.station.app.target
        self.row = premises.station.rows[0]
        self.cells = premises.station.rows[0].cells
        self.crowd = premises.crowd
        self.pulse = premises.pulse
        self.complaints = premises.complaints
        self.loop = premises.loop
        self._idle_s = premises.station.config.idle_timeout_s
        premises.pulse.oldest = self._oldest
        self._life = premises.station.life
        self._slow_ns = round(premises.station.config.slow_s * 1e9)
        if self._slow_ns:
            premises.pulse.beats.append(self._tell_slow)

    def protocol(self, listener: Listener, sockaddr: Any = None) -> asyncio.BaseProtocol:
        """What serves the next connection. `sockaddr`: from there, if that is known without asking."""
        marked = _NOBODY if sockaddr is None else mark(format_sockaddr(listener.sock.family, sockaddr))
        return StreamConnection(self, marked)

    async def begin(self) -> None:
        """Begin to look for silent clients."""
        self._sweep()

    def retire(self, *, stopping: bool) -> None:
        """There is no way to tell a handler; it may go on up to the graceful timeout."""

    @property
    def busy(self) -> int:
        """Nothing runs without a connection."""
        return 0

    def names(self) -> dict[asyncio.Task[None], str]:
        """Which task serves whom."""
        members = [member for member in self.crowd.members if isinstance(member, StreamConnection)]
        return {member.task: member.text for member in members if member.task is not None}

    def cut(self) -> None:
        """Cancel the handlers, so that they can put in order what they leave."""
        for connection in list(self.crowd.members):
            if isinstance(connection, StreamConnection):
                connection.cancel()

    async def end(self, timeout_s: float) -> None:
        """Nothing is needed."""

    def _tell_slow(self) -> None:
        """With each beat: tell the master whose handlers have become slow, of one with what it awaits."""
        now_ns = monotonic_ns()
        members = (member for member in self.crowd.members if isinstance(member, StreamConnection))
        found = [(each, took_ns) for each in members if (took_ns := each.slow(now_ns, self._slow_ns))]
        if found:
            connection, took_ns = max(found, key=lambda each: each[1])
            assert connection.task is not None  # it works
            self._life.slow(connection.text, took_ns / 1e9, stack_of(connection.task), also=len(found) - 1)

    def _oldest(self) -> tuple[int, bytes]:
        """Whose handler has begun first, of those that do not wait for their clients."""
        members = (member for member in self.crowd.members if isinstance(member, StreamConnection))
        oldest = min((member for member in members if member.works), key=lambda each: each.since_ns, default=None)
        return (0, b"") if oldest is None else (oldest.since_ns, mark(oldest.text))

    def _sweep(self) -> None:
        late_ns = monotonic_ns() - round(self._idle_s * 1e9)
        for connection in list(self.crowd.members):
            if isinstance(connection, StreamConnection):
                connection.look(late_ns)
        self.loop.call_later(self._idle_s / _SWEEPS, self._sweep)
