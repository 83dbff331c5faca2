"""WORKER. One client of the reactor: bytes in, requests in order, responses out, each wait with its deadline.

    IDLE -> HEAD -> (BODY) -> BUSY -> (WRITING) -> IDLE ...          -> CLOSED

IDLE until the first byte of a request, HEAD until its head is complete, BODY until it is whole: only then does the
application run, so that a slow client costs memory and never a thread. BUSY while the application has it, WRITING
while the client reads: the response's next part is asked for when the last one is with the kernel.

Requests that come while another is answered wait in `_incoming`, and the socket is not read meanwhile: the kernel
holds the rest. How long a body or a response may take grows with what has moved of it (HttpSite.deadline_ns).
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Any

from prefork.engines.linger import LingeringClose, reset_at_close, unread
from prefork.engines.timers import NEVER
from prefork.errors import CLIENT_GONE, PlainHttpError
from prefork.http.body import FilePart
from prefork.http.head import Request
from prefork.http.limits import Refusal
from prefork.http.request_queue import Incoming, Whole

if TYPE_CHECKING:
    from prefork.engines.wsgi.app import WsgiPeer
    from prefork.engines.wsgi.loop import Reactor
    from prefork.http.wsgi import WsgiCall
    from prefork.status.scoreboard import Row


# --- What the socket did not take at once: the rest of some bytes, or a part of a file.


_FILE_BYTES = 1 << 20  # of a file in one turn of the loop


class Outgoing:
    """WORKER. One part of a response. `left` bytes are still to be sent, `moved` were, `since_ns` it is under way."""

    __slots__ = ("_data", "_fd", "_offset", "_sock", "left", "moved", "since_ns")

    def __init__(self, sock: socket.socket, part: bytes | FilePart, since_ns: int) -> None:
        self._sock = sock
        self.since_ns = since_ns
        self.moved = 0
        if isinstance(part, FilePart):
            self._data: memoryview | None = None
            self._fd, self._offset = part.file.fileno(), part.offset
            self.left = part.count
        else:
            self._data = memoryview(part)
            self.left = len(part)

    def flush(self) -> int:
        """Send what there is room for; return how many bytes that was. Raises OSError."""
        try:
            sent = self._send() if self.left else 0
        except BlockingIOError:
            return 0
        self.left -= sent
        self.moved += sent
        return sent

    def _send(self) -> int:
        if self._data is not None:
            sent = self._sock.send(self._data)
            self._data = self._data[sent:]
            return sent
        sent = os.sendfile(self._sock.fileno(), self._fd, self._offset, min(self.left, _FILE_BYTES))
        if not sent:
            raise OSError(f"a file has become shorter while it was sent: {self.left} bytes are missing")
        self._offset += sent
        return sent


IDLE, HEAD, BODY, BUSY, WRITING, CLOSED = range(6)
_CHUNK = 16384  # bytes of one recv()
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpClient:
    """WORKER. One connection. `deadline_ns`, `watched_ns`, `entry`: for deadlines.Deadlines, on the reactor's clock."""

    __slots__ = (
        "_call", "_incoming", "_mask", "_out", "_reactor", "_since_ns", "_site", "_sock",
        "deadline_ns", "entry", "fd", "peer", "state", "watched_ns",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, sock: socket.socket, peer: WsgiPeer) -> None:
        self._reactor = reactor
        self._site = reactor.site
        self._sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.state = IDLE
        self._incoming = Incoming(reactor.site.limits, reactor.site.fields)
        self._call: WsgiCall | None = None
        self._out: Outgoing | None = None  # what the socket did not take yet
        self._since_ns = 0  # when the body that is arriving began
        self._mask: int = select.EPOLLIN
        self.deadline_ns = reactor.now_ns + reactor.site.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None

    def ready(self, mask: int) -> None:
        """Its socket has something to say."""
        if self.state > BODY:
            self._ready_later(mask)
            return
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        self._reactor.bytes_in += len(data)
        try:
            whole = self._incoming.feed(data)
        except OSError as error:  # no room on the disk for its body
            self._site.complain(error, self.peer)
            whole = Refusal(503, f"the body cannot be kept: {error.strerror}"), None
        if whole:
            self._begin(whole)
        else:
            self._await()

    def _ready_later(self, mask: int) -> None:
        """Not for input, which is not wanted now."""
        if mask & (select.EPOLLHUP | select.EPOLLERR) and self.state != CLOSED:
            self._lost()
        elif self.state == WRITING:
            self._flush()
        elif self.state == BUSY:
            self._watch(0)

    def go_on(self) -> None:
        """Its turn again: the next part of the response, or the next request."""
        if self._call is None and self.state != CLOSED:
            self._begin(self._incoming.take())
        else:
            self._step()

    def expire(self) -> None:
        """Its deadline has passed."""
        if self.state == WRITING:
            self._site.late()
        if self.state in (HEAD, BODY):
            late = "head" if self.state == HEAD else "body"
            self._begin((Refusal(408, f"its {late} did not come in time"), None))
        elif self.state != BUSY:
            self.close()

    def hurry(self) -> None:
        """The worker retires: wait no longer for a first request than for a next one, and let responses say it."""
        if self.state == IDLE:
            self._until(min(self.deadline_ns, self._reactor.now_ns + self._site.keep_alive_ns))
        elif self._call is not None and not self._call.status:
            self._call.keep_alive = False

    # --- bytes in

    def _await(self) -> None:
        """Nothing is to be answered now: wait for the rest of a request, or for the next one."""
        incoming = self._incoming
        if incoming.ended:
            self.close()
        elif incoming.reading is not None:
            if incoming.continues and not self._say_continue():
                return
            if self.state != BODY:
                self.state = BODY
                self._since_ns = self._reactor.now_ns
            self._until(self._site.deadline_ns(self._since_ns, incoming.received, self._reactor.now_ns))
        elif self.state != HEAD and incoming.in_head:
            self.state = HEAD
            self._until(self._reactor.now_ns + self._site.header_ns)

    def _say_continue(self) -> bool:
        self._incoming.continues = False
        try:
            self._sock.send(_CONTINUE)
        except OSError as error:
            self._lost(error)
        return self.state != CLOSED

    # --- the application

    def _begin(self, whole: Whole) -> None:
        """Answer a request."""
        request, body = whole
        self.state, self.deadline_ns = BUSY, NEVER
        if type(request) is Request:
            self._call = self._site.call(self.peer, request, body)
            self._step()
        else:
            assert type(request) is Refusal
            self._call = None
            self._send(self._site.refuse(self.peer, request))

    def _step(self) -> None:
        """Have the application go on: here, or on a thread of the pool."""
        if (row := self._site.row) is not None:
            self.stepped(self.step(row))
        else:
            self._reactor.hand_out(self)

    def step(self, row: Row) -> bytes | FilePart:
        """Run the application until it has something to send."""
        assert self._call is not None
        act = self._site.run if self.state != CLOSED else self._site.abandon  # the client may have left meanwhile
        return act(self.peer, self._call, row)

    def stepped(self, part: bytes | FilePart) -> None:
        """In the loop: here is what `step` gave."""
        if self.state == CLOSED:
            self._end_call()
            return
        self.state = WRITING
        self._send(part)

    def _end_call(self) -> None:
        """Let the application close the response that nobody reads to its end."""
        if self._call is not None and not self._call.done:
            self._step()

    # --- bytes out

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
            self._reactor.bytes_out += sent
            if sent == len(part):
                self._sent_all()
                return
            part = part[sent:]
        self._out = Outgoing(self._sock, part, self._reactor.now_ns)
        self.state = WRITING
        self._watch(select.EPOLLOUT)
        self._flush()

    def _flush(self) -> None:
        """The client may have read some: send on."""
        assert self._out is not None
        try:
            self._reactor.bytes_out += self._out.flush()
        except OSError as error:
            self._lost(error)
            return
        if self._out.left:
            self._until(self._site.deadline_ns(self._out.since_ns, self._out.moved, self._reactor.now_ns))
        else:
            self._out = None
            self._sent_all()

    def _sent_all(self) -> None:
        """All that there was is with the kernel: go on with this response, with the next request, or end."""
        call, incoming = self._call, self._incoming
        if call is None or (call.done and not call.keep_alive):
            self._finish(call)
            return
        if call.done:
            self._call = None
        if not call.done or incoming.waiting:
            self.state, self.deadline_ns = BUSY, NEVER
            self._reactor.again(self)
            return
        self.state = IDLE
        self.deadline_ns = deadline_ns = self._reactor.now_ns + self._site.keep_alive_ns
        if deadline_ns < self.watched_ns:
            self._reactor.deadlines.watch(self)
        if self._mask != select.EPOLLIN:
            self._watch(select.EPOLLIN)
        if not incoming.quiet:
            self._await()

    # --- the end

    def _finish(self, call: WsgiCall | None) -> None:
        """The last response is with the kernel, or as much of it as there will be."""
        try:
            if call and call.aborted and not call.framed:
                reset_at_close(self._sock)  # its end would look like the body's
            more = call is None or call.request.keep_alive or unread(self._sock)
        except OSError:
            more = False
        if self._incoming.ended or not more or (call and call.aborted):
            self.close()
        else:
            self._part()

    def _part(self) -> None:
        """Close, but so that the client can read its last response, whatever it still sends."""
        try:
            lingering = LingeringClose(self._sock, self._reactor.now_ns, self._reactor.forget)
        except OSError:
            self.close()  # reset meanwhile: nobody reads it
            return
        self.state, self.deadline_ns = CLOSED, NEVER
        self._incoming.close()
        self._watch(select.EPOLLIN)
        self._reactor.hold(lingering)

    def _lost(self, error: OSError | None = None) -> None:
        """The client left in the midst of something, or is treated as if it had."""
        if isinstance(error, PlainHttpError):
            self._part()
            return
        if error is not None and error.errno not in CLIENT_GONE:
            self._site.complain(error, self.peer)
        if self.state != IDLE:
            self._reactor.lost()
        self.close()

    def close(self) -> None:
        """Close at once; the application is told if it still has the request."""
        running, self.state = self.state == BUSY, CLOSED
        self._incoming.close()
        self._out = None
        self._reactor.forget(self)
        self._sock.close()
        if not running:
            self._end_call()

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._reactor.watch(self, mask)

    def _until(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        if deadline_ns < self.watched_ns:
            self._reactor.deadlines.watch(self)
