"""WebSocket (RFC 6455) as a client speaks it: handshake, frames, messages, and the two clients that use them.

From bytes to messages. No extension is requested, so a frame with a reserved bit is wrong. So are a masked frame, an
unknown opcode, a length written longer than necessary, a message that begins inside another one, and a control frame
that is long or fragmented. Fragments, and a ping between them, are allowed.

Keys and masks are made once for each client, not for each connection or frame. They protect proxies from what scripts
in browsers send; a server does the same work with any key.

WebSocketLink is the client of the fast engine. WebSocketTalk is a client on a blocking socket: the readable user has
one, and so has the check that a server is ready.
"""

from __future__ import annotations

import secrets
import struct
import time
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha1
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from loadtest.generator.failure import CLOSED_EARLY, WRONG_FRAME, WRONG_HANDSHAKE, WRONG_REPLY, ExchangeError
from loadtest.generator.http import INTERIM, MOST_HEAD, head_end, read_head, tokens
from loadtest.generator.link import CHUNK, RepeatingLink
from loadtest.plan.request import Request

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator, Sequence

    from loadtest.generator.link import EngineApi


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
OPCODES = {"text": TEXT, "binary": BINARY}
"""The kinds of messages."""

NORMAL = (1000).to_bytes(2)
"""What a close frame says when there is nothing left to do."""

_KNOWN = (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG)
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OURS = ("upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions")
_FINAL, _RESERVED, _OPCODE, _MASKED = 0x80, 0x70, 0x0F, 0x80
_MOST_CONTROL = 125  # bytes of a control frame, and the most whose length is in the second byte
_NO_CODE = 1005  # what a close frame without a code stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """The opening handshake of one client."""

    request: bytes
    accept: bytes  # what the server has to make of our key

    @classmethod
    def made(cls, *, path: str, headers: Sequence[str], host: str) -> Handshake:
        """Make the handshake for a path. Raises ValueError for a header that belongs to the handshake itself."""
        for line in headers:
            if (name := line.partition(":")[0]).lower() in _OURS:
                raise ValueError(f"header {name} cannot be set for websocket: the handshake has its own")
        key = b64encode(secrets.token_bytes(16)).decode()
        ours = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13")
        request = Request(path=path, headers=(*headers, *ours)).encode(host)
        return cls(request=request, accept=b64encode(sha1((key + _GUID).encode(), usedforsecurity=False).digest()))

    def read(self, came: bytes) -> bytes | None:
        """Parse the response; return the bytes after it, None while it is incomplete.

        Raises ExchangeError for a refusal.
        """
        status = 100
        while status in INTERIM:
            end = head_end(came)
            if end < 0:
                if len(came) > MOST_HEAD:
                    raise ExchangeError(WRONG_REPLY)
                return None
            _, status, fields = read_head(came[:end])
            came = came[end:]
        if status != 101:
            raise ExchangeError(f"status {status}")
        if (
            fields.get(b"upgrade", b"").lower() != b"websocket"
            or b"upgrade" not in tokens(fields.get(b"connection", b""))
            or fields.get(b"sec-websocket-accept") != self.accept
            or b"sec-websocket-extensions" in fields
        ):
            raise ExchangeError(WRONG_HANDSHAKE)
        return came


def frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """Write a whole message as one frame: a client's with a mask (four bytes), a server's without."""
    first = _FINAL | opcode
    flag = _MASKED if mask else 0
    size = len(payload)
    if size <= _MOST_CONTROL:
        head = bytes((first, flag | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, flag | 126, size)
    else:
        head = struct.pack("!BBQ", first, flag | 127, size)
    if mask:
        repeated = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(size)
    return head + mask + payload


def close_cause(payload: bytes) -> str:
    """Return the cause that the payload of a close frame stands for."""
    return f"close {int.from_bytes(payload[:2]) if payload else _NO_CODE}"


class Messages:
    """Parses frames: `feed` takes what was received and yields messages and control frames as they become complete."""

    def __init__(self, most: int) -> None:
        """`most`: the largest message in bytes; a longer one is wrong by its length alone."""
        self._most = most
        self._buffer = bytearray()
        self._opcode = CONTINUATION  # of the message that has come in part; else this
        self._parts = b""

    @property
    def between(self) -> bool:
        """Whether no frame or message is incomplete."""
        return not self._buffer and self._opcode == CONTINUATION

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield opcode and payload of each.

        Raises ExchangeError for invalid frames and for messages that are too long.
        """
        self._buffer += data
        while found := self._frame():
            first, payload = found
            opcode = first & _OPCODE
            if opcode >= CLOSE:
                yield opcode, payload
                continue
            if (opcode == CONTINUATION) == (self._opcode == CONTINUATION):
                raise ExchangeError(WRONG_FRAME)
            self._parts += payload
            opcode = self._opcode or opcode
            self._opcode = CONTINUATION if first & _FINAL else opcode
            if first & _FINAL:
                payload = self._parts
                self._parts = b""
                yield opcode, payload

    def _frame(self) -> tuple[int, bytes] | None:
        """Take the next frame, if complete: its first byte and its payload."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, size = buffer[:2]
        if first & _RESERVED or first & _OPCODE not in _KNOWN:
            raise ExchangeError(WRONG_FRAME)
        control = first & _OPCODE >= CLOSE
        if control and (not first & _FINAL or size > _MOST_CONTROL or (first & _OPCODE == CLOSE and size == 1)):
            raise ExchangeError(WRONG_FRAME)
        extra = {126: 2, 127: 8}.get(size, 0)
        if len(buffer) < 2 + extra:
            return None
        least = {2: 126, 8: 1 << 16}.get(extra, 0)
        size = int.from_bytes(buffer[2 : 2 + extra]) if extra else size
        if size < least or (not extra and size > _MOST_CONTROL):  # the latter has the mask's flag
            raise ExchangeError(WRONG_FRAME)
        if not control and len(self._parts) + size > self._most:
            raise ExchangeError(WRONG_REPLY)
        end = 2 + extra + size
        if len(buffer) < end:
            return None
        payload = bytes(buffer[2 + extra : end])
        del buffer[:end]
        return first, payload


class WebSocketLink(RepeatingLink):
    """Opens a connection, which is timed on its own as in echo, and sends its message again and again.

    The message is made into a frame once, and so is the reply: one that comes alone and in one piece, as it does
    nearly always, needs no parser. A ping is answered. The last that a connection says is a close frame, for whose
    answer nobody waits.
    """

    __slots__ = ("_came", "_expected", "_mask", "_message", "_messages", "_open", "_opening", "_reply", "connecting")

    def __init__(self, engine: EngineApi, opening: Handshake, opcode: int, payload: bytes, exchanges: int = 0) -> None:
        self._mask = secrets.token_bytes(4)
        self._message = frame(opcode, payload, self._mask)
        super().__init__(engine, self._message, exchanges)
        self._opening = opening
        self._expected = (opcode, payload)
        self._reply = frame(opcode, payload)
        self._open = False  # whether the server has agreed
        self._came = b""  # before it has
        self._messages = Messages(len(payload))
        self.connecting = False

    def begin(self) -> None:
        """Start an exchange now. A handshake that comes first is timed on its own."""
        self.sent_ns = clock()
        if not self._open:
            self.connecting = True
            self.request = self._opening.request
            self.connect()
        elif self._rest:  # of a pong
            self._enqueue(self.request)
        else:
            self.send()

    def examine(self, data: bytes) -> None:
        """Read what is not the usual reply, or is a part of it."""
        if self._usual and len(data) == self._size:
            data += self._more()
        self._usual = None
        self._size = CHUNK
        try:
            if not data:
                raise ExchangeError(CLOSED_EARLY)
            if self.connecting:
                self._came += data
                if (rest := self._opening.read(self._came)) is None:
                    return
                data = rest
            else:
                self.engine.batch.received += len(data)
            self._handle(self._messages.feed(data))
        except ExchangeError as error:
            self.fail(str(error))  # if nothing was asked, that is none: the connection ends
            return
        if self.connecting:
            self._opened()
        if self._open and self._messages.between:
            self._usual = self._reply
            self._size = len(self._reply) + 1

    def _handle(self, messages: Iterable[tuple[int, bytes]]) -> None:
        for opcode, payload in messages:
            if opcode == PING:
                self._enqueue(frame(PONG, payload, self._mask))
            elif opcode == CLOSE:
                raise ExchangeError(close_cause(payload))
            elif (opcode, payload) == self._expected and self.sent_ns and self._open:
                self.note(0)  # the bytes are counted
                self.sent_ns = 0  # what follows it is not about this exchange
                self._left -= 1
                if not self._left:
                    self.drop()
                self.engine.freed.append(self)
            elif opcode != PONG:
                raise ExchangeError(WRONG_REPLY)

    def _opened(self) -> None:
        """Handle the server's agreement: the clock of the exchange starts."""
        now_ns = clock()
        self.engine.batch.connects.append((self.sent_ns, now_ns))
        self.connecting = False
        self._open = True
        self._left = self._exchanges
        self.sent_ns = now_ns
        self.request = self._message
        if self._rest:
            self._enqueue(self.request)
        else:
            self.send()

    def hang_up(self) -> None:
        """End the connection with a close frame."""
        self.drop()

    def _more(self) -> bytes:
        """Read what else has come: a close after the reply must be seen before the next message is sent."""
        try:
            return self.connection.recv(CHUNK)
        except OSError:
            return b""  # nothing; or an error, which will be heard the next time

    def _enqueue(self, data: bytes) -> None:
        """Send data after what is not yet sent."""
        self._rest += data
        self.send_rest()

    def drop(self) -> None:
        """Close the connection, with a close frame if the WebSocket is open, and forget the exchange."""
        if self._open and not self._rest:
            try:
                self.connection.send(frame(CLOSE, NORMAL, self._mask))
            except OSError:
                pass  # the server went first, or reads nothing
        super().drop()
        self.connecting = False
        self._open = False
        self._left = 0
        self._usual = None
        self._size = CHUNK
        self._came = b""
        self._messages = Messages(len(self._expected[1]))


class WebSocketTalk:
    """A client on a blocking socket: `open`, then `echo`. Both raise OSError, and ExchangeError for a wrong answer."""

    def __init__(
        self, connection: socket.socket, opening: Handshake, most: int, deadline_s: float = float("inf")
    ) -> None:
        """`most`: the largest message in bytes; `deadline_s`: when to stop waiting, by the monotonic clock."""
        self.began = b""  # how the server's answer began
        self._connection = connection
        self._opening = opening
        self._messages = Messages(most)
        self._deadline_s = deadline_s
        self._mask = secrets.token_bytes(4)
        self._early = b""  # what came with the server's agreement

    def open(self) -> None:
        """Send the opening handshake and wait for the server's agreement."""
        self._connection.sendall(self._opening.request)
        came = b""
        while (rest := self._opening.read(came)) is None:
            came += self._receive()
        self._early = rest

    def echo(self, opcode: int, payload: bytes) -> int:
        """Send a message and wait for its echo. Return the length of the reply in bytes."""
        self._connection.sendall(frame(opcode, payload, self._mask))
        while True:
            data = self._early or self._receive()
            self._early = b""
            for kind, got in self._messages.feed(data):
                if kind == PING:
                    self._connection.sendall(frame(PONG, got, self._mask))
                elif kind == CLOSE:
                    raise ExchangeError(close_cause(got))
                elif (kind, got) == (opcode, payload):
                    return len(frame(opcode, payload))
                elif kind != PONG:
                    raise ExchangeError(WRONG_REPLY)

    def settle(self) -> None:
        """Read what came between two messages, and answer pings. Raises ExchangeError if it is no ping or pong."""
        data = self._early + self._receive()
        self._early = b""
        for kind, got in self._messages.feed(data):
            if kind == PING:
                self._connection.sendall(frame(PONG, got, self._mask))
            elif kind != PONG:
                raise ExchangeError(close_cause(got) if kind == CLOSE else WRONG_REPLY)

    def close(self) -> None:
        """Send a close frame."""
        try:
            self._connection.sendall(frame(CLOSE, NORMAL, self._mask))
        except OSError:
            pass  # the server went first

    def _receive(self) -> bytes:
        if time.monotonic() > self._deadline_s:
            raise TimeoutError
        data = self._connection.recv(65536)
        if not data:
            raise ExchangeError(CLOSED_EARLY)
        self.began = self.began or data[:80]
        return data
