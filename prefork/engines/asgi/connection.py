"""WORKER. One HTTP connection of an asyncio worker: bytes in, requests in order, responses out.

There is one request/response cycle at a time (request.py). What the client sends meanwhile waits in an EventQueue. The
client is not read from while anything waits there, or while much of a body waits for the application. Otherwise it is
read from during a cycle as well, because that is how its leaving is noticed.

Each wait for the client has a deadline: for a request's head, for its body, for the client to read a response, for the
next request. The time for a body or a response grows with the bytes that have moved (HttpContext.deadline_ns).
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.engines.aio.connections import has_unread_input
from prefork.engines.aio.waiting import Notify
from prefork.engines.asgi.phases import ReadProgress, close_after_response
from prefork.engines.asgi.request import ClientDisconnected, LimitedCycle, RequestResponseCycle
from prefork.engines.asgi.websocket import begin_websocket
from prefork.engines.handover import STAYS_NS
from prefork.engines.linger import cut, end_sending
from prefork.engines.timers import NEVER
from prefork.http.head import Request
from prefork.http.limits import Refusal
from prefork.http.parser import END, Event, RequestParser

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.core.tls import TlsFacts
    from prefork.engines.asgi.app import AsgiApp, AsgiPeer
    from prefork.runtime.transfer import TransferMessage

_CHUNK = 16384  # bytes that are parsed at a time
_BODY_BYTES = 65536  # of a body that wait for the application before the client has to wait
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}  # RFC 8446 4.1.2, as ASGI wants them


def extension_of(tls: TlsFacts) -> dict[str, Any]:
    """Return the extension `tls` of a connection's scopes. A certificate that is not accepted ends the handshake."""
    return {
        "server_cert": tls.server_cert,
        "client_cert_chain": tls.client_chain,
        "client_cert_name": tls.subject if tls.client_chain else None,
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(tls.version),
        "cipher_suite": tls.suite,
    }


class EventQueue:
    """WORKER. Parsed events and unparsed bytes of one connection. `in_head`: the last bytes parsed begin a head.

    Bytes are parsed a chunk at a time, and only when all events before them were taken: a chunk may be full of
    requests, and their events take many times its size.
    """

    __slots__ = ("_events", "_parser", "_raw", "in_head")

    def __init__(self, app: AsgiApp) -> None:
        self._parser = RequestParser(app.context.limits, app.context.fields, upgrades=True)
        self._events: list[Event] = []  # few, as a chunk is small; an empty deque takes 760 bytes
        self._raw = b""
        self.in_head = False

    @property
    def waiting(self) -> bool:
        """Whether there are events or bytes."""
        return bool(self._events or self._raw)

    @property
    def between(self) -> bool:
        """Whether nothing of the next request has come."""
        return self._parser.idle and not self._raw

    def feed(self, data: bytes, *, free: bool) -> Request | None:
        """Add bytes. If `free`, and they are one whole request and nothing else, return it at once instead."""
        if self._raw or len(data) > _CHUNK:
            self._raw += data
            return None
        events = self._parser.feed(data)
        if free and len(events) == 1 and not self.in_head:
            request = events[0]
            if type(request) is Request and request.complete and not request.upgrade and self._parser.idle:
                return request  # the usual case, straight through
        self._events.extend(events)
        return None

    def take(self) -> Event | None:
        """Remove the next event and return it; None if there is none."""
        while not self._events:
            if not self._raw:
                self.in_head = not self._parser.idle
                return None
            piece, self._raw = self._raw[:_CHUNK], self._raw[_CHUNK:]
            self._events.extend(self._parser.feed(piece))
        return self._events.pop(0)

    def put_back(self, event: Event) -> None:
        """Make an event that was taken the next one again."""
        self._events.insert(0, event)

    def eof(self) -> list[Event]:
        """Note that the client sends no more; see RequestParser."""
        return self._parser.eof()

    def refusal(self, status: int, reason: str) -> Refusal:
        """Return the refusal of the request that is arriving, with what is known of it."""
        return self._parser.refusal(status, reason)

    def detach(self) -> bytes:
        """Return the unparsed bytes, which belong to another protocol, and forget the rest."""
        rest, self._raw = self._parser.detach() + self._raw, b""
        self._events.clear()
        return rest


class HttpConnection(asyncio.Protocol):
    """WORKER. `paused`: the client has to read before more is sent.

    `deadline_ns`, `watched_ns` and `entry` are for engines/timers.py.
    """

    __slots__ = (
        "_app",
        "_cycle",
        "_drained",
        "_eof",
        "_heartbeat",
        "_listener",
        "_over",
        "_progress",
        "_queue",
        "_stalled",
        "_transport",
        "deadline_ns",
        "entry",
        "paused",
        "peer",
        "stays_ns",
        "watched_ns",
    )
    _transport: Any
    _progress: ReadProgress
    peer: AsgiPeer

    def __init__(self, app: AsgiApp, listener: Listener | None, peer: AsgiPeer | None = None) -> None:
        """`peer`: None if the transport has to say who it is, at this listener."""
        if peer is not None:
            self.peer = peer
        self._app = app
        self._heartbeat = app.heartbeat
        self._listener = listener
        self._queue = EventQueue(app)
        self._cycle: RequestResponseCycle | None = None
        self._eof = False  # the client sends no more
        self._stalled = False  # the client is not read from
        self._over = False  # another object has taken over the connection
        self._drained: Notify | None = None  # made when the application first waits for its client
        self.paused = False
        self.deadline_ns = NEVER
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        self.stays_ns = 0  # until then it is not given away for evenness

    @classmethod
    def of_message(cls, app: AsgiApp, message: TransferMessage) -> HttpConnection:
        """Go on with a connection of another worker where that one has left it."""
        connection = cls(app, None, app.peers.of_message(message))
        connection.deadline_ns = message.since_ns + app.context.idle_ns(served=message.served)
        connection.stays_ns = message.sent_ns + STAYS_NS if message.evened else 0
        return connection

    # --- from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        if not self._heartbeat.awake:
            self._heartbeat.wake()
        self._transport = transport
        app = self._app
        self._progress = ReadProgress(app.context, transport)
        if not hasattr(self, "peer"):
            assert self._listener is not None
            self.peer = app.peers.of(self._listener, transport.get_extra_info("peername") or ("", 0))  # or it has left
        if app.tls:
            self.peer.app_view.secure(extension_of(app.tls.facts(transport.get_extra_info("ssl_object"))))
        app.connections.join(self)
        self._until(monotonic_ns() + app.context.header_ns if self.deadline_ns == NEVER else self.deadline_ns)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        heartbeat = self._heartbeat
        if not heartbeat.awake:
            heartbeat.wake()
        heartbeat.bytes_in += len(data)
        request = self._queue.feed(data, free=self._cycle is None and not self.paused)
        if request is not None:
            self._begin(request)
        else:
            self._advance()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. The client may still read."""
        self._eof = True
        cycle = self._cycle
        if cycle is not None and (not cycle.body_open or self._queue.waiting):
            cycle.hang_up()
            return not self._app.tls  # under TLS the loop closes a connection whose client sends no more
        for event in self._queue.eof():
            self._take(event)
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if not self._over:  # else it was cut, or given to another worker, for whom it must not be shut down
            end_sending(self._transport)
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.cut()
            self._app.abandon(cycle)
        if self._progress.late:
            self._app.log.count_late()
        elif cycle is not None or (not self._over and not self._queue.between):
            self._app.log.count_gone()
        self._leave()
        self._app.connections.leave(self)
        self.resume_writing()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.paused = True
        self._until(self._progress.begin(monotonic_ns()))

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.paused = False
        self._progress.end()
        if self._drained is not None:
            self._drained.set()
        if self._cycle is not None:
            self._bound_body()
        elif not self._over:
            self._go_on(monotonic_ns())

    # --- from the cycle (request.Connection)

    def write(self, data: bytes) -> None:
        """Send bytes; the transport keeps those for which the client has no room."""
        self._heartbeat.bytes_out += len(data)
        if not (transport := self._transport).is_closing():  # as it is once the client has left
            transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has read enough. Raises ClientDisconnected if it has left."""
        if self._drained is None:
            self._drained = Notify()
        await self._drained.wait()
        if self._cycle is None:
            raise ClientDisconnected("the client has left")

    def flow(self) -> None:
        """Read from the client, or stop while bytes or much of a body wait for the application."""
        cycle = self._cycle
        body = cycle.body if cycle is not None else None
        stalled = bool(self._queue.waiting or (body is not None and body.buffered > _BODY_BYTES))
        if stalled != self._stalled and not self._over:
            self._stalled = stalled
            if stalled:
                self._transport.pause_reading()
            else:
                if body is not None:
                    body.began_ns = monotonic_ns()  # its client could not send meanwhile
                self._transport.resume_reading()
            self._bound_body()

    def finished(self, cycle: RequestResponseCycle, now_ns: int) -> None:
        """Go on with the next request, or close: the response is complete, or has failed."""
        if cycle is not self._cycle:
            return
        self._cycle = None
        response = cycle.response
        if response.aborted or not response.keep_alive or self._eof or cycle.body_open:
            if response.aborted and not response.framed:
                cut(self._transport, complete=False)
            else:
                more = cycle.body_open or cycle.request.keep_alive or has_unread_input(self._transport)
                sends = cycle.body_open and response.framed
                self._close(linger=more and not self._eof and not response.aborted, sends=sends)
        else:
            self._go_on(now_ns)
            if now_ns >= self._app.look_ns:  # not where the loop goes on to write: it may be given away
                self._app.look(self, now_ns)

    # --- inside

    def _go_on(self, now_ns: int) -> None:
        """Take the next request, or wait for it."""
        if self._queue.waiting:
            self._advance()
        elif not self.paused:
            if self._stalled:
                self.flow()
            context = self._app.context
            self._until(now_ns + (context.header_ns if self._queue.in_head else context.keep_alive_ns))

    def _begin(self, request: Request) -> None:
        """Call the application with a request."""
        app = self._app
        peer = self.peer
        self.deadline_ns = NEVER
        scope = peer.app_view.of(request, app.state)
        if peer.trusted:
            app.apply_forwarded(peer, request, scope)
        cycle = (LimitedCycle if app.most_in_flight else RequestResponseCycle)(app, self, peer, request, scope)
        self._cycle = cycle
        if app.context.draining:
            cycle.response.keep_alive = False
        app.requests[cycle] = app.task(cycle.run())

    def _advance(self) -> None:
        """Handle as many events as can be handled now."""
        queue = self._queue
        was_in_head = queue.in_head
        while event := queue.take():
            if not self._take(event):
                queue.put_back(event)
                break
        if self._over:
            return
        self.flow()
        if queue.in_head and not was_in_head and self._cycle is None:
            self._until(monotonic_ns() + self._app.context.header_ns)

    def _take(self, event: Event) -> bool:
        """Handle one event; return False if it has to wait."""
        cycle = self._cycle
        if type(event) is Refusal:
            if cycle is not None and not cycle.body_open:
                return False
            self._refuse(event)
        elif cycle is None:
            if self.paused:
                return False  # the client does not read, so it gets no more responses
            if type(event) is Request:
                self._begin_any(event)
        elif cycle.body is None or type(event) is Request:
            return False
        elif type(event) is bytes:
            cycle.body.feed(event)
            self._bound_body()
        elif event is END:
            cycle.body.end()
            self._bound_body()
        return True

    def _begin_any(self, request: Request) -> None:
        if request.upgrade:
            self._leave()
            begin_websocket(self._app, self._transport, self, request, self._queue.detach())
        else:
            self._begin(request)
            self._bound_body()

    def _refuse(self, refusal: Refusal) -> None:
        """Close, and say why if a response can still say it: what came is no request, or not the body of one."""
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.cut()
            if cycle.response.begun:
                self._app.abandon(cycle)
                self._app.log.count_gone()
                self._leave()
                cut(self._transport, complete=False)
                return
        self.write(self._app.refuse(self.peer, refusal))
        self._close(linger=True, sends=cycle is not None or refusal.status == 413)

    def _close(self, *, linger: bool, sends: bool = False) -> None:
        """Close when the client has read the last response (phases.close_after_response)."""
        self._leave()
        close_after_response(self._app, self._transport, self, linger=linger, sends=sends)

    def _leave(self) -> None:
        """Stop acting on the connection."""
        self._app.timers.forget(self)
        self._over = True

    # --- deadlines

    def expire(self) -> None:
        """Act: the deadline has passed."""
        now_ns = monotonic_ns()
        if deadline_ns := self._progress.check(now_ns):
            if deadline_ns > now_ns:
                self._until(deadline_ns)
            else:
                self.abort()
        elif self._cycle is not None or not self._queue.between:
            what = "head" if self._cycle is None else "body"
            self._refuse(self._queue.refusal(408, f"its {what} did not come in time"))
        else:
            self._close(linger=False)

    @property
    def idle(self) -> bool:
        """Whether it is between two requests, nothing was read of the next one, and the client has all before it."""
        return (
            self._cycle is None
            and not self._queue.waiting
            and self._queue.between
            and not (self._over or self._eof or self._stalled or self._transport.is_closing())
            and not self._transport.get_write_buffer_size()
        )

    def since_ns(self, _now_ns: int = 0) -> int:
        """When the client was last served, or else accepted (CLOCK_MONOTONIC)."""
        return self.deadline_ns - self._app.context.idle_ns(served=self.peer.served)

    def has_input(self) -> bool:
        """Whether the client has sent something that was not read."""
        return has_unread_input(self._transport)

    def give(self, now_ns: int, *, evened: bool) -> bool:
        """Give the connection, which is idle, to another worker; False if nobody has room now."""
        app, transport = self._app, self._transport
        fd = transport.get_extra_info("socket").fileno()
        if app.handover is None or not app.handover.give(fd, self.peer, self.since_ns(now_ns), evened=evened):
            return False
        self._leave()
        app.connections.leave(self)
        transport.abort()  # closes this worker's descriptor, and no more
        return True

    def retire(self) -> None:
        """The worker retires and nobody takes its connections: answer the request as the last."""
        if self._cycle is not None:
            self._cycle.retire()

    def close(self) -> None:
        """Close the connection, which is idle, so that another may come at once."""
        self._leave()
        self._app.connections.leave(self)
        cut(self._transport)

    def _bound_body(self) -> None:
        """Set the deadline for the rest of a body; none while the client is not read from, or has to read first."""
        if self.paused:
            return
        cycle = self._cycle
        body = cycle.body if cycle is not None else None
        if body is None or not body.open or self._stalled:
            self.deadline_ns = NEVER
        else:
            self._until(self._app.context.deadline_ns(body.began_ns, body.received, monotonic_ns()))

    def _until(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        if deadline_ns < self.watched_ns:
            self._app.timers.watch(self)

    def abort(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        cut(self._transport, complete=self._cycle is None or self._cycle.response.framed)
