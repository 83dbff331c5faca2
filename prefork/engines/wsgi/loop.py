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
import queue
import socket
import time
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from select import EPOLLET, EPOLLIN, epoll
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from prefork.core.listener import Listener
from prefork.engines.accept import FULL_NS, AcceptBalance, EpollAcceptor
from prefork.engines.context import WorkerContext, most_units
from prefork.engines.error_log import RateLimitedLog
from prefork.engines.handover import AGAIN_S, LATE_NS, LOOK_NS, HandOver
from prefork.engines.http_context import HttpContext
from prefork.engines.linger import hang_up
from prefork.engines.peer import PeerFactory, note_wait
from prefork.engines.request_log import RequestLog
from prefork.engines.serving import start_threads
from prefork.engines.timers import NEVER, Deadlines
from prefork.engines.wsgi.app import WsgiApp, WsgiPeer, environ_of, fields_of
from prefork.engines.wsgi.connection import HttpConnection, LimitedConnection
from prefork.engines.wsgi.phases import Handshake, Phase, PreHttp, ProxyHeader
from prefork.runtime.forks import OURS
from prefork.runtime.transfer import TransferMessage
from prefork.status.scoreboard import (
    ACCEPTED,
    BUSY_NS,
    BYTES_IN,
    BYTES_OUT,
    CLOSED,
    COMPLETED,
    CUT,
    HEARTBEAT,
    Row,
    heartbeat_s,
    publish_held,
)

if TYPE_CHECKING:
    from prefork.core.tls import TlsSocket

# --- The application threads of an event loop: work goes in by a queue, results come back by an eventfd.
#
# The loop takes no new connections while all threads are busy. What its own clients ask for beyond that waits here,
# first come, first served.


class Job(Protocol):
    """What runs on a thread of the pool."""

    def run(self, row: Row, /) -> Any:
        """Run the next part, on the row of this thread. An exception ends the worker."""


AnyJob = TypeVar("AnyJob", bound=Job)


class Pool(Generic[AnyJob]):
    """WORKER. `fd` is readable when something is done; only the loop calls the methods."""

    def __init__(self, rows: Sequence[Row], failed: Callable[[BaseException], None]) -> None:
        """Start a thread for each row. Raises BootError."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._size = len(rows)
        self._failed = failed
        self._waiting: queue.SimpleQueue[AnyJob] = queue.SimpleQueue()
        self._done: deque[tuple[AnyJob, Any]] = deque()
        self._lent: deque[tuple[AnyJob, bytes, LockType]] = deque()
        self.busy = 0  # handed out and not back
        self.turn = False  # though it is full, one new connection has its turn
        self._moved_ns = 0  # when it became full, or something was done last
        self._asked_ns, self._before_ns = 0, 0  # when `take_turn` was asked last, and that time then
        start_threads(rows, self._serve)

    @property
    def full(self) -> bool:
        """Whether new work would have to wait."""
        return self.busy >= self._size

    @property
    def blocked_since_ns(self) -> int:
        """Since when new work has had to wait; 0: it has not."""
        return self._moved_ns if self.full else 0

    @property
    def blocked_ns(self) -> int:
        """For how long new work would have had to wait by now."""
        return monotonic_ns() - self._moved_ns if self.full else 0

    def take_turn(self, now_ns: int) -> bool:
        """Whether a connection that waits has its turn: a thread has been free since this was asked, a moment ago.

        Clients that are here already would keep all threads busy for ever.
        """
        again = now_ns - self._asked_ns < 3 * FULL_NS
        self.turn = again and self._moved_ns > self._before_ns
        self._asked_ns, self._before_ns = now_ns, self._moved_ns
        return self.turn

    def put(self, job: AnyJob) -> None:
        """Have a thread run the job."""
        self.busy += 1
        if self.busy == self._size:
            self._moved_ns = monotonic_ns()
        self._waiting.put(job)

    def lend(self, job: AnyJob, data: bytes) -> None:
        """On a thread of the pool: give the loop something of a job that goes on; return when the loop has taken it."""
        taken = allocate_lock()
        taken.acquire()
        self._lent.append((job, data, taken))
        os.eventfd_write(self.fd, 1)
        taken.acquire(timeout=LENT_S)

    def lent(self) -> Iterator[tuple[AnyJob, bytes]]:
        """What threads give of jobs that go on; call it when `fd` is readable, before `take`."""
        os.eventfd_read(self.fd)
        while self._lent:
            job, data, taken = self._lent.popleft()
            try:
                yield job, data
            finally:
                taken.release()

    def take(self) -> list[tuple[AnyJob, Any]]:
        """What is done, each with its result."""
        results = []
        while self._done:
            results.append(self._done.popleft())
        if results:
            self._moved_ns = monotonic_ns()
            self.busy -= len(results)
        return results

    def _serve(self, row: Row) -> None:
        try:
            while True:
                job = self._waiting.get()
                self._done.append((job, job.run(row)))
                os.eventfd_write(self.fd, 1)
        except BaseException as error:  # noqa: BLE001 - the worker border: our own fault, say it and let the master respawn
            self._failed(error)


LENT_S = 30.0  # until a loop that has ended, which is not told, is not waited for any more
_EVENTS = 256  # of one turn
_NO_LIMIT = "with --threads 1 a WSGI application has one request at a time, and others wait: give --threads 2 or more"


class Reactor:
    """WORKER. Serves kind `wsgi`."""

    name = "reactor"

    def __init__(self, worker: WorkerContext) -> None:
        config = worker.config
        # With 30 attributes and fewer, Python finds each of them at once (measured: 4 % a request).
        self._worker = worker
        self._link = worker.link
        self._cells = worker.rows[0].cells  # counters of the loop itself; the pool's threads write their own
        self._epoll = epoll()
        errors = RateLimitedLog(worker.log)
        self._tls = tls = worker.inherited.tls
        if tls:
            tls.speak_http()
        # The type below socket.socket has all that is needed (measured: 2 us less for a connection), but not for TLS.
        self._socket: type[socket.socket] = socket.socket if tls else cast("type[socket.socket]", _socket.socket)
        may_exceed = not tls and config.threads == 1
        self._balance = AcceptBalance(worker.board, worker.orders, worker.group, worker.wake_fd, may_exceed=may_exceed)
        self._phases: dict[int, Phase] = {}
        self._later: list[HttpConnection] = []  # that go on in the next turn
        self._pool: Pool[HttpConnection] | None = Pool(worker.rows, self._failed) if config.threads > 1 else None
        self._limited = config.max_in_flight > 0 and self._pool is not None
        self._acceptor = EpollAcceptor(
            worker.listeners,
            epoll=self._epoll,
            balance=self._balance,
            errors=errors,
            admit=self._admit,
            room=self._room,
            make_room=self._make_room,
            held=self._phases.__len__,
        )
        self.handover = HandOver(worker, connections=self._http, adopt=self._adopt)
        self._look_busy_ns = 0  # when to look at this worker's share again, by the time spent in the application
        self._handlers: dict[int, Callable[[int, int], None]] = self._acceptor.handlers()
        self._until_s = 0.0  # when what is still in flight is cut; 0: this worker does not retire
        self._ended = CLOSED  # as what connections that end are counted
        self._most = most_units(config)
        self._period_s = self._again_s = heartbeat_s(config.timeout_s, config.slow_s)  # again: to give connections
        self._beat_ns = 0  # when the next heartbeat is due
        self.deadlines: Deadlines[Phase] = Deadlines()
        self.now_ns: int = monotonic_ns()
        self.bytes_in = self.bytes_out = 0  # of this turn
        self.row = None if self._pool else worker.rows[0]
        self.context = HttpContext(config, fields_of(worker))
        self.log = RequestLog(worker, errors, self.context.trusted)
        self.app = WsgiApp(worker, self.context, self.log)
        self.peers = PeerFactory(self.context.trusted, self.app.view, worker)

    def run(self) -> None:
        """Serve until told to retire, finish what is in flight, return. Raises BootError if it cannot begin."""
        OURS.own(self._epoll.fileno())
        for fd in self._link.fds:
            self._handlers[fd] = self._handle_signals
            self._epoll.register(fd, EPOLLIN)
        if self._worker.config.max_in_flight and not self._pool:
            self._worker.log.warning("max-in-flight has no effect", hint=_NO_LIMIT)
        if self._pool:
            OURS.own(self._pool.fd)
            self._handlers[self._pool.fd] = self._results
            self._epoll.register(self._pool.fd, EPOLLIN)
        self._beat(monotonic_ns())
        # Before the first call of the application, which may end the process.
        self._link.ready(self._worker.app.kind, self.name)
        self._acceptor.open()
        if self.handover.possible:
            self._handlers[self.handover.fd] = self._arrived
            self._epoll.register(self.handover.fd, EPOLLIN | EPOLLET)
        self._announce()
        while not self._link.retiring:
            self._turn()
        self._retire()

    def _turn(self) -> None:
        wait_s = self._wait_s()
        self._balance.sleeps()
        events = self._epoll.poll(wait_s, _EVENTS)
        self._balance.woke()
        turn_ns = monotonic_ns()
        now_ns = self.now_ns = turn_ns if self._pool else turn_ns - self.app.busy_ns
        if turn_ns >= self._beat_ns:
            self._beat(turn_ns)
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
            if self.app.busy_ns >= self._look_busy_ns:
                self._even_out(ready)
        if self._later:
            later, self._later = self._later, []
            for connection in later:
                connection.go_on()
        if now_ns >= self.deadlines.next_ns():
            for late in self.deadlines.due(now_ns):
                late.expire()
        self._flush()
        if self._acceptor.check_ns != NEVER:
            self._acceptor.maintain(now_ns)

    def clock_ns(self) -> int:
        """Return the time on the clients' clock, which stands still while the application runs in the loop."""
        return monotonic_ns() - (0 if self._pool else self.app.busy_ns)

    def _wait_s(self) -> float:
        """Return how long to wait for events: until the next deadline, or the next heartbeat."""
        if self._later:
            return 0.0
        until_ns = min(self.deadlines.next_ns(), self._acceptor.check_ns)
        left_s = (until_ns - self.clock_ns()) / 1e9
        if self._until_s:
            left_s = min(left_s, self._until_s - time.monotonic())
        return max(0.0, min(left_s, self._again_s))

    def _beat(self, now_ns: int) -> None:
        """Tell the master that the loop turns; twice a period if turns follow each other, so that none comes late."""
        for row in self._worker.rows:
            row.heal()
        publish_held(self._cells, len(self._phases), self._ended)
        self._announce()  # once more, as an application may have written over it
        self._cells[HEARTBEAT] = now_ns
        self._beat_ns = now_ns + round(self._period_s * 5e8)
        self._even_out([])

    def _flush(self) -> None:
        """Tell the scoreboard what this turn has moved (measured: one store a request each would cost 12 %)."""
        cells = self._cells
        if self.bytes_in or self.bytes_out:
            cells[BYTES_IN] += self.bytes_in
            cells[BYTES_OUT] += self.bytes_out
            self.bytes_in = self.bytes_out = 0
        if self.row is not None:
            cells[BUSY_NS] = self.app.busy_ns
        if self._most and sum(row.cells[COMPLETED] for row in self._worker.rows) >= self._most:
            self._most = 0
            self._link.enough("max-requests")

    # --- connections

    def _admit(self, fd: int, sockaddr: Any, listener: Listener) -> None:
        """A connection was taken."""
        self._cells[ACCEPTED] += 1
        if self._pool:
            self._pool.turn = False
        family = int(listener.sock.family)
        sock = self._socket(family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        queue_ms = note_wait(sock, family, self._cells)
        self._epoll.register(fd, EPOLLIN)
        peer = self.peers.of(listener, sockaddr)
        peer.queue_ms = queue_ms
        if not self._worker.config.proxy_protocol:
            self.start_http(sock, peer)
        elif peer.trusted:
            self.hold(ProxyHeader(self, sock, peer, listener))
        else:
            self.log.refuse_connection(PermissionError("it may not send a PROXY header; see --trusted-proxies"), peer)
            self._turn_away(sock, fd)
        self._announce()

    def _turn_away(self, sock: socket.socket, fd: int) -> None:
        self._cells[CLOSED] += 1
        self._epoll.unregister(fd)
        hang_up(sock)

    def start_http(self, sock: socket.socket, peer: WsgiPeer) -> None:
        """Begin with HTTP on a connection, or with TLS if there is a certificate."""
        self.hold(Handshake(self, sock, peer, self._tls) if self._tls else self._http_connection(sock, peer))

    def start_http_under_tls(self, sock: TlsSocket, peer: WsgiPeer, until_ns: int) -> None:
        """Begin with HTTP after the handshake; the client has until then for its first request."""
        assert self._tls is not None
        peer.app_view.secure(environ_of(self._tls.facts(sock)))
        connection = self._http_connection(sock, peer)
        connection.deadline_ns = until_ns
        self.hold(connection)
        connection.ready(EPOLLIN)  # it mostly comes with the end of the handshake

    def _http_connection(self, sock: socket.socket, peer: WsgiPeer) -> HttpConnection:
        return (LimitedConnection if self._limited else HttpConnection)(self, sock, peer)

    def hold(self, phase: Phase) -> None:
        """Host this phase from now on, in the place of one that had its descriptor."""
        if before := self._phases.get(phase.fd):
            self.deadlines.forget(before)
        self._phases[phase.fd] = phase
        self.deadlines.watch(phase)

    def forget(self, phase: Phase) -> None:
        """Host it no longer. Its socket is about to be closed, which leaves it in the epoll while a copy is open."""
        self._cells[self._ended] += 1
        self.drop(phase)

    def drop(self, phase: Phase) -> None:
        """Host it no longer: another worker does."""
        del self._phases[phase.fd]
        self._epoll.unregister(phase.fd)
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
            self._balance.batch.delay_since(self._pool.blocked_since_ns)
            self._announce()

    @property
    def pool_is_crowded(self) -> bool:
        """Whether the threads have as many requests as --max-in-flight allows, with those that wait for one."""
        return self._pool is not None and self._pool.busy >= self._worker.config.max_in_flight

    def send_out(self, connection: HttpConnection, data: bytes) -> None:
        """On a thread of the pool: have the loop call its `send_written`, and return when it has."""
        assert self._pool is not None
        self._pool.lend(connection, data)

    def _results(self, _fd: int, _now_ns: int) -> None:
        assert self._pool is not None
        was_full = self._pool.full
        blocked_ns = self._pool.blocked_ns
        for connection, data in self._pool.lent():
            connection.send_written(data)
        results = self._pool.take()
        if not results:
            return
        if was_full:
            self._announce()  # before a client has its response: the next one may come at once
        for connection, part in results:
            connection.resume(part)
        self._balance.batch.delay_since(self._pool.blocked_since_ns)
        self._balance.batch.add_delay(blocked_ns, len(results))
        if was_full:
            self.handover.on_thread_free(len(self._phases))

    def _room(self) -> bool:
        """Whether one more connection may come: one for a thread, or one whose requests can be turned away."""
        return self._able or (self._tells and len(self._phases) < self._worker.config.max_connections)

    @property
    def _tells(self) -> bool:
        """Whether connections are taken though no thread is free: none is elsewhere, and --max-in-flight bounds it."""
        return self._limited and self._acceptor.alone

    @property
    def _able(self) -> bool:
        """Whether one more connection could be served at once."""
        pool = self._pool
        return len(self._phases) < self._worker.config.max_connections and not (pool and pool.full and not pool.turn)

    def _announce(self) -> None:
        held, serves, pool = len(self._phases), not self._until_s, self._pool
        self._balance.publish(held, able=serves and self._able)
        stuck = pool is not None and pool.blocked_ns > LATE_NS
        self.handover.publish(held, serves=serves, able=not (pool and pool.full), stuck=stuck)

    # --- connections that change hands

    def _http(self) -> Iterator[HttpConnection]:
        return (phase for phase in self._phases.values() if isinstance(phase, HttpConnection))

    def _arrived(self, _fd: int, _now_ns: int) -> None:
        """Others have given connections."""
        self._announce()
        self.handover.take(len(self._phases))

    def _even_out(self, ready: list[tuple[Phase, int]]) -> None:
        """Give or take. `ready`: what waits for its turn: the last of it would wait for the longest."""
        self._look_busy_ns = self.app.busy_ns + LOOK_NS
        first = (phase for phase, _mask in reversed(ready) if isinstance(phase, HttpConnection))
        now_ns = monotonic_ns()
        if self.handover.even_out(len(self._phases), now_ns, first):  # the next heartbeat comes sooner, and goes on
            self._again_s, self._beat_ns = AGAIN_S, now_ns + round(AGAIN_S * 1e9)
        elif not self._until_s:
            self._again_s = self._period_s

    def _make_room(self, accept: Callable[[], bool]) -> bool:
        """Accept one in the place of an idle one; if all threads are busy, when it has its turn."""
        pool, now_ns = self._pool, monotonic_ns()
        if pool and pool.full and not self._tells and not pool.take_turn(now_ns):
            return False
        if len(self._phases) < self._worker.config.max_connections:
            return accept()
        return self.handover.make_room(now_ns, accept)

    def _adopt(self, sock: _socket.socket, message: TransferMessage) -> None:
        """Go on with a connection of another worker."""
        self._epoll.register(sock.fileno(), EPOLLIN)
        self.now_ns = self.clock_ns()  # it may come after calls of this turn, and its deadline may be near
        connection = self._http_connection(cast("socket.socket", sock), self.peers.of_message(message))
        connection.go_on_from(message, monotonic_ns())
        self.hold(connection)
        self._announce()

    # --- the end

    def _handle_signals(self, fd: int, now_ns: int) -> None:
        self._link.on_readable(fd)
        self._arrived(fd, now_ns)  # it may be that this worker is to take from now on

    def _retire(self) -> None:
        """Stop accepting; give connections to others or end them, for at most the graceful timeout."""
        self._until_s = self._link.leave_by_s
        self._acceptor.stop_accepting()
        self._announce()
        ours_alone = all(listener.owned for listener in self._worker.listeners)
        drained = not (ours_alone and self._link.stopping)  # the accept queue
        look_s = 0.0
        while (now_s := time.monotonic()) < self._until_s:
            drained = drained or self._acceptor.drain()
            if now_s >= look_s or not self.context.draining:
                self._again_s = min(self.handover.give_all(self.context), self._period_s)
                for phase in self._phases.values():
                    if isinstance(phase, PreHttp):
                        phase.retire()
                look_s = now_s + self._again_s
            if drained and not self._phases and not (self._pool and self._pool.busy) and self.handover.done:
                return
            self._turn()
        if self._phases:
            after = f"{self._worker.config.graceful_timeout_s:g}s"
            self._worker.log.warning("connections cut", count=len(self._phases), after=after)
            self._ended = CUT
            for phase in list(self._phases.values()):
                phase.close()

    def _failed(self, error: BaseException) -> None:
        self._worker.log.error("engine failed", exc=error)
        os._exit(1)


ENGINE = Reactor
