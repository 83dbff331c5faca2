"""WORKER. One WebSocket of an asyncio worker: the `receive` and `send` of an ASGI application, from its handshake on.

    CONNECTING -> (denied, or) OPEN -> ENDING -> the connection is lost

CONNECTING until the application accepts or denies; the client is read from until it says something, so that it cannot
leave unnoticed. OPEN while messages go both ways. ENDING when a Close was sent or has come: the application is told,
and the client has a moment to say Close as well (RFC 6455 7.1.1).

A client that has been silent for --ws-ping gets a Ping, and has as long again to say anything at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.engines.aio.waiting import Bell
from prefork.engines.asgi.phases import TURN_BYTES, Parting, held, reset
from prefork.engines.asgi.request import ClientDisconnected, tells_of_leaving
from prefork.engines.timers import NEVER
from prefork.http.asgi import AsgiResponse, Message
from prefork.http.response import ResponseError
from prefork.http.websocket import CLOSED, OPEN, WebSocket
from prefork.http.websocket_close import ABNORMAL, INTERNAL_ERROR, NORMAL, Closed

if TYPE_CHECKING:
    from prefork.engines.asgi.app import AsgiPeer, AsgiSite
    from prefork.http.head import Request
    from prefork.http.websocket_handshake import Opening


# --- What a WebSocket's client has sent and the application has not taken, and how the WebSocket ended.


_MOST_MESSAGES = 32
_MOST_BYTES = 65536


class SocketInbox:
    """WORKER. `news` rings with each message, and at the end.

    `closed`: how it ended, None as long as it has not; the first reason is what the application hears.
    """

    __slots__ = ("_asked", "_bytes", "_messages", "closed", "news")

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self.news = Bell()
        self._asked = False  # the application has had websocket.connect
        self.closed: Closed | None = None

    @property
    def full(self) -> bool:
        """Whether the client has to wait."""
        return len(self._messages) > _MOST_MESSAGES or self._bytes > _MOST_BYTES

    def hear(self, ws: WebSocket, data: bytes) -> Closed | None:
        """Take what the client says, and what was left of it before, as far as there is room. Returns its end."""
        while True:
            for event in ws.feed(data):
                if isinstance(event, Closed):
                    return event
                self._messages.append(event)
                self._bytes += len(event)
                self.news.ring()
            if not ws.behind or (self.full and ws.state == OPEN):
                return None
            data = b""

    def close(self, closed: Closed) -> None:
        """Nothing more will come."""
        if self.closed is None:
            self.closed = closed
            self.news.ring()

    def take(self) -> dict[str, Any] | None:
        """ASGI's next event; None if there is nothing new."""
        if self._messages and self._asked:
            message = self._messages.popleft()
            self._bytes -= len(message)
            return {"type": "websocket.receive", "text" if type(message) is str else "bytes": message}
        if not self._asked:
            self._asked = True
            return {"type": "websocket.connect"}
        if self.closed is None:
            return None
        return {"type": "websocket.disconnect", "code": self.closed.code, "reason": self.closed.reason}


_CLOSE_NS = 2_000_000_000  # for the client's Close


class WebSocketConnection(asyncio.Protocol):
    """WORKER. `deadline_ns` and so on: for deadlines.Deadlines."""

    __slots__ = (
        "_drained", "_ending", "_heard", "_inbox", "_opening", "_paused", "_pinged", "_pulse", "_request", "_response",
        "_rest", "_sent", "_site", "_stalled", "_transport", "_unread", "_ws", "began_ns", "deadline_ns", "entry",
        "gone", "peer", "watched_ns",
    )  # fmt: skip

    def __init__(
        self, site: AsgiSite, transport: Any, peer: AsgiPeer, request: Request, opening: Opening, rest: bytes
    ) -> None:
        """Take over a connection; `rest`: what came behind the handshake's request."""
        self._site, self._pulse = site, site.pulse
        self._transport = transport
        self._request = request
        self._opening, self._rest = opening, rest
        self._inbox = SocketInbox()
        self._ws: WebSocket | None = None  # once the application has accepted
        self._response: AsgiResponse | None = None  # a denial of the application's own
        self._ending = False  # a Close was sent or has come, or there will be no WebSocket
        self._stalled = True  # the client is not read from
        self._paused = False  # the client has to read first
        self._unread = 0  # bytes that it had not read at the last look
        self._heard = True  # something came since the last look
        self._pinged = False  # and a Ping asks for it
        self._drained = Bell()
        self._sent = 0  # bytes of messages
        self.peer = peer
        self.began_ns = monotonic_ns()
        self.gone = False
        self.deadline_ns = self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        transport.pause_reading()
        self._flow()

    @property
    def text(self) -> str:
        """Whose WebSocket it is, and which: for people."""
        return f"{self.peer.text} WebSocket {self._request.target.decode('ascii')}"

    async def run(self, scope: dict[str, Any]) -> None:
        """Call the application."""
        site, code = self._site, NORMAL
        try:
            await site.app(scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            if not (self._ended and tells_of_leaving(error)):
                site.blame(error, self.peer)
            code = INTERNAL_ERROR
        else:
            if self._ws is None and not self._ended:
                site.blame(ResponseError("the application returned without an answer to the handshake"), self.peer)
        if not self._ended:
            self._close(code, "", denial=500)
        del site.sockets[self]

    # --- for the application

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next message, or that the WebSocket has ended."""
        while (event := self._inbox.take()) is None:
            await self._inbox.news.heard()
        if self._stalled:
            if self._ws is not None and self._ws.behind and not self._inbox.full:
                self._take(self._ws, b"")
            self._flow()
        return event

    async def send(self, message: Message) -> None:
        """ASGI: a message, or a step of the handshake. Raises ClientDisconnected and ResponseError."""
        if self._ended:
            raise ClientDisconnected("the WebSocket has ended")
        what, ws = message["type"], self._ws
        if what == "websocket.send" and ws is not None:
            text = message.get("text")
            data = ws.text(text) if text is not None else ws.binary(message["bytes"])
            self._sent += len(data)
            self._write(data)
            if self._paused or self._pulse.bytes_out > TURN_BYTES:
                await self._drain()
        elif what == "websocket.close":
            self._close(int(message.get("code") or NORMAL), message.get("reason") or "")
        elif ws is None and what == "websocket.accept" and self._response is None:
            self._accept(message.get("subprotocol"), list(message.get("headers") or ()))
        elif ws is None and what in ("websocket.http.response.start", "websocket.http.response.body"):
            self._deny({**message, "type": what.removeprefix("websocket.")})
            await self._drain()
        else:
            raise ResponseError(f"a message of type {what!r} cannot be sent {'after' if ws else 'in'} the handshake")

    # --- from the loop

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        pulse = self._pulse
        if not pulse.on:
            pulse.begin()
        pulse.bytes_in += len(data)
        self._heard = True
        if self._ws is not None:
            self._take(self._ws, data)
        else:
            self._rest += data
            self._flow()

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.gone = True
        if not self._ending:
            self._site.lost()
        self._end(Closed(ABNORMAL, ""))
        self._drained.ring()
        self._site.timekeeper.forget(self)
        self._site.crowd.leave(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = True
        self._unread = 0  # whether it reads shows from here on
        self._flow()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = False
        self._drained.ring()
        self._flow()

    def expire(self) -> None:
        """Time to look after the client."""
        before, self._unread = self._unread, held(self._transport)
        self._heard |= self._stalled  # who is not read from cannot be heard
        if self._ending and self._unread < before:
            self._watch(_CLOSE_NS)  # the Close stands behind what it still reads
        elif self._ending or (self._paused and 0 < before <= self._unread) or (self._pinged and not self._heard):
            self.abort()
        else:
            self._pinged = self._site.pings and not self._heard and self._ws is not None
            if self._pinged and self._ws is not None:
                self._write(self._ws.ping())
            self._heard = False
            self._watch(self._site.look_ns)

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def retire(self) -> None:
        """The worker retires: say so to the client and to the application, once the handshake is answered."""
        if self._ws is not None and not self._ending:
            self._close(self._site.retire_code, "")

    def cut(self) -> None:
        """The application was given long enough."""
        if not self._ending:
            self._refuse(503)

    # --- inside

    def _accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        site = self._site
        head, ws = self._opening.accept(subprotocol, headers, site.stamp, max_message_bytes=site.max_message)
        site.count_opening(self.began_ns)
        self._ws = ws
        self._write(head)
        rest, self._rest = self._rest, b""
        self._take(ws, rest)
        self._flow()
        if not self._ending:
            self._watch(site.look_ns)
        if site.retire_code:
            self.retire()

    def _take(self, ws: WebSocket, data: bytes) -> None:
        if closed := self._inbox.hear(ws, data):
            self._end(closed)
        if ws.owed:
            self._write(ws.outgoing())
        if ws.state == CLOSED:
            self._part()
        elif self._inbox.full:
            self._flow()

    def _flow(self) -> None:
        """Read from the client, or do not, as what waits here has it."""
        stalled = not self._ending and (bool(self._rest) or self._inbox.full or self._paused)
        if stalled != self._stalled and not self.gone:
            self._stalled = stalled
            if stalled:
                self._transport.pause_reading()
            else:
                self._heard = True
                self._transport.resume_reading()

    def _write(self, data: bytes) -> None:
        self._pulse.bytes_out += len(data)
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def _ended(self) -> bool:
        return self._ending or bool(self._transport.is_closing())

    async def _drain(self) -> None:
        """Let the client, or the others, have their turn."""
        if self._paused and not self._ending:
            await self._drained.heard()
        else:
            await self._site.pause()
        if self.gone:
            raise ClientDisconnected("the client has left")

    def _close(self, code: int, reason: str, *, denial: int = 403) -> None:
        """Say Close, or, before there is a WebSocket, that there will be none."""
        if self._ws is None:
            self._refuse(denial)
            return
        self._write(self._ws.close(code, reason))
        self._end(Closed(code, reason))
        self._unread = held(self._transport)
        self._watch(_CLOSE_NS)

    def _refuse(self, status: int) -> None:
        """Answer the handshake with an error, or break off an answer that has begun."""
        answer = self._site.deny(status, self.began_ns)
        self._end(Closed(ABNORMAL, ""), status)
        if self._response is not None and self._response.begun:
            reset(self._transport)
        else:
            self._write(answer)
            self._part()

    def _deny(self, message: Message) -> None:
        """Answer the handshake with a response of the application's (the extension websocket.http.response)."""
        if self._response is None:
            self._response = AsgiResponse(self._request)
            self._response.keep_alive = False
        data = self._response.take(message, self._site.stamp)
        if self._response.done:
            self._site.count_opening(self.began_ns)
        self._write(data)
        if self._response.done:
            self._end(Closed(ABNORMAL, ""), self._response.status)
            self._part()

    def _end(self, closed: Closed, status: int = 0) -> None:
        """It has ended. `status`: of the answer to a handshake that came to nothing."""
        if not self._ending:
            self._ending = True
            self._site.tell_socket(self.peer, self._request, 101 if self._ws else status, self._sent, self.began_ns)
        self._inbox.close(closed)
        self._flow()

    def _part(self) -> None:
        """All has been said: the client has a moment to read it."""
        self._site.timekeeper.forget(self)
        self._drained.ring()  # it would not hear of the client's reading any more
        Parting(self._site, self._transport, self, linger=True)

    def _watch(self, in_ns: int) -> None:
        self.deadline_ns = monotonic_ns() + in_ns
        if self.deadline_ns < self.watched_ns:
            self._site.timekeeper.watch(self)
