"""WORKER. The reactor: one epoll loop that holds every HTTP client of the worker; the application runs between.

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
from prefork.engines.linger import LingeringClose
from prefork.engines.peer import note_wait
from prefork.engines.timers import NEVER, Deadlines
from prefork.engines.wsgi.app import WsgiPeer, WsgiSite
from prefork.engines.wsgi.connection import HttpClient
from prefork.engines.wsgi.phases import Preface
from prefork.engines.wsgi.thread_pool import Pool
from prefork.status.scoreboard import ACCEPTED, BUSY_NS, BYTES_IN, BYTES_OUT, COMPLETED, GONE, HELD

Client = HttpClient | Preface | LingeringClose  # what stands for a connection

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
        self._has_preface = config.proxy_protocol
        # The type below socket.socket has all that is needed (measured: 2 us less for a connection), but not for TLS.
        self._socket: type[socket.socket] = socket.socket if self._tls else cast("type[socket.socket]", _socket.socket)
        self._balance = Balance(station.board, station.group, station.nudge)
        self._clients: dict[int, Client] = {}
        self._again: list[HttpClient] = []  # that go on in the next turn
        self._pool: Pool[Any] | None = Pool(station.rows, self._failed) if config.threads > 1 else None
        self._entrance = Entrance(
            station.listeners,
            epoll=self._epoll,
            balance=self._balance,
            complaints=self._complaints,
            admit=self._admit,
            room=self._room,
            held=self._clients.__len__,
        )
        self._handlers: dict[int, Callable[[int, int], None]] = self._entrance.handlers()
        self._drains = all(listener.owned for listener in station.listeners)  # the accept queue is ours alone
        self._until_s = 0.0  # when what is still in flight is cut
        self._most = config.max_requests and config.max_requests + random.randint(0, config.max_requests_jitter)  # noqa: S311
        self.deadlines: Deadlines[Client] = Deadlines()
        self.now_ns: int = monotonic_ns()
        self.bytes_in = self.bytes_out = 0  # of this turn
        self.site: WsgiSite = WsgiSite(station, self._complaints)

    def run(self) -> None:
        """Serve until told to retire, finish what is in flight, return. Raises BootError if it cannot begin."""
        for fd in self._life.fds:
            self._handlers[fd] = self._heed
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
        self.site.tick()
        clients, ready = self._clients, []
        for fd, mask in events:
            client = clients.get(fd)
            if client is not None:
                ready.append((client, mask))
            elif handler := self._handlers.get(fd):
                handler(fd, now_ns)
        for client, mask in ready:
            client.ready(mask)
        if self._again:
            again, self._again = self._again, []
            for client in again:
                client.go_on()
        if now_ns >= self.deadlines.next_ns():
            for late in self.deadlines.due(now_ns):
                late.expire()
        if self._entrance.look_ns != NEVER:
            self._entrance.tend(now_ns)
        self._flush()

    def _clock_ns(self) -> int:
        """The clients' clock. It stands still while the application runs in the loop."""
        return monotonic_ns() - (0 if self._pool else self.site.busy_ns)

    def _wait_s(self) -> float:
        """How long nothing is due."""
        if self._again:
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
        if self.site.row is not None:
            cells[BUSY_NS] = self.site.busy_ns
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
        peer = self.site.peer(listener, sockaddr)
        peer.queue_ms = queue_ms
        if not self._has_preface:
            self.greet(sock, peer)
        elif peer.trusted:
            self.hold(Preface(self, sock, peer, listener))
        else:
            self.site.complain(PermissionError("it may not send a PROXY header; see --trusted-proxies"), peer)
            sock.close()
        self._announce()

    def greet(self, sock: socket.socket, peer: WsgiPeer) -> None:
        """From here on it is HTTP, under TLS if we have a certificate."""
        fd = sock.fileno()
        if before := self._clients.pop(fd, None):
            self.deadlines.forget(before)
        if self._tls:
            try:
                sock = self._tls.wrap(sock)
            except OSError as error:  # the client left before it was accepted
                self.site.complain(error, peer)
                sock.close()
                return
        self.hold(HttpClient(self, sock, peer))

    def hold(self, client: Client) -> None:
        """From here on this one stands for the connection."""
        self._clients[client.fd] = client
        self.deadlines.watch(client)

    def forget(self, client: Client) -> None:
        """The client is about to close its socket, which takes it out of the epoll."""
        del self._clients[client.fd]
        self.deadlines.forget(client)
        self._announce()

    def watch(self, client: HttpClient, mask: int) -> None:
        """What to be told of the client's socket."""
        self._epoll.modify(client.fd, mask)

    def again(self, client: HttpClient) -> None:
        """The client goes on in the next turn, after the others have had theirs."""
        self._again.append(client)

    def hand_out(self, client: HttpClient) -> None:
        """Have a thread of the pool do the next part of the client's response."""
        assert self._pool is not None
        self._pool.put(client)
        if self._pool.full:
            self._announce()

    def lost(self) -> None:
        """A client has left before its response was complete."""
        self._cells[GONE] += 1

    def _results(self, _fd: int, _now_ns: int) -> None:
        assert self._pool is not None
        was_full = self._pool.full
        for client, part in self._pool.take():
            assert isinstance(client, HttpClient)
            client.stepped(part)
        if was_full:
            self._announce()

    def _room(self) -> bool:
        return len(self._clients) < self._most_clients and not (self._pool and self._pool.full)

    def _announce(self) -> None:
        held = len(self._clients)
        self._cells[HELD] = held
        self._balance.publish(held, able=not self.site.draining and self._room())

    # --- the end

    def _heed(self, fd: int, _now_ns: int) -> None:
        self._life.attend(fd)

    def _retire(self) -> None:
        """Take no more; let everyone have a last response that says so, for at most the graceful timeout."""
        self.site.draining = True
        self._entrance.shut()
        self._announce()
        self._until_s = time.monotonic() + self._graceful_s
        for client in list(self._clients.values()):
            if isinstance(client, HttpClient):
                client.hurry()
        drained = not (self._drains and self._life.stopping)
        while time.monotonic() < self._until_s:
            drained = drained or self._entrance.drain()
            if drained and not self._clients and not (self._pool and self._pool.busy):
                return
            self._turn()
        if self._clients:
            self._log.warning("connections cut", count=len(self._clients), after=f"{self._graceful_s:g}s")

    def _failed(self, error: BaseException) -> None:
        self._log.error("engine failed", exc=error)
        os._exit(1)


ENGINE = Reactor
