"""WORKER. The blocking engine: N threads, each of them accept -> handler -> close.

Threads block in accept() on the shared listener, and the kernel wakes the one that has waited longest, whichever
process it is in: connections spread evenly with no coordination. A retiring thread sees that it may leave when
accept() runs out of its SO_RCVTIMEO (ACCEPT_WAIT_S); a directed signal would not end accept(), as Python retries it.

The main thread serves nobody. It waits for signals and for the master's death, so that both are seen while every
thread is in a handler.
"""

from __future__ import annotations

import _socket
import os
import socket
import socketserver
import threading
import time
from collections.abc import Sequence
from typing import Any

from ..config import Config
from ..connection import Connection, HandlerSocket, close
from ..errors import ACCEPT_IGNORED, ACCEPT_PAUSE, ACCEPT_PAUSE_S, LineTooLong
from ..life import Life
from ..listener import ACCEPT_WAIT_S, Listener, format_sockaddr, timeval
from ..loader import App
from ..log import Log
from ..scoreboard import ACCEPTED, BUSY_NS, BYTES_IN, BYTES_OUT, COMPLETED, ERRORS, HELD, SINCE, Row
from .accepting import Acceptor
from .complaints import Complaints


class BlockingEngine:
    """WORKER. Serves kinds `stream` and `socketserver`."""

    name = "blocking"

    def __init__(
        self, *, app: App, config: Config, listeners: Sequence[Listener], rows: Sequence[Row], life: Life, log: Log
    ) -> None:
        self._app = app
        self._config = config
        self._listeners = list(listeners)
        self._rows = list(rows)
        self._life = life
        self._log = log
        self._complaints = Complaints(log)
        self._left = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # counted up by each thread that has left
        self._server = _server(self._listeners[0], app) if app.kind == "socketserver" else None

    def run(self) -> None:
        """Accept until told to retire, finish what is in flight, return. Raises nothing that is the app's fault."""
        for listener in self._listeners:
            # Accepted sockets inherit both; Connection continues a wait that runs out.
            wait = timeval(min(ACCEPT_WAIT_S, self._config.idle_timeout_s))
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self._config.idle_timeout_s))
        threads = [
            threading.Thread(target=self._thread, args=(row,), name=f"serve-{number}", daemon=True)
            for number, row in enumerate(self._rows)
        ]
        for thread in threads:
            thread.start()
        self._life.ready(self._app.kind, self.name)
        while not self._life.retiring:
            self._life.wait()
        self._finish(len(threads))

    def _finish(self, left: int) -> None:
        """Wait for the threads, at most for the graceful timeout."""
        if self._life.stopping:
            for listener in self._listeners:
                if listener.owned:
                    listener.sock.setblocking(False)  # all workers stop: none may sleep in accept() any more
        until = time.monotonic() + self._config.graceful_timeout_s
        while left and (wait_s := until - time.monotonic()) > 0:
            if self._life.wait(wait_s, also=self._left):
                left -= os.eventfd_read(self._left)
        cut = sum(row.cells[HELD] for row in self._rows)
        if cut:
            self._log.warning("connections cut", count=cut, after=f"{self._config.graceful_timeout_s:g}s")

    def _thread(self, row: Row) -> None:
        try:
            self._serve(row)
        except BaseException as error:  # noqa: BLE001 - the worker border: our own fault, say it and let the master respawn
            self._log.error("engine failed", exc=error)
            os._exit(1)
        os.eventfd_write(self._left, 1)

    def _serve(self, row: Row) -> None:
        acceptor = Acceptor(self._listeners)
        life, cells = self._life, row.cells
        handle = self._handle_request if self._server else self._handle_stream
        drains = all(listener.owned for listener in self._listeners)
        while True:
            if life.retiring and not (drains and life.stopping):
                return
            try:
                fd, sockaddr, family = acceptor.accept(wait=not life.retiring)
            except OSError as error:
                if life.retiring and isinstance(error, BlockingIOError):
                    return  # the queue is empty
                self._accept_failed(error)
                continue
            cells[SINCE] = time.monotonic_ns()
            cells[HELD] = 1
            cells[ACCEPTED] += 1
            peer = format_sockaddr(family, sockaddr)
            row.serve(peer.encode())
            handle(_socket.socket(family, _socket.SOCK_STREAM, 0, fd), sockaddr, peer, row)
            cells[BUSY_NS] += time.monotonic_ns() - cells[SINCE]
            cells[SINCE] = 0
            cells[HELD] = 0

    def _handle_stream(self, sock: _socket.socket, _sockaddr: Any, peer: str, row: Row) -> None:
        conn = Connection(sock, peer, row, self._config.idle_timeout_s)
        error: BaseException | None = None
        try:
            self._app.target(conn)
        except BaseException as raised:  # noqa: BLE001 - the handler border
            error = raised
        self._account(conn, row, error)
        close(sock)

    def _handle_request(self, sock: _socket.socket, sockaddr: Any, _peer: str, row: Row) -> None:
        request = HandlerSocket.adopt(sock, row, self._config.idle_timeout_s)
        error: BaseException | None = None
        try:
            self._app.target(request, sockaddr, self._server)
        except BaseException as raised:  # noqa: BLE001 - the handler border
            error = raised
        self._account(request, row, error)
        if request.fileno() >= 0:  # else the handler closed it itself
            # A bare socket again: files made by makefile() and not closed would delay close().
            close(_socket.socket(request.family, request.type, request.proto, request.detach()))

    def _account(self, conn: Connection | HandlerSocket, row: Row, error: BaseException | None) -> None:
        """Count what became of the connection, before its end reaches the client."""
        cells = row.cells
        cells[BYTES_IN] += conn.bytes_in
        cells[BYTES_OUT] += conn.bytes_out
        if conn.fate:
            cells[conn.fate] += 1
        if error is None:
            cells[COMPLETED] += not conn.fate
        elif not (conn.fate and isinstance(error, (OSError, LineTooLong))):
            cells[ERRORS] += 1
            self._complaints.add(error, row.peer)

    def _accept_failed(self, error: OSError) -> None:
        if error.errno in ACCEPT_PAUSE:
            self._complaints.note("accept paused", reason=error.strerror, pause=f"{ACCEPT_PAUSE_S:g}s")
            time.sleep(ACCEPT_PAUSE_S)
        elif not isinstance(error, BlockingIOError) and error.errno not in ACCEPT_IGNORED:
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
