"""WORKER. An HTTP connection of the epoll loop: bytes in, requests in order, responses out, a deadline for each wait.

    IDLE -> HEAD -> (BODY) -> BUSY (<-> PROCEEDING) -> (WRITING) -> IDLE ...          -> CLOSED

IDLE until the first byte of a request, HEAD until its head is complete, BODY until it is whole: only then does the
application run, so that a slow client costs memory and never a thread. BUSY while the application has it, WRITING
while the client reads: the response's next part is asked for when the last one is with the kernel. PROCEEDING while
the application runs and what it gave to write() waits for the client, in memory and then in a file: PEP 3333 wants it
sent or kept while the application proceeds, and a slow client must not hold the application.

Requests that come while another is answered wait in `_incoming`, and the socket is not read meanwhile: the kernel
holds the rest. How long a body or a response may take grows with what has moved of it (HttpContext.deadline_ns).
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from contextlib import suppress
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from tempfile import TemporaryFile
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from prefork.engines.handover import STAYS_NS
from prefork.engines.linger import LingeringSocket, hang_up, reset, unread
from prefork.engines.timers import NEVER
from prefork.engines.wsgi.phases import Host
from prefork.errors import CLIENT_GONE
from prefork.http.body import IN_MEMORY_BYTES, FilePart
from prefork.http.head import CONTINUE, Request
from prefork.http.limits import Refusal
from prefork.http.parser import CompleteRequest, RequestQueue
from prefork.http.response import error_response
from prefork.status.scoreboard import HEARTBEAT, SINCE

if TYPE_CHECKING:
    from prefork.engines.handover import HandOver
    from prefork.engines.wsgi.app import WsgiPeer
    from prefork.http.wsgi import WsgiCall
    from prefork.runtime.transfer import TransferMessage
    from prefork.status.scoreboard import Row


_FILE_BYTES = 1 << 20  # of a file in one turn of the loop


class _Spool:
    """Bytes in a file without a name, in the order in which they came. `count`: those that are not sent yet."""

    def __init__(self) -> None:
        self._file = TemporaryFile(prefix="prefork-response-", buffering=0)  # noqa: SIM115 - closed by close()
        self._offset = self.count = 0

    def add(self, data: bytes | memoryview) -> None:
        """Append. Raises OSError when the disk is full."""
        while data:
            written = os.pwrite(self._file.fileno(), data, self._offset + self.count)
            self.count += written
            data = data[written:]

    def send(self, sock: socket.socket) -> int:
        """Send some of the bytes; return how many. Raises OSError."""
        sent = sock.send(os.pread(self._file.fileno(), min(self.count, IN_MEMORY_BYTES), self._offset))
        self._offset += sent
        self.count -= sent
        return sent

    def close(self) -> None:
        """Give up the file."""
        self._file.close()


class PendingWrite:
    """WORKER. What the socket did not take at once of a response: bytes, in memory or in a file, and parts of files.

    `left`: bytes still to be sent; `moved`: bytes sent; `since_ns`: when it began.
    """

    __slots__ = ("_parts", "_sock", "left", "moved", "since_ns")

    def __init__(self, sock: socket.socket, since_ns: int) -> None:
        self._sock = sock
        self.since_ns = since_ns
        self.left = self.moved = 0
        self._parts: deque[memoryview | FilePart | _Spool] = deque()

    def add(self, part: bytes | FilePart) -> None:
        """Send this as well, behind the rest; not b"". Raises OSError when the disk is full."""
        if isinstance(part, FilePart):
            self._parts.append(part)
            self.left += part.count
            return
        last = self._parts[-1] if self._parts else None
        if isinstance(last, _Spool):
            last.add(part)
        elif self._parts and self.left + len(part) > IN_MEMORY_BYTES:
            self._parts.append(spool := _Spool())
            spool.add(part)
        else:
            self._parts.append(memoryview(part))
        self.left += len(part)

    def flush(self) -> int:
        """Send as much as the socket accepts; return the number of bytes. Raises OSError."""
        before, parts = self.moved, len(self._parts)
        try:
            while self._parts and len(self._parts) == parts:
                sent = self._send(self._parts[0])
                self.left -= sent
                self.moved += sent
                parts -= 1  # one that was not sent to its end waits for the client
        except BlockingIOError:
            pass
        return self.moved - before

    def _send(self, part: memoryview | FilePart | _Spool) -> int:
        if isinstance(part, memoryview):
            sent = self._sock.send(part)
            left = len(part) - sent
            self._parts[0] = part[sent:]
        elif isinstance(part, _Spool):
            sent = part.send(self._sock)
            left = part.count
            if not left:
                part.close()
        else:
            sent = os.sendfile(self._sock.fileno(), part.file.fileno(), part.offset, min(part.count, _FILE_BYTES))
            if not sent:
                raise OSError(f"a file has become shorter while it was sent: {self.left} bytes are missing")
            part.offset += sent
            part.count -= sent
            left = part.count
        if not left:
            self._parts.popleft()
        return sent

    def close(self) -> None:
        """Give up what is left."""
        for part in self._parts:
            if isinstance(part, _Spool):
                part.close()


IDLE, HEAD, BODY, BUSY, PROCEEDING, WRITING, CLOSED = range(7)
_CHUNK = 16384  # bytes of one recv()
_SOON_NS = 100_000_000


class ConnectionHost(Host, Protocol):
    """What an HTTP connection uses of its loop, beside what every phase does."""

    handover: HandOver

    @property
    def pool_is_crowded(self) -> bool:
        """Whether the threads have as many requests as --max-in-flight allows, with those that wait for one."""

    def go_on_later(self, connection: HttpConnection, /) -> None:
        """Call its `go_on` in the next turn, when the others have had theirs."""

    def hand_out(self, connection: HttpConnection, /) -> None:
        """Have a thread call its `run`, and call its `resume` with the result."""

    def send_out(self, connection: HttpConnection, data: bytes, /) -> None:
        """On a thread of the pool: have the loop call its `send_written`, and return when it has."""

    def clock_ns(self) -> int:
        """Return the time on the clients' clock."""

    def drop(self, connection: HttpConnection, /) -> None:
        """Host it no longer: another worker does."""


class HttpConnection:
    """WORKER. A phase of a connection (phases.py) on the loop's clock."""

    __slots__ = (
        "_app", "_call", "_context", "_incoming", "_loop", "_mask", "_out", "_since_ns", "_sock",
        "deadline_ns", "entry", "fd", "peer", "row", "state", "stays_ns", "watched_ns",
    )  # fmt: skip

    def __init__(self, loop: ConnectionHost, sock: socket.socket, peer: WsgiPeer) -> None:
        self._loop = loop
        self._app = loop.app
        self._context = context = loop.context
        self._sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.state = IDLE
        self._incoming = RequestQueue(context.limits, context.fields)
        self._call: WsgiCall | None = None
        self._out: PendingWrite | None = None  # what the socket did not take yet
        self.row = loop.row  # of the thread that runs the application
        self._since_ns = 0  # when the body that is arriving began
        self._mask: int = EPOLLIN
        self.deadline_ns = loop.now_ns + context.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        self.stays_ns = 0  # until then it is not given away for evenness (CLOCK_MONOTONIC)

    def ready(self, mask: int) -> None:
        """Epoll has reported these events: read, unless a request is being answered."""
        if self.state > BODY:
            self._ready_while_answering(mask)
            return
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        self._loop.bytes_in += len(data)
        try:
            whole = self._incoming.feed(data)
        except OSError as error:  # no room on the disk
            whole = self._incoming.refusal(503, f"the body cannot be kept: {error.strerror}"), None
        if whole:
            self._answer(whole)
        else:
            self._await()

    def _ready_while_answering(self, mask: int) -> None:
        """Input is not wanted now; the client's leaving is noticed, and that it has read."""
        if mask & (EPOLLHUP | EPOLLERR) and self.state != CLOSED:
            self._lost()
        elif self.state in (WRITING, PROCEEDING):
            self._flush()
        elif self.state == BUSY:
            self._watch(0)

    def go_on(self) -> None:
        """In the next turn: ask for the next part of the response, or answer the next request."""
        if self._call is None and self.state != CLOSED:
            self._answer(self._incoming.take())
        elif self.state != CLOSED:
            self._advance()
        else:
            self._close_call()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state in (WRITING, PROCEEDING):
            self._loop.log.count_late()
        if self.state in (HEAD, BODY):
            late = "head" if self.state == HEAD else "body"
            self._answer((self._incoming.refusal(408, f"its {late} did not come in time"), None))
        elif self.state != BUSY:
            self.close()

    def retire(self) -> None:
        """The worker retires and nobody takes its connections: answer the request as the last."""
        if self._call is not None and not self._call.status:
            self._call.keep_alive = False

    # --- changing hands

    @property
    def idle(self) -> bool:
        """Whether it is between two requests, and nothing was read of the next one."""
        return self.state == IDLE and self._incoming.quiet

    def since_ns(self, now_ns: int) -> int:
        """When the client was last served, or else accepted (CLOCK_MONOTONIC, as `now_ns`)."""
        return now_ns - self._context.idle_ns(served=self.peer.served) + self.deadline_ns - self._loop.now_ns

    def has_input(self) -> bool:
        """Whether the client has sent something that was not read."""
        with suppress(OSError):  # it has left
            return bool(unread(self._sock))
        return False

    def go_on_from(self, message: TransferMessage, now_ns: int) -> None:
        """Go on with a connection of another worker where that one has left it."""
        left_ns = message.since_ns + self._context.idle_ns(served=message.served) - now_ns
        self.deadline_ns = self._loop.now_ns + max(_SOON_NS, left_ns)  # a request may have come on the way
        self.stays_ns = message.sent_ns + STAYS_NS if message.evened else 0

    def give(self, now_ns: int, *, evened: bool) -> bool:
        """Give the connection, which is idle, to another worker; False if nobody has room now."""
        if not self._loop.handover.give(self.fd, self.peer, self.since_ns(now_ns), evened=evened):
            return False
        self.state = CLOSED
        self._loop.drop(self)
        self._incoming.close()
        self._sock.close()
        return True

    # --- bytes in

    def _await(self) -> None:
        """Nothing is to be answered now: wait for the rest of a request, or for the next one."""
        incoming = self._incoming
        if incoming.ended:
            self.close()
        elif incoming.reading is not None:
            if incoming.continues:
                incoming.continues = False
                try:
                    self._sock.send(CONTINUE)
                except OSError as error:
                    self._lost(error)
                    return
            if self.state != BODY:
                self.state = BODY
                self._since_ns = self._loop.now_ns
            self._until(self._context.deadline_ns(self._since_ns, incoming.received, self._loop.now_ns))
        elif self.state != HEAD and incoming.in_head:
            self.state = HEAD
            self._until(self._loop.now_ns + self._context.header_ns)

    # --- the application

    def _answer(self, whole: CompleteRequest) -> None:
        """Begin the response to a request."""
        request, body = whole
        self.state, self.deadline_ns = BUSY, NEVER
        if type(request) is Request:
            self._call = self._app.call(self, self.peer, request, body)
            self._advance()
        else:
            assert type(request) is Refusal
            self._call = None
            response = error_response(request.status, self._context.stamp, head=request.head)
            self._loop.log.refuse(self.peer, request, response)
            self._send(response)

    def _advance(self) -> None:
        """Have the application give the next part of its response: here, or on a thread of the pool."""
        assert self._call is not None
        row = self._loop.row
        if row is None:
            self._loop.hand_out(self)
            return
        part = self._app.run(row, self.peer, self._call)
        if self.state == BUSY:
            self.state = WRITING
            self._send(part)
        else:
            self.resume(part)

    def run(self, row: Row) -> bytes | FilePart:
        """On a thread of the pool: what `_advance` does in the loop. The client may have left meanwhile."""
        assert self._call is not None
        self.row = row
        if self.state != CLOSED:
            return self._app.run(row, self.peer, self._call)
        self._app.abandon(row, self.peer, self._call)
        return b""

    def resume(self, part: bytes | FilePart) -> None:
        """In the loop: send what `run` gave."""
        if self.state == CLOSED:
            self._close_call()
        elif self._out is None:
            self.state = WRITING
            self._send(part)
        else:
            self.state = WRITING
            self._flush(part)

    def _close_call(self) -> None:
        """Let the application close a response that is not read to its end."""
        if self._call is None or self._call.done:
            self._call = None  # and with it, its reference to this
        elif self._loop.row is None:
            self._loop.hand_out(self)
        else:
            self._app.abandon(self._loop.row, self.peer, self._call)

    # --- bytes out

    def write(self, data: bytes) -> None:
        """Send what the application gives to write(), from within its call; keep what the client does not take at once.

        The application proceeds: --timeout begins anew. Raises ConnectionError if the client has left or is too slow.
        """
        assert self.row is not None
        if self._loop.row is None:
            self._loop.send_out(self, data)
        else:
            self.row.cells[HEARTBEAT] = monotonic_ns()  # the loop has no turn meanwhile
            self.send_written(data)
            if self.state == PROCEEDING and self._loop.clock_ns() >= self.deadline_ns:
                self.expire()
        if self.state == CLOSED:
            raise BrokenPipeError(errno.EPIPE, "the client has left")
        self.row.cells[SINCE] = monotonic_ns()

    def send_written(self, data: bytes) -> None:
        """In the loop, or the application that runs in it: send this while the call goes on."""
        if self.state == CLOSED:
            return
        if self._out is None:
            self._out, self.state = PendingWrite(self._sock, self._loop.clock_ns()), PROCEEDING
        self._flush(data)

    def _send(self, part: bytes | FilePart) -> None:
        """Send the next part of a response; what the socket does not take waits until the client has read."""
        if type(part) is bytes:
            try:
                sent = self._sock.send(part) if part else 0
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lost(error)
                return
            self._loop.bytes_out += sent
            if sent == len(part):
                self._after_sending()
                return
            part = part[sent:]
        self._out, self.state = PendingWrite(self._sock, self._loop.now_ns), WRITING
        self._flush(part)

    def _flush(self, more: bytes | FilePart = b"") -> None:
        """The client may have read some, or there is more for it: send on."""
        assert self._out is not None
        try:
            if more:
                self._out.add(more)
            sent = self._out.flush()
        except OSError as error:
            self._lost(error)
            return
        self._loop.bytes_out += sent
        if self._out.left:
            self._watch(EPOLLOUT)
            if sent or self.deadline_ns == NEVER:
                now_ns = self._loop.clock_ns() if self.state == PROCEEDING else self._loop.now_ns
                self._until(self._context.deadline_ns(self._out.since_ns, self._out.moved, now_ns))
            return
        self._out = None
        if self.state == PROCEEDING:
            self.state, self.deadline_ns = BUSY, NEVER
            self._watch(self._mask & EPOLLIN)
        else:
            self._after_sending()

    def _after_sending(self) -> None:
        """The kernel has all that there was: go on with this response, with the next request, or end."""
        call, incoming = self._call, self._incoming
        if call is None or (call.done and not call.keep_alive):
            self._end(call)
            return
        if call.done:
            self._call = None
        if not call.done or incoming.waiting:
            self.state, self.deadline_ns = BUSY, NEVER
            self._loop.go_on_later(self)
            return
        self.state = IDLE
        self.deadline_ns = deadline_ns = self._loop.now_ns + self._context.keep_alive_ns
        if deadline_ns < self.watched_ns:
            self._loop.deadlines.watch(self)
        if self._mask != EPOLLIN:
            self._watch(EPOLLIN)
        if not incoming.quiet:
            self._await()

    # --- the end

    def _end(self, call: WsgiCall | None) -> None:
        """The last response is with the kernel, or as much of it as there will be."""
        try:
            if call and call.aborted and not call.framed:
                reset(self._sock)  # its end would look like the body's
            more = call is None or call.request.keep_alive or unread(self._sock)
        except OSError:
            more = False
        if self._incoming.ended or not more or (call and call.aborted):
            self.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close, but so that the client can read its last response, whatever it still sends."""
        try:
            lingering = LingeringSocket(self._sock, self._loop.now_ns, self._loop.forget)
        except OSError:
            self.close()  # reset meanwhile: nobody reads it
            return
        self.state, self.deadline_ns = CLOSED, NEVER
        self._call = None
        self._incoming.close()
        self._watch(EPOLLIN)
        self._loop.hold(lingering)

    def _lost(self, error: OSError | None = None) -> None:
        """The client left in the midst of something, or is treated as if it had."""
        if error is not None and error.errno not in CLIENT_GONE:
            self._loop.log.connection_failed(error, self.peer)
        if self.state != IDLE:
            self._loop.log.count_gone()
        self.close()

    def close(self) -> None:
        """Close at once, by a reset if the response would look complete; the application learns of it."""
        running, self.state = self.state in (BUSY, PROCEEDING), CLOSED
        self._incoming.close()
        self._loop.forget(self)
        call = self._call
        if self._out is not None or (call is not None and not (call.done or call.framed)):
            if self._out is not None:
                self._out.close()
            reset(self._sock)
        hang_up(self._sock)
        if not running:
            self._close_call()

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self, mask)

    def _until(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        if deadline_ns < self.watched_ns:
            self._loop.deadlines.watch(self)


class LimitedConnection(HttpConnection):
    """WORKER. A connection where --max-in-flight is given: the loop answers what the threads have no room for."""

    __slots__ = ()

    def _answer(self, whole: CompleteRequest) -> None:
        """Begin the response to a request."""
        request, body = whole
        if type(request) is Request and self._loop.pool_is_crowded:
            self.state, self.deadline_ns = WRITING, NEVER
            self._call, response = self._app.turn_away(self.peer, request, body)
            self._send(response)
        else:
            HttpConnection._answer(self, whole)
