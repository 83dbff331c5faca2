"""WORKER. One client of a stream handler, on a blocking socket whose waits are bounded.

Two clocks watch a connection, and only one of them runs at a time. While the handler's code runs, the row's SINCE is
set and the master applies `--timeout`. While the handler waits for its client, SINCE is 0 and `--idle-timeout` rules
here: the wait ends with TimeoutError.

Waits are the kernel's (SO_RCVTIMEO, SO_SNDTIMEO). Accepted sockets inherit the listener's short ones, so a wait that
runs out is first continued with exactly what is left of the idle time: a system call only for clients that are slow
(measured: 1.0 us less per connection than setting the option on each).
"""

from __future__ import annotations

import _socket  # the type below socket.socket: 2.5 us less per connection than accept() with the wrapper (measured)
import socket
from collections.abc import Callable
from time import monotonic, monotonic_ns
from typing import Any

from prefork.core.listener import timeval
from prefork.errors import CLIENT_GONE, LineTooLong
from prefork.status.scoreboard import BUSY_NS, BYTES_IN, BYTES_OUT, GONE, IDLE_CLOSED, SINCE, TOO_LONG

LINE_LIMIT = 65536  # bytes, the line end not counted
_CHUNK = 16384


class Connection:
    """What a stream handler `def handle(conn)` gets. Returning from the handler closes it.

    `deadline`: monotonic seconds, or None; every wait ends there with TimeoutError, also before the idle timeout.
    `peer`: the client's address as text, `127.0.0.1:40312` or `unix:`.
    `outcome`: the counter of what the client did to end it (GONE, IDLE_CLOSED, TOO_LONG of the scoreboard), else 0.
    """

    __slots__ = ("_buffer", "_cells", "_idle_s", "_sock", "deadline", "outcome", "peer")

    def __init__(self, sock: _socket.socket, peer: str, cells: memoryview, idle_s: float) -> None:
        self._sock = sock
        self._cells = cells
        self._idle_s = idle_s
        self._buffer = b""
        self.peer = peer
        self.deadline: float | None = None
        self.outcome = 0

    def recv(self, n: int = _CHUNK) -> bytes:
        """Return 1 to n bytes, or b"" when the client has finished sending. Raises TimeoutError, ConnectionError."""
        if self._buffer:
            data, self._buffer = self._buffer[:n], self._buffer[n:]
            return data
        return self._receive(n)

    def readline(self, limit: int = LINE_LIMIT) -> bytes:
        """Return one line with its line end; without one if the client finished first; b"" at the end.

        Raises LineTooLong after `limit` bytes without a line end (LF, or CR LF; it is not counted), TimeoutError,
        ConnectionError.
        """
        data = self._buffer or self._receive(_CHUNK)
        end = data.find(b"\n")
        while end < 0 and (len(data) <= limit or data[limit:] == b"\r"):
            self._buffer = data  # a wait that runs out loses nothing: the handler may read on
            chunk = self._receive(_CHUNK) if data else b""
            if not chunk:
                break
            found = chunk.find(b"\n")
            end = len(data) + found if found >= 0 else -1
            data += chunk
        size = end if end >= 0 else len(data)
        if size > limit and data[limit:size] != b"\r":
            self._buffer = b""
            self.outcome = TOO_LONG
            raise LineTooLong(limit)
        if end < 0 or end + 1 == len(data):
            self._buffer = b""
            return data
        self._buffer = data[end + 1 :]
        return data[: end + 1]

    def sendall(self, data: bytes) -> None:
        """Send everything. Raises TimeoutError if the client does not read, ConnectionError if it is gone."""
        # Most replies fit into the send buffer: then there is no wait to account for (measured: 0.7 us less).
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._ended(error, "read", 0) from None
        self._cells[BYTES_OUT] += sent
        if sent != len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, data: memoryview) -> None:
        """Wait for a client that reads slowly."""
        cells = self._cells
        while data:
            self._arm(socket.SO_SNDTIMEO, self._limit())
            began = monotonic_ns()
            cells[BUSY_NS] += began - cells[SINCE]
            cells[SINCE] = 0
            try:
                sent = self._sock.send(data)
            except OSError as error:
                raise self._ended(error, "read", began) from None
            finally:
                cells[SINCE] = monotonic_ns()
            cells[BYTES_OUT] += sent
            data = data[sent:]

    def shutdown_write(self) -> None:
        """Close the sending side of the connection; the client can still send."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._ended(error, "read", 0) from None

    def fileno(self) -> int:
        """Return the descriptor, for os.sendfile and such. Blocking, with the idle timeout as its limit (EAGAIN)."""
        self._arm(socket.SO_RCVTIMEO, self._idle_s)
        self._arm(socket.SO_SNDTIMEO, self._idle_s)
        return self._sock.fileno()

    def _receive(self, n: int) -> bytes:
        cells = self._cells
        if self.deadline is not None:
            self._arm(socket.SO_RCVTIMEO, self._limit())
        began = monotonic_ns()
        cells[BUSY_NS] += began - cells[SINCE]
        cells[SINCE] = 0
        try:
            try:
                data = self._sock.recv(n)
            except BlockingIOError:  # the listener's short wait: go on for what is left
                left_s = self._limit() - (monotonic_ns() - began) / 1e9
                self._arm(socket.SO_RCVTIMEO, max(left_s, 0.0))
                data = self._sock.recv(n)
        except OSError as error:
            raise self._ended(error, "sent", began) from None
        finally:
            cells[SINCE] = monotonic_ns()
        cells[BYTES_IN] += len(data)
        if self.outcome:
            self.outcome = 0  # it went on after a wait that had run out
        return data

    def _limit(self) -> float:
        """How long the next wait may take, in seconds."""
        if self.deadline is None:
            return self._idle_s
        return min(self._idle_s, max(0.0, self.deadline - monotonic()))

    def _ended(self, error: OSError, verb: str, began_ns: int) -> OSError:
        """Note what the client did and return the error for the handler."""
        if isinstance(error, BlockingIOError):
            self.outcome = IDLE_CLOSED
            return TimeoutError(f"{self.peer} {verb} nothing for {(monotonic_ns() - began_ns) / 1e9:.1f} s")
        self.outcome = GONE if error.errno in CLIENT_GONE else 0
        return error

    def _arm(self, option: int, seconds: float) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))


class HandlerSocket(socket.socket):
    """What a socketserver handler gets as `request`: a real socket whose waits are the client's time.

    A wait that runs out raises TimeoutError; left alone, SO_RCVTIMEO would look like an end of file to makefile().
    `outcome` as in Connection.
    """

    @classmethod
    def adopt(cls, sock: _socket.socket, cells: memoryview, idle_s: float) -> HandlerSocket:
        """Take over the descriptor of a bare socket."""
        mine = cls(sock.family, sock.type, sock.proto, sock.detach())
        if mine.gettimeout() is not None:  # an application has called socket.setdefaulttimeout()
            mine.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            mine.setsockopt(socket.SOL_SOCKET, option, timeval(idle_s))
        mine._cells = cells
        mine.outcome = 0
        return mine

    _cells: memoryview
    outcome: int

    def recv(self, *args: Any) -> bytes:  # noqa: D102 - as socket.socket; so are the others
        data: bytes = self._wait(super().recv, args)
        self._cells[BYTES_IN] += len(data)
        return data

    def recv_into(self, *args: Any) -> int:  # noqa: D102
        size: int = self._wait(super().recv_into, args)
        self._cells[BYTES_IN] += size
        return size

    def send(self, *args: Any) -> int:  # noqa: D102
        size: int = self._wait(super().send, args)
        self._cells[BYTES_OUT] += size
        return size

    def sendall(self, *args: Any) -> None:  # noqa: D102
        self._wait(super().sendall, args)
        self._cells[BYTES_OUT] += memoryview(args[0]).nbytes

    def _wait(self, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        cells = self._cells
        cells[BUSY_NS] += monotonic_ns() - cells[SINCE]
        cells[SINCE] = 0
        try:
            return call(*args)
        except OSError as error:
            if isinstance(error, BlockingIOError) and self.gettimeout() is None:
                self.outcome = IDLE_CLOSED
                raise TimeoutError("the client was silent for --idle-timeout") from None
            self.outcome = GONE if error.errno in CLIENT_GONE else 0
            raise
        finally:
            cells[SINCE] = monotonic_ns()
