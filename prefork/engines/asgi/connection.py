"""WORKER. One HTTP connection of an asyncio worker: bytes in, requests in order, responses out.

One exchange at a time. What the client sends meanwhile waits (inflow.py), and the client is not read from while
anything does, or while much of a body waits for the application. But it is read from during an exchange: else nobody
would notice that it leaves.

Each wait for the client has its deadline: for a request's head, for its body, for it to read a response, for the next
request. How long a body or a response may take grows with what has moved of it (HttpSite.deadline_ns).
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.engines.aio.waiting import Bell
from prefork.engines.asgi.phases import Outflow, Parting, reset, sends_on
from prefork.engines.asgi.request import ClientDisconnected, Exchange
from prefork.engines.timers import NEVER
from prefork.http.head import Request
from prefork.http.limits import Refusal
from prefork.http.parser import END, Event, RequestParser

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.asgi.app import AsgiPeer, AsgiSite


# --- What an ASGI application is told of a connection's TLS (the extension `tls` of its scopes).


_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}  # RFC 8446 4.1.2, as ASGI wants them


def tls_facts(transport: asyncio.BaseTransport) -> dict[str, Any]:
    """Return them. Clients are not asked for certificates, so nothing is said of these."""
    ssl_object = transport.get_extra_info("ssl_object")
    name = ssl_object.cipher()[0]
    suites = [cipher["id"] & 0xFFFF for cipher in ssl_object.context.get_ciphers() if cipher["name"] == name]
    return {
        "server_cert": None,
        "client_cert_chain": [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(ssl_object.version()),
        "cipher_suite": suites[0] if suites else None,
    }


# --- What a client has sent and nobody has taken yet: events in their order, and bytes that are not understood.
#
# Bytes are understood a chunk at a time, and only when all events before them were taken: each chunk may be full of
# requests, and then costs many times its size.


_CHUNK = 16384


class Inflow:
    """WORKER. `in_head`: what was understood last is the beginning of a head."""

    __slots__ = ("_events", "_parser", "_raw", "in_head")

    def __init__(self, site: AsgiSite) -> None:
        self._parser = RequestParser(site.limits, site.fields, upgrades=True)
        self._events: deque[Event] = deque()
        self._raw = b""
        self.in_head = False

    @property
    def waiting(self) -> bool:
        """Whether something was not taken."""
        return bool(self._events or self._raw)

    @property
    def between(self) -> bool:
        """Whether nothing of a next request has come."""
        return self._parser.idle and not self._raw

    def feed(self, data: bytes, *, free: bool) -> Request | None:
        """Take what has come. Returns a request that came whole and alone, if one is wanted (`free`)."""
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
        """The next event, if there is one."""
        while not self._events:
            if not self._raw:
                self.in_head = not self._parser.idle
                return None
            piece, self._raw = self._raw[:_CHUNK], self._raw[_CHUNK:]
            self._events.extend(self._parser.feed(piece))
        return self._events.popleft()

    def put_back(self, event: Event) -> None:
        """Its turn has not come."""
        self._events.appendleft(event)

    def eof(self) -> list[Event]:
        """The client sends no more; see RequestParser."""
        return self._parser.eof()

    def detach(self) -> bytes:
        """Give up, and return what is not understood: it is of another protocol."""
        rest, self._raw = self._parser.detach() + self._raw, b""
        self._events.clear()
        return rest


_BODY_BYTES = 65536  # of a body that wait for the application before the client has to wait


class HttpConnection(asyncio.Protocol):
    """WORKER. `paused`: the client has to read first. `deadline_ns` and so on: for deadlines.Deadlines."""

    __slots__ = (
        "_drained", "_ended", "_exchange", "_inflow", "_listener", "_outflow", "_over", "_pulse", "_stalled",
        "_transport", "deadline_ns", "entry", "paused", "peer", "site", "watched_ns",
    )  # fmt: skip
    _transport: Any
    _outflow: Outflow
    peer: AsgiPeer

    def __init__(self, site: AsgiSite, listener: Listener, peer: AsgiPeer | None = None) -> None:
        """`peer`: who it is, if a proxy has said so."""
        if peer is not None:
            self.peer = peer
        self.site, self._pulse = site, site.pulse
        self._listener = listener
        self._inflow = Inflow(site)
        self._exchange: Exchange | None = None
        # The client sends no more; it is not read from; the connection is no longer this one's.
        self._ended = self._stalled = self._over = False
        self._drained = Bell()
        self.paused = False
        self.deadline_ns = self.watched_ns = NEVER
        self.entry: list[Any] | None = None

    # --- from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        if not self._pulse.on:
            self._pulse.begin()
        self._transport = transport
        site = self.site
        self._outflow = Outflow(site, transport)
        if not hasattr(self, "peer"):
            self.peer = site.peer(self._listener, transport.get_extra_info("peername") or ("", 0))  # or it has left
        if site.secure:
            self.peer.told.secure(tls_facts(transport))
        site.crowd.join(self)
        self._until(monotonic_ns() + site.header_ns)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        pulse = self._pulse
        if not pulse.on:
            pulse.begin()
        pulse.bytes_in += len(data)
        request = self._inflow.feed(data, free=self._exchange is None and not self.paused)
        if request is not None:
            self._begin(request)
        else:
            self._advance()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. The client may still read."""
        self._ended = True
        exchange = self._exchange
        if exchange is not None and (not exchange.body_open or self._inflow.waiting):
            exchange.hang_up()
            return not self.site.secure  # under TLS the loop closes a connection whose client sends no more
        for event in self._inflow.eof():
            self._take(event)
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lose()
            self.site.lost(exchange, late=self._outflow.late)
        elif not self._over and (self._outflow.late or not self._inflow.between):
            self.site.lost(late=self._outflow.late)
        self._leave()
        self.site.crowd.leave(self)
        self.resume_writing()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.paused = True
        self._until(self._outflow.begin(monotonic_ns()))

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.paused = False
        self._outflow.end()
        self._drained.ring()
        if self._exchange is not None:
            self._bound_body()
        elif not self._over:
            self._go_on(monotonic_ns())

    # --- from the exchange

    def write(self, data: bytes) -> None:
        """Send, or keep what the client has no room for."""
        self._pulse.bytes_out += len(data)
        if not (transport := self._transport).is_closing():  # as it is once the client has left
            transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has read enough. Raises ClientDisconnected if it has left."""
        await self._drained.heard()
        if self._exchange is None:
            raise ClientDisconnected("the client has left")

    def flow(self) -> None:
        """Read from the client, or do not, as what waits here has it."""
        exchange = self._exchange
        body = exchange.body if exchange is not None else None
        stalled = bool(self._inflow.waiting or (body is not None and body.buffered > _BODY_BYTES))
        if stalled != self._stalled and not self._over:
            self._stalled = stalled
            if stalled:
                self._transport.pause_reading()
            else:
                if body is not None:
                    body.began_ns = monotonic_ns()  # its client could not send meanwhile
                self._transport.resume_reading()
            self._bound_body()

    def finished(self, exchange: Exchange, now_ns: int) -> None:
        """The response is complete, or as much of it as there will be: go on with the next request, or end."""
        if exchange is not self._exchange:
            return
        self._exchange = None
        response = exchange.response
        if response.aborted or not response.keep_alive or self._ended or exchange.body_open:
            if response.aborted and not response.framed:
                reset(self._transport)
            else:
                more = exchange.body_open or exchange.request.keep_alive or sends_on(self._transport)
                self._end(linger=more and not self._ended and not response.aborted)
        else:
            self._go_on(now_ns)

    # --- inside

    def _go_on(self, now_ns: int) -> None:
        """Take the next request, or wait for it."""
        if self._inflow.waiting:
            self._advance()
        elif not self.paused:
            if self._stalled:
                self.flow()
            self._until(now_ns + (self.site.header_ns if self._inflow.in_head else self.site.keep_alive_ns))

    def _begin(self, request: Request) -> None:
        """Answer a request."""
        site = self.site
        self.deadline_ns = NEVER
        scope = self.peer.told.of(request, site.state)
        if self.peer.trusted:
            site.see_through(self.peer, request, scope)
        self._exchange = exchange = Exchange(self, request, scope)
        if site.draining:
            exchange.response.keep_alive = False
        site.running[exchange] = site.task(exchange.run())

    def _advance(self) -> None:
        """Take of what has come as much as can be taken now."""
        inflow = self._inflow
        was_in_head = inflow.in_head
        while event := inflow.take():
            if not self._take(event):
                inflow.put_back(event)
                break
        if self._over:
            return
        self.flow()
        if inflow.in_head and not was_in_head and self._exchange is None:
            self._until(monotonic_ns() + self.site.header_ns)

    def _take(self, event: Event) -> bool:
        """Act on one event; False if its turn has not come: it stays the next one."""
        exchange = self._exchange
        if type(event) is Refusal:
            if exchange is not None and not exchange.body_open:
                return False
            self._refuse(event)
        elif exchange is None:
            if self.paused:
                return False  # who does not read responses gets no more of them
            if type(event) is Request:
                self._begin_any(event)
        elif exchange.body is None or type(event) is Request:
            return False
        elif type(event) is bytes:
            exchange.body.feed(event)
            self._bound_body()
        elif event is END:
            exchange.body.end()
            self._bound_body()
        return True

    def _begin_any(self, request: Request) -> None:
        if request.upgrade:
            self._leave()
            self.site.upgrade(self, self._transport, request, self._inflow.detach())
        else:
            self._begin(request)
            self._bound_body()

    def _refuse(self, refusal: Refusal) -> None:
        """What came is no request, or not the body of one: say so, if that can still be said, and end."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lose()
            if exchange.response.begun:
                self.site.lost(exchange)
                self._leave()
                reset(self._transport)
                return
        self.write(self.site.refuse(self.peer, refusal))
        self._end(linger=True)

    def _end(self, *, linger: bool) -> None:
        """The last response is on its way, and nobody is waited for any more but to read it."""
        self._leave()
        Parting(self.site, self._transport, self, linger=linger)

    def _leave(self) -> None:
        """Something else is to stand for the connection."""
        self.site.timekeeper.forget(self)
        self._over = True

    # --- deadlines

    def expire(self) -> None:
        """The deadline has passed."""
        now_ns = monotonic_ns()
        if deadline_ns := self._outflow.look(now_ns):
            if deadline_ns > now_ns:
                self._until(deadline_ns)
            else:
                self.abort()
        elif self._exchange is not None or not self._inflow.between:
            what = "head" if self._exchange is None else "body"
            self._refuse(Refusal(408, f"its {what} did not come in time"))
        else:
            self._end(linger=False)

    def retire(self) -> None:
        """The worker retires: wait no longer for a first request than for a next one."""
        if self._exchange is None and self._inflow.between:
            self._until(min(self.deadline_ns, monotonic_ns() + self.site.keep_alive_ns))

    def _bound_body(self) -> None:
        """The client has to send the rest of its body, unless it is not read from, or has to read first."""
        if self.paused:
            return
        exchange = self._exchange
        body = exchange.body if exchange is not None else None
        if body is None or not body.open or self._stalled:
            self.deadline_ns = NEVER
        else:
            self._until(self.site.deadline_ns(body.began_ns, body.received, monotonic_ns()))

    def _until(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        if deadline_ns < self.watched_ns:
            self.site.timekeeper.watch(self)

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()
