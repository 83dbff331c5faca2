"""WORKER. One WebSocket of an asyncio worker: the `receive` and `send` of an ASGI application, from its handshake on.

    CONNECTING -> (denied, or) OPEN -> (ANSWERING) -> ENDING -> the connection is lost

CONNECTING until the application accepts or denies; the client is read from until it sends something, because that is
how its leaving is noticed. OPEN while messages go both ways. ANSWERING when the client has closed, or broken the
protocol, behind messages that the application has not taken: it may answer them until it asks for more, for at most 2 s
(RFC 6455 5.5.1: a Close may be delayed until a message is sent). ENDING when a Close was sent or has come: the
application gets websocket.disconnect, and the client has 2 s to send its Close (RFC 6455 7.1.1).

A client that has been silent for --ws-ping gets a Ping, and has as long again to send anything at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from prefork.engines.aio.connections import ConnectionLike
from prefork.engines.aio.waiting import Notify
from prefork.engines.asgi.phases import TURN_BYTES, close_after_response, unsent
from prefork.engines.asgi.request import ClientDisconnected, tells_of_leaving
from prefork.engines.linger import cut, end_sending
from prefork.engines.timers import NEVER
from prefork.http.asgi import AsgiResponse, Message
from prefork.http.limits import Refusal
from prefork.http.response import ResponseError
from prefork.http.scope import of_websocket
from prefork.http.websocket import CLOSED, OPEN, WebSocket
from prefork.http.websocket_close import ABNORMAL, INTERNAL_ERROR, NORMAL, Closed
from prefork.http.websocket_handshake import handshake, refuse

if TYPE_CHECKING:
    from prefork.engines.asgi.app import AsgiApp, AsgiPeer
    from prefork.http.head import Request
    from prefork.http.websocket_handshake import Handshake


# The messages, and their bytes, that wait for the application before the client has to wait.
_MOST_MESSAGES = 32
_MOST_BYTES = 65536
_CLOSE_NS = 2_000_000_000  # for the client's Close


class ReceiveQueue:
    """WORKER. Messages that the application has not taken, and how the WebSocket ended.

    `changed` is set with each message, and at the end. `closed`: how it ended, by the first reason; None until then.
    """

    __slots__ = ("_asked", "_bytes", "_messages", "changed", "closed")

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self.changed = Notify()
        self._asked = False  # the application has had websocket.connect
        self.closed: Closed | None = None

    @property
    def full(self) -> bool:
        """Whether so much waits that the client is not read from."""
        return len(self._messages) > _MOST_MESSAGES or self._bytes > _MOST_BYTES

    @property
    def waiting(self) -> bool:
        """Whether there are messages."""
        return bool(self._messages)

    def feed(self, ws: WebSocket, data: bytes) -> Closed | None:
        """Parse bytes, and those left before, as far as there is room. Returns how the WebSocket ended, if it did."""
        while True:
            for event in ws.feed(data):
                if isinstance(event, Closed):
                    return event
                self._messages.append(event)
                self._bytes += len(event)
                self.changed.set()
            if not ws.behind or (self.full and ws.state == OPEN):
                return None
            data = b""

    def close(self, closed: Closed) -> None:
        """Note how the WebSocket ended."""
        if self.closed is None:
            self.closed = closed
            self.changed.set()

    def take(self) -> dict[str, Any] | None:
        """Return the next event for `receive`; None if there is nothing new."""
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


class WebSocketConnection(asyncio.Protocol):
    """WORKER. `deadline_ns`, `watched_ns` and `entry` are for engines/timers.py."""

    __slots__ = (
        "_app",
        "_drained",
        "_ending",
        "_heartbeat",
        "_inbox",
        "_last",
        "_opening",
        "_paused",
        "_pinged",
        "_received",
        "_request",
        "_response",
        "_rest",
        "_sent",
        "_stalled",
        "_transport",
        "_unsent",
        "_ws",
        "began_ns",
        "deadline_ns",
        "entry",
        "gone",
        "peer",
        "watched_ns",
    )

    def __init__(
        self, app: AsgiApp, transport: Any, peer: AsgiPeer, request: Request, opening: Handshake, rest: bytes
    ) -> None:
        """Take over a connection; `rest`: what came behind the handshake's request."""
        self._app = app
        self._heartbeat = app.heartbeat
        self._transport = transport
        self._request = request
        self._opening = opening
        self._rest = rest
        self._inbox = ReceiveQueue()
        self._ws: WebSocket | None = None  # once the application has accepted
        self._response: AsgiResponse | None = None  # a denial of the application's own
        self._last = False  # a Close is owed, but messages that came before it are still to be answered
        self._ending = False  # a Close was sent or has come, or there will be no WebSocket
        self._stalled = True  # the client is not read from
        self._paused = False  # the client has to read first
        self._unsent = 0  # bytes that it had not read at the last check
        self._received = True  # something came since the last check
        self._pinged = False  # nothing came, and a Ping was sent
        self._drained = Notify()
        self._sent = 0  # bytes of messages
        self.peer = peer
        self.began_ns = monotonic_ns()
        self.gone = False
        self.deadline_ns = NEVER
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        transport.pause_reading()
        self._flow()

    @property
    def text(self) -> str:
        """The client's address and the target."""
        return f"{self.peer.text} WebSocket {self._request.target.decode('ascii')}"

    async def run(self, scope: dict[str, Any]) -> None:
        """Call the application."""
        app = self._app
        self.began_ns = monotonic_ns()  # not before: other calls of the loop may come first
        code = NORMAL
        try:
            await app.target(scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            if not (self._ended and tells_of_leaving(error)):
                app.report_failure(error, self.peer, self._request)
            code = INTERNAL_ERROR
        else:
            if self._ws is None and not self._ended:
                fault = ResponseError("the application returned without an answer to the handshake")
                app.report_failure(fault, self.peer, self._request)
        if not self._ended:
            self._close(code, "", denial=500)
        del app.sockets[self]

    # --- for the application

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next message, or that the WebSocket has ended."""
        while (event := self._inbox.take()) is None:
            await self._inbox.changed.wait()
        if self._last and event["type"] == "websocket.disconnect":
            self._end_last()
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
            data = ws.text(text) if text is not None else ws.binary(_bytes_of(message))
            self._sent += len(data)
            self._write(data)
            if self._paused or self._heartbeat.bytes_out > TURN_BYTES:
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
        heartbeat = self._heartbeat
        if not heartbeat.awake:
            heartbeat.wake()
        heartbeat.bytes_in += len(data)
        self._received = True
        if self._last:
            return
        if self._ws is not None:
            self._take(self._ws, data)
        else:
            self._rest += data
            self._flow()

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.gone = True
        end_sending(self._transport)
        if not (self._ending or self._last):
            self._app.log.count_gone()
        self._end(Closed(ABNORMAL, ""))
        self._drained.set()
        self._app.timers.forget(self)
        self._app.connections.leave(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = True
        self._unsent = 0  # forget the last check: progress counts from now on
        self._flow()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = False
        self._drained.set()
        self._flow()

    def expire(self) -> None:
        """Check whether the client still reads and sends: the deadline has passed."""
        if self._last and not self._ending:
            self._end_last()
            return
        before, self._unsent = self._unsent, unsent(self._transport)
        self._received |= self._stalled  # the client is not read from
        if self._ending and self._unsent < before:
            self._watch(_CLOSE_NS)  # the Close stands behind what it still reads
        elif self._ending or (self._paused and 0 < before <= self._unsent) or (self._pinged and not self._received):
            self.abort()
        else:
            self._pinged = self._app.pings and not self._received and self._ws is not None
            if self._pinged and self._ws is not None:
                self._write(self._ws.ping())
            self._received = False
            self._watch(self._app.check_ns)

    def abort(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        cut(self._transport)

    def retire(self) -> None:
        """Close the WebSocket, once its handshake is answered: the worker retires."""
        if self._ws is not None and not self._ending:
            self._close(self._app.retire_code, "")

    def cut(self) -> None:
        """Refuse the handshake, or break it off: the graceful timeout is over."""
        if not self._ending:
            self._refuse(503)

    # --- inside

    def _accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        app = self._app
        head, ws = self._opening.accept(subprotocol, headers, app.context.stamp, max_message_bytes=app.max_message)
        app.count_handshake(self.began_ns)
        self._ws = ws
        self._write(head)
        rest, self._rest = self._rest, b""
        self._take(ws, rest)
        self._flow()
        if not (self._ending or self._last):
            self._watch(app.check_ns)
        if app.retire_code:
            self.retire()

    def _take(self, ws: WebSocket, data: bytes) -> None:
        if closed := self._inbox.feed(ws, data):
            if self._inbox.waiting and not self._ending:
                self._last = True
                self._inbox.close(closed)
                self._watch(_CLOSE_NS)
                return
            self._end(closed)
        if ws.owed:
            self._write(ws.outgoing())
        if ws.state == CLOSED:
            self._finish()
        elif self._inbox.full:
            self._flow()

    def _flow(self) -> None:
        """Read from the client, or stop while much waits for the application, or the client does not read."""
        stalled = not self._ending and (bool(self._rest) or self._inbox.full or self._paused)
        if stalled != self._stalled and not self.gone:
            self._stalled = stalled
            if stalled:
                self._transport.pause_reading()
            else:
                self._received = True
                self._transport.resume_reading()

    def _write(self, data: bytes) -> None:
        self._heartbeat.bytes_out += len(data)
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def _ended(self) -> bool:
        return self._ending or bool(self._transport.is_closing())

    async def _drain(self) -> None:
        """Wait for the client to read, or for a turn of the loop."""
        if self._paused and not self._ending:
            await self._drained.wait()
        else:
            await self._app.pause()
        if self.gone:
            raise ClientDisconnected("the client has left")

    def _close(self, code: int, reason: str, *, denial: int = 403) -> None:
        """Send a Close, or, before the handshake is answered, the response that denies it."""
        if self._ws is None:
            self._refuse(denial)
            return
        if self._last:
            self._end_last()
            return
        self._write(self._ws.close(code, reason))
        self._end(Closed(code, reason))
        self._unsent = unsent(self._transport)
        self._watch(_CLOSE_NS)

    def _end_last(self) -> None:
        """Send the Close that is owed: what came before it is answered, or its time is over."""
        if self._ws is not None and self._inbox.closed is not None and not self._ending:
            self._end(self._inbox.closed)
            self._write(self._ws.outgoing())
            self._finish()

    def _refuse(self, status: int) -> None:
        """Answer the handshake with an error, or break off an answer that has begun."""
        answer = self._app.deny(status, self.began_ns)
        self._end(Closed(ABNORMAL, ""), status)
        if self._response is not None and self._response.begun:
            cut(self._transport, complete=False)
        else:
            self._write(answer)
            self._finish()

    def _deny(self, message: Message) -> None:
        """Send a part of the application's own denial (the extension websocket.http.response)."""
        if self._response is None:
            self._response = AsgiResponse(self._request)
            self._response.keep_alive = False
        data = self._response.take(message, self._app.context.stamp)
        if self._response.done:
            self._app.count_handshake(self.began_ns)
        self._write(data)
        if self._response.done:
            self._end(Closed(ABNORMAL, ""), self._response.status)
            self._finish()

    def _end(self, closed: Closed, status: int = 0) -> None:
        """Log the end, and tell the application. `status`: of the response that denied the handshake."""
        if not self._ending:
            self._ending = True
            self._app.log_socket(self.peer, self._request, 101 if self._ws else status, self._sent, self.began_ns)
        self._inbox.close(closed)
        self._flow()

    def _finish(self) -> None:
        """Close the connection when the client has read the last bytes."""
        self._app.timers.forget(self)
        self._drained.set()  # from here on, resume_writing() is not called
        close_after_response(self._app, self._transport, self, linger=True)

    def _watch(self, in_ns: int) -> None:
        self.deadline_ns = monotonic_ns() + in_ns
        if self.deadline_ns < self.watched_ns:
            self._app.timers.watch(self)


def _bytes_of(message: Message) -> Any:
    data = message.get("bytes")
    if data is None:
        raise ResponseError("websocket.send has neither `text` nor `bytes`")
    return data


class Http(ConnectionLike, Protocol):
    """The connection before."""

    peer: AsgiPeer


def _end_with(response: bytes, app: AsgiApp, transport: Any, http: Http) -> None:
    """Answer a handshake, and close the connection."""
    app.heartbeat.bytes_out += len(response)
    if not transport.is_closing():
        transport.write(response)
    close_after_response(app, transport, http, linger=True)


def begin_websocket(app: AsgiApp, transport: Any, http: Http, request: Request, rest: bytes) -> None:
    """Go on with a connection as a WebSocket, or refuse that. `rest`: what came behind the request."""
    peer = http.peer
    opening = handshake(request)
    if isinstance(opening, Refusal):
        app.refuse(peer, opening)
        _end_with(refuse(opening, app.context.stamp), app, transport, http)
        return
    if app.most_in_flight and app.full:
        response = AsgiResponse(request)
        response.keep_alive = False
        data = response.turn_away(app.context.stamp)
        app.log.turn_away(peer, request, response)
        _end_with(data, app, transport, http)
        return
    socket = WebSocketConnection(app, transport, peer, request, opening, rest)
    transport.set_protocol(socket)
    app.connections.replace(http, socket)
    scope = peer.app_view.of(request, app.state)
    if peer.trusted:
        app.apply_forwarded(peer, request, scope)
    app.begin_socket(socket)
    app.sockets[socket] = app.task(socket.run(of_websocket(scope, opening.subprotocols)))
