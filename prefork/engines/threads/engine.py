"""WORKER. The blocking engine: N threads, each of them accept -> handler -> close.

Threads block in accept() on the shared listener, and the kernel wakes the one that has waited longest, whichever
process it is in: connections spread evenly with no coordination. A retiring thread sees that it may leave when
accept() runs out of its SO_RCVTIMEO (ACCEPT_WAIT_S); a directed signal would not end accept(), as Python retries it.

The main thread serves nobody. It waits for signals and for the master's death, so that both are seen while every
thread is in a handler, and it beats, which tells the master that the process moves.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic_ns
from typing import Any, cast

from prefork.core.address import format_sockaddr, plain_host
from prefork.core.listener import ACCEPT_WAIT_S, Listener, timeval
from prefork.engines.context import WorkerContext, most_units
from prefork.engines.error_log import RateLimitedLog
from prefork.engines.linger import close
from prefork.engines.peer import HttpHint, note_wait
from prefork.engines.request_log import count_unit
from prefork.engines.serving import start_threads
from prefork.engines.timers import NEVER
from prefork.errors import ACCEPT_IGNORED, ACCEPT_PAUSE, ACCEPT_PAUSE_S, NOT_OPEN, QUEUE_EMPTY, BootError, LineTooLong
from prefork.runtime.connection import Connection, HandlerSocket
from prefork.runtime.forks import OURS
from prefork.runtime.loader import App
from prefork.status.scoreboard import (
    ACCEPTED,
    BUSY_NS,
    CLOSED,
    COMPLETED,
    CUT,
    ERRORS,
    HEARTBEAT,
    SINCE,
    Row,
    heartbeat_s,
    held,
    publish_held,
)

# --- Taking connections from the listeners that all workers share, for engines that block.
#
# One blocking listener: plain accept(). Several, or one that somebody made non-blocking: wait on epoll with
# EPOLLEXCLUSIVE, so that a connection wakes one waiter and not all. The kernel asks the waiters in the order of their
# registration, so each wake-up ends with a new registration, at the tail; else the first would take nearly everything.


class Acceptor:
    """WORKER, one per thread. `take()` waits at most ACCEPT_WAIT_S; `family` is that of the last connection's listener.

    `take` returns (descriptor, peer's sockaddr) and raises BlockingIOError if no connection came in time, other
    OSErrors as accept(2).
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._socks = {listener.sock.fileno(): listener.sock for listener in listeners}
        self._epoll = select.epoll()  # made now, as descriptors may be out when it is needed
        OURS.own(self._epoll.fileno())
        self._polls = False
        self._draining = list(self._socks.values())  # that may still have a queue when the server stops
        self.family = int(listeners[0].sock.family)
        # The method below socket.accept(): it returns the bare descriptor and makes no second object (2.5 us less).
        self.take: Callable[[], tuple[int, Any]] = listeners[0].sock._accept  # type: ignore[attr-defined]
        if len(listeners) > 1:
            self._poll()

    def ran_out(self) -> None:
        """`take` found nothing. If accept() no longer waits, since another process set O_NONBLOCK, use epoll."""
        if not self._polls and not all(map(os.get_blocking, self._socks)):
            self._poll()

    def take_queued(self) -> tuple[int, Any]:
        """Accept from any of the listeners, which are non-blocking now; BlockingIOError: all queues are empty."""
        while self._draining:
            self.family = self._draining[-1].family
            try:
                return cast("tuple[int, Any]", self._draining[-1]._accept())  # type: ignore[attr-defined]
            except OSError as error:
                if error.errno not in QUEUE_EMPTY:
                    raise
                self._draining.pop()
        raise BlockingIOError(errno.EAGAIN, "no connection waits")

    def _poll(self) -> None:
        """From now on wait with epoll. Registered before it is needed, it would be woken instead of accept()."""
        self._polls = True
        for fd in self._socks:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self.take = self._take_polled

    def _take_polled(self) -> tuple[int, Any]:
        epoll = self._epoll
        for fd, _events in epoll.poll(ACCEPT_WAIT_S, 1):
            sock = self._socks[fd]
            self.family = sock.family
            try:
                return cast("tuple[int, Any]", sock._accept())  # type: ignore[attr-defined]
            finally:
                epoll.unregister(fd)
                epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        raise BlockingIOError(errno.EAGAIN, "no connection waits")


class FirstLook(Connection):
    """WORKER. A Connection whose first bytes are looked at."""

    __slots__ = ("hint",)
    hint: HttpHint | None

    def _receive(self, n: int) -> bytes:
        data = Connection._receive(self, n)
        hint, self.hint = self.hint, None
        if hint:
            hint.look(data)
        return data


class BlockingEngine:
    """WORKER. Serves kinds `stream` and `socketserver`."""

    name = "blocking"

    def __init__(self, worker: WorkerContext) -> None:
        app, config = worker.app, worker.config
        if worker.inherited.tls or config.proxy_protocol:
            what = "--tls-cert" if worker.inherited.tls else "--proxy-protocol"
            raise BootError(f"{what} is for HTTP, but {config.app!r} is a {app.kind} handler; leave it out")
        self._app = app
        self._config = config
        self._listeners = list(worker.listeners)
        self._rows = list(worker.rows)
        self._idle_s = config.idle_timeout_s
        self._slow_ns = round(config.slow_s * 1e9) or NEVER
        self._drains = all(listener.owned for listener in self._listeners)  # the accept queue is ours alone
        self._link = worker.link
        self._log = worker.log
        self._errors = RateLimitedLog(worker.log)
        self._hint = HttpHint(worker)
        self._go = threading.Event()  # the master knows that this worker is ready
        self._left = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # counted up by each thread that has left
        OURS.own(self._left)
        self._period_s = heartbeat_s(config.timeout_s, config.slow_s)
        self._most = most_units(config)
        self._asked_to_leave = False
        self._cutting = False  # --graceful-timeout is over: connections that end now do so for that
        self._sockets: dict[Row, _socket.socket] = {}  # the last connection of each thread
        self._server = _server(self._listeners[0], app) if app.kind == "socketserver" else None
        self._handle = self._handle_request if self._server else self._handle_stream

    def run(self) -> None:
        """Accept until told to retire, finish what is in flight, return. Raises BootError if it cannot begin."""
        for listener in self._listeners:
            # Accepted sockets inherit both; Connection continues a wait that runs out.
            wait = timeval(min(ACCEPT_WAIT_S, self._idle_s))
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._idle_s))
        # Made now: each needs a descriptor, and those may be out once clients are served.
        self._acceptors = [Acceptor(self._listeners) for _ in self._rows]
        start_threads(self._rows, self._thread)
        self._beat()
        self._link.ready(self._app.kind, self.name)  # before the first handler, which may end the process
        self._go.set()
        while not self._link.retiring:
            self._link.wait(self._period_s)
            self._beat()
        self._finish(len(self._rows))

    def _finish(self, left: int) -> None:
        """Wait for the threads, at most for the graceful timeout."""
        until_s = self._link.leave_by_s
        while left and (wait_s := until_s - time.monotonic()) > 0:
            if self._link.wait(min(wait_s, self._period_s), also=self._left):
                left -= os.eventfd_read(self._left)
            self._beat()
        cut = sum(held(row.cells) for row in self._rows)
        if cut:
            self._cutting = True
            self._log.warning("connections cut", count=cut, after=f"{self._config.graceful_timeout_s:g}s")
            for sock in list(self._sockets.values()):
                with suppress(OSError):  # that one has ended
                    sock.shutdown(socket.SHUT_RDWR)

    def _beat(self) -> None:
        for row in self._rows:
            row.heal()
        self._rows[0].cells[HEARTBEAT] = monotonic_ns()

    def _thread(self, row: Row) -> None:
        self._go.wait()
        try:
            self._serve(row, self._acceptors[self._rows.index(row)])
        except BaseException as error:  # noqa: BLE001 - the worker border: our own fault, say it and let the master respawn
            self._log.error("engine failed", exc=error)
            os._exit(1)
        os.eventfd_write(self._left, 1)

    def _serve(self, row: Row, acceptor: Acceptor) -> None:
        link = self._link
        while not link.retiring:
            try:
                fd, sockaddr = acceptor.take()
            except OSError as error:
                self._accept_failed(error)
                acceptor.ran_out()
                continue
            self._serve_one(fd, sockaddr, acceptor.family, row)
        while self._drains and link.stopping:
            try:
                fd, sockaddr = acceptor.take_queued()
            except BlockingIOError:
                return  # the queue is empty
            except OSError as error:
                self._accept_failed(error)
                continue
            self._serve_one(fd, sockaddr, acceptor.family, row)

    def _serve_one(self, fd: int, sockaddr: Any, family: int, row: Row) -> None:
        cells = row.cells
        cells[SINCE] = monotonic_ns()
        cells[ACCEPTED] += 1
        peer = format_sockaddr(family, sockaddr)
        row.serve(peer)
        self._sockets[row] = sock = _socket.socket(family, _socket.SOCK_STREAM, 0, fd)
        if sock.gettimeout() is not None:  # an application has called socket.setdefaulttimeout()
            sock.settimeout(None)
        note_wait(sock, family, cells)
        self._handle(sock, sockaddr, peer, row)
        publish_held(cells, 0, CUT if self._cutting else CLOSED)
        if self._most and not self._asked_to_leave:
            self._count_requests()

    def _count_requests(self) -> None:
        """Ask to be replaced after --max-requests; the worker serves on until its successor is ready."""
        if sum(row.cells[COMPLETED] for row in self._rows) >= self._most:
            self._asked_to_leave = True
            self._link.enough("max-requests")

    def _handle_stream(self, sock: _socket.socket, _sockaddr: Any, peer: str, row: Row) -> None:
        before_ns = row.cells[BUSY_NS]
        conn: Connection
        if self._hint.looks > 0:
            conn = first = FirstLook(sock, peer, row.cells, self._idle_s)
            first.hint = self._hint
        else:
            conn = Connection(sock, peer, row.cells, self._idle_s)
        try:
            self._app.target(conn)
        except BaseException as error:  # noqa: BLE001 - the handler border
            # Here, not behind it: kept in a variable, the error would keep the handler's frame, and that the error.
            self._count(row, conn.outcome, error, before_ns)
        else:
            self._count(row, conn.outcome, None, before_ns)
        close(sock)

    def _handle_request(self, sock: _socket.socket, sockaddr: Any, _peer: str, row: Row) -> None:
        before_ns = row.cells[BUSY_NS]
        if sock.family == socket.AF_INET6:
            sockaddr = (plain_host(sockaddr[0]), *sockaddr[1:])
        self._sockets[row] = request = HandlerSocket.adopt(sock, row.cells, self._idle_s)
        try:
            self._app.target(request, sockaddr, self._server)
        except BaseException as error:  # noqa: BLE001 - the handler border
            # Here, not behind it: what the handler has written into a file and not flushed goes out before the close.
            self._count(row, request.outcome, error, before_ns)
        else:
            self._count(row, request.outcome, None, before_ns)
        if request.fileno() >= 0:  # else the handler closed it itself
            # A bare socket again: files made by makefile() and not closed would delay close().
            family, kind, proto = int(request.family), int(request.type), request.proto
            try:
                close(_socket.socket(family, kind, proto, request.detach()))
            except OSError as failed:
                if failed.errno not in NOT_OPEN:
                    raise

    def _count(self, row: Row, outcome: int, error: BaseException | None, before_ns: int) -> None:
        """Count the connection, before its end reaches the client. `before_ns`: the row's busy time at its beginning.

        The clock of the handler stops here, so that a close that lingers is not its time.
        """
        if OURS.forked:
            OURS.end(error)
        cells = row.cells
        busy_ns = cells[BUSY_NS] + monotonic_ns() - cells[SINCE]
        cells[SINCE] = 0
        cells[BUSY_NS] = busy_ns
        if error is None or (outcome and isinstance(error, (OSError, LineTooLong))):
            outcome = outcome or COMPLETED
        else:
            outcome = ERRORS
            self._errors.add(error, row.peer)
        took_ns = busy_ns - before_ns
        count_unit(row, outcome, took_ns)
        if took_ns >= self._slow_ns:
            row.add_slow(took_ns)

    def _accept_failed(self, error: OSError) -> None:
        if error.errno in ACCEPT_PAUSE:
            self._errors.note("accept paused", reason=error.strerror, pause=f"{ACCEPT_PAUSE_S:g}s")
            time.sleep(ACCEPT_PAUSE_S)
        elif error.errno not in ACCEPT_IGNORED and not (self._link.retiring and error.errno in QUEUE_EMPTY):
            raise error


class _Server(socketserver.BaseServer):
    """What a handler sees as `self.server`: the address, and the class that serves it; the loop is ours."""

    def shutdown(self) -> None:
        """Stop the whole server, as it would stop a socketserver loop."""
        os.kill(os.getppid(), 15)


def _server(listener: Listener, app: App) -> _Server:
    server = _Server(listener.sock.getsockname(), app.target)
    server.socket = listener.sock  # type: ignore[attr-defined] # as TCPServer has it
    return server


ENGINE = BlockingEngine
