"""WORKER. The WSGI engine: one epoll loop that holds every HTTP connection of the worker; the application runs between.

A turn: wait; signals, results, new connections; what clients sent; those that have had their turn; deadlines.
With one thread the application runs inline, in the turn. With more it runs on a pool's threads, and its results come
back through an eventfd. Nothing else ever waits here, so that slow clients cost memory and no more.

The clients' clock stands still while the application runs inline: `now_ns` is the time of the turn less all that was
spent in calls, as nobody must lose a deadline to somebody else's request. For the same reason readiness is acted on
before deadlines are.
"""

from __future__ import annotations

import _socket
import os
import random
import select
import socket
import time
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, cast

from prefork.core.listener import Listener
from prefork.engines.accept import Balance, Entrance
from prefork.engines.context import Station
from prefork.engines.error_log import Complaints
from prefork.engines.http_context import HttpContext
from prefork.engines.peer import PeerFactory, note_wait
from prefork.engines.request_log import RequestLog
from prefork.engines.timers import NEVER, Deadlines
from prefork.engines.wsgi.app import WsgiApp, WsgiPeer
from prefork.engines.wsgi.connection import HttpConnection
from prefork.engines.wsgi.phases import Phase, PreHttp
from prefork.engines.wsgi.thread_pool import Pool
from prefork.status.scoreboard import ACCEPTED, BUSY_NS, BYTES_IN, BYTES_OUT, COMPLETED, HELD

_EVENTS = 256  # of one turn


class Reactor:
    """WORKER. Serves kind `wsgi`."""

    name = "reactor"

    def __init__(self, station: Station) -> None:
        config = station.config
        self._kind = station.app.kind
        self._life = station.life
        self._log = station.log
        self._graceful_s = config.graceful_timeout_s
        self._rows = station.rows
        self._cells = station.rows[0].cells  # counters of the loop itself; the pool's threads write their own
        self._most_clients = config.max_connections
        self._epoll = select.epoll()
        self._complaints = Complaints(station.log)
        self._tls = station.terms.tls
        self._proxied = config.proxy_protocol
        # The type below socket.socket has all that is needed (measured: 2 us less for a connection), but not for TLS.
        self._socket: type[socket.socket] = socket.socket if self._tls else cast("type[socket.socket]", _socket.socket)
        self._balance = Balance(station.board, station.group, station.nudge)
        self._phases: dict[int, Phase] = {}
        self._later: list[HttpConnection] = []  # that go on in the next turn
        self._pool: Pool[HttpConnection] | None = Pool(station.rows, self._failed) if config.threads > 1 else None
        self._entrance = Entrance(
            station.listeners,
            epoll=self._epoll,
            balance=self._balance,
            complaints=self._complaints,
            admit=self._admit,
            room=self._room,
            held=self._phases.__len__,
        )
        self._handlers: dict[int, Callable[[int, int], None]] = self._entrance.handlers()
        self._drains = all(listener.owned for listener in station.listeners)  # the accept queue is ours alone
        self._until_s = 0.0  # when what is still in flight is cut
        self._most = config.max_requests and config.max_requests + random.randint(0, config.max_requests_jitter)  # noqa: S311
        self.deadlines: Deadlines[Phase] = Deadlines()
        self.now_ns: int = monotonic_ns()
        self.bytes_in = self.bytes_out = 0  # of this turn
        self.row = None if self._pool else station.rows[0]
        self.context = HttpContext(config)
        self.log = RequestLog(station, self._complaints, self.context.trusted)
        self.app = WsgiApp(station, self.context, self.log)
        self.peers = PeerFactory(self.context.trusted, self.app.view)

    def run(self) -> None:
        """Serve until told to retire, finish what is in flight, return. Raises BootError if it cannot begin."""
        for fd in self._life.fds:
            self._handlers[fd] = self._handle_signals
            self._epoll.register(fd, select.EPOLLIN)
        if self._pool:
            self._handlers[self._pool.fd] = self._results
            self._epoll.register(self._pool.fd, select.EPOLLIN)
        self._life.ready(self._kind, self.name)  # before the first call of the application, which may end the process
        self._entrance.open()
        self._announce()
        while not self._life.retiring:
            self._turn()
        self._retire()

    def _turn(self) -> None:
        wait_s = self._wait_s()
        self._balance.sleeps()
        events = self._epoll.poll(wait_s, _EVENTS)
        self._balance.woke()
        now_ns = self.now_ns = self._clock_ns()
        self.context.tick()
        phases, ready = self._phases, []
        for fd, mask in events:
            phase = phases.get(fd)
            if phase is not None:
                ready.append((phase, mask))
            elif handler := self._handlers.get(fd):
                handler(fd, now_ns)
        for phase, mask in ready:
            phase.ready(mask)
        if self._later:
            later, self._later = self._later, []
            for connection in later:
                connection.go_on()
        if now_ns >= self.deadlines.next_ns():
            for late in self.deadlines.due(now_ns):
                late.expire()
        if self._entrance.look_ns != NEVER:
            self._entrance.tend(now_ns)
        self._flush()

    def _clock_ns(self) -> int:
        """Return the time on the clients' clock, which stands still while the application runs in the loop."""
        return monotonic_ns() - (0 if self._pool else self.app.busy_ns)

    def _wait_s(self) -> float:
        """Return how long to wait for events: until the next deadline."""
        if self._later:
            return 0.0
        until_ns = min(self.deadlines.next_ns(), self._entrance.look_ns)
        left_s = (until_ns - self._clock_ns()) / 1e9
        return max(0.0, min(left_s, self._until_s - time.monotonic() if self._until_s else 3600.0))

    def _flush(self) -> None:
        """Tell the scoreboard what this turn has moved (measured: one store a request each would cost 12 %)."""
        cells = self._cells
        if self.bytes_in or self.bytes_out:
            cells[BYTES_IN] += self.bytes_in
            cells[BYTES_OUT] += self.bytes_out
            self.bytes_in = self.bytes_out = 0
        if self.row is not None:
            cells[BUSY_NS] = self.app.busy_ns
        if self._most and sum(row.cells[COMPLETED] for row in self._rows) >= self._most:
            self._most = 0
            self._life.enough("max-requests")

    # --- connections

    def _admit(self, fd: int, sockaddr: Any, listener: Listener) -> None:
        """A connection was taken."""
        self._cells[ACCEPTED] += 1
        family = int(listener.sock.family)
        sock = self._socket(family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        queue_ms = note_wait(sock, family, self._cells)
        self._epoll.register(fd, select.EPOLLIN)
        peer = self.peers.of(listener, sockaddr)
        peer.queue_ms = queue_ms
        if not self._proxied:
            self.start_http(sock, peer)
        elif peer.trusted:
            self.hold(PreHttp(self, sock, peer, listener))
        else:
            self.log.connection_failed(PermissionError("it may not send a PROXY header; see --trusted-proxies"), peer)
            sock.close()
        self._announce()

    def start_http(self, sock: socket.socket, peer: WsgiPeer) -> None:
        """From here on it is HTTP, under TLS if we have a certificate."""
        fd = sock.fileno()
        if before := self._phases.pop(fd, None):
            self.deadlines.forget(before)
        if self._tls:
            try:
                sock = self._tls.wrap(sock)
            except OSError as error:  # the client left before it was accepted
                self.log.connection_failed(error, peer)
                sock.close()
                return
        self.hold(HttpConnection(self, sock, peer))

    def hold(self, phase: Phase) -> None:
        """Host this phase from now on, in the place of one that had its descriptor."""
        self._phases[phase.fd] = phase
        self.deadlines.watch(phase)

    def forget(self, phase: Phase) -> None:
        """Host it no longer. Its socket is about to be closed, which takes it out of the epoll."""
        del self._phases[phase.fd]
        self.deadlines.forget(phase)
        self._announce()

    def watch(self, phase: Phase, mask: int) -> None:
        """Report these events of its descriptor from now on."""
        self._epoll.modify(phase.fd, mask)

    def go_on_later(self, connection: HttpConnection) -> None:
        """Call its `go_on` in the next turn, when the others have had theirs."""
        self._later.append(connection)

    def hand_out(self, connection: HttpConnection) -> None:
        """Have a thread call its `run`, and call its `resume` with the result."""
        assert self._pool is not None
        self._pool.put(connection)
        if self._pool.full:
            self._announce()

    def _results(self, _fd: int, _now_ns: int) -> None:
        assert self._pool is not None
        was_full = self._pool.full
        for connection, part in self._pool.take():
            connection.resume(part)
        if was_full:
            self._announce()

    def _room(self) -> bool:
        return len(self._phases) < self._most_clients and not (self._pool and self._pool.full)

    def _announce(self) -> None:
        held = len(self._phases)
        self._cells[HELD] = held
        self._balance.publish(held, able=not self.context.draining and self._room())

    # --- the end

    def _handle_signals(self, fd: int, _now_ns: int) -> None:
        self._life.attend(fd)

    def _retire(self) -> None:
        """Take no more; let everyone have a last response that says so, for at most the graceful timeout."""
        self.context.drain()
        self._entrance.shut()
        self._announce()
        self._until_s = time.monotonic() + self._graceful_s
        for phase in list(self._phases.values()):
            if isinstance(phase, HttpConnection):
                phase.retire()
        drained = not (self._drains and self._life.stopping)
        while time.monotonic() < self._until_s:
            drained = drained or self._entrance.drain()
            if drained and not self._phases and not (self._pool and self._pool.busy):
                return
            self._turn()
        if self._phases:
            self._log.warning("connections cut", count=len(self._phases), after=f"{self._graceful_s:g}s")

    def _failed(self, error: BaseException) -> None:
        self._log.error("engine failed", exc=error)
        os._exit(1)


ENGINE = Reactor
