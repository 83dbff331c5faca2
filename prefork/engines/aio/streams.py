"""WORKER. Coroutine handlers `async def handle(reader, writer)`, as `asyncio.start_server` runs them.

The reader and the writer are asyncio's own. Three things are added. A handler's return closes the connection. A close
with unread input lingers, so that the client can read what was written. And a wait for the client, to send or to read,
may last for --idle-timeout, which raises TimeoutError in the handler: a sweep looks from time to time whether a
connection still waits for the same thing, so that a wait costs nothing (a deadline of its own would: measured, 5 of 55
us a connection).
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import Any

from prefork.core.address import format_sockaddr
from prefork.core.listener import Listener
from prefork.engines.aio.service import Premises
from prefork.engines.aio.stream_connection import StreamConnection
from prefork.engines.aio.tasks import stack_of
from prefork.status.scoreboard import mark

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
