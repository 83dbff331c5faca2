"""The client's side of a WebSocket: frames written by hand, right and wrong ones, and two libraries that know the rest.

Both clients take and give the same: `opening()` is the request, `answered(data)` reads the server's 101, `send` makes
bytes of a message (in fragments, if wished), `receive` makes messages, pongs and close codes of bytes.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TypeAlias

import wsproto.events as ws
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import CloseCode, Frame, Opcode
from websockets.uri import parse_uri
from wsproto import ConnectionType, WSConnection
from wsproto.extensions import PerMessageDeflate

from prefork.http.head import Request
from prefork.http.limits import Limits
from prefork.http.parser import RequestParser
from prefork.http.websocket import WebSocket
from prefork.http.websocket_handshake import Handshake, handshake

STAMP = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: prefork\r\n\r\n"
Message: TypeAlias = str | bytes
Heard: TypeAlias = "str | bytes | tuple[str, bytes] | tuple[str, int, str]"  # messages, ("pong", ...), ("close", ...)


def frame(first: int, payload: bytes = b"", *, size: int | None = None, length: int | None = None) -> bytes:
    """A masked frame. `size`: of the length field, 0, 2 or 8 bytes. `length`: what it says, true or not."""
    length = len(payload) if length is None else length
    if size is None:
        size = 0 if length < 126 else 2 if length < 65536 else 8
    mask = zlib.crc32(payload, first).to_bytes(4)  # looks random, and gives a test the same name in every process
    short = length if size == 0 else 126 if size == 2 else 127
    extended = length.to_bytes(size, "big") if size else b""
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((first, 0x80 | short)) + extended + mask + masked


def parsed(head: bytes) -> tuple[Request, bytes]:
    """Read a handshake with the server's parser; returns what follows it as well."""
    parser = RequestParser(Limits(), upgrades=True)
    (request,) = parser.feed(head)
    assert isinstance(request, Request)
    assert request.upgrade == b"websocket"
    return request, parser.detach()


def opened(head: bytes, *, deflate: bool = True, subprotocol: str | None = None) -> tuple[bytes, WebSocket]:
    """Answer a handshake."""
    opening = handshake(parsed(head)[0], deflate=deflate)
    assert isinstance(opening, Handshake), opening
    return opening.accept(subprotocol, [], STAMP)


class WebsocketsClient:
    """By `websockets`."""

    def __init__(self, *, deflate: bool, subprotocols: list[str] | None = None) -> None:
        extensions = [ClientPerMessageDeflateFactory(client_max_window_bits=True)] if deflate else None
        self.protocol = ClientProtocol(
            parse_uri("ws://example.com/chat"),
            extensions=extensions,
            subprotocols=subprotocols,  # type: ignore[arg-type] - they are str with a name of their own
            max_size=None,
        )

    def opening(self) -> bytes:
        self.protocol.send_request(self.protocol.connect())
        return self._written()

    def answered(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        self.protocol.events_received()
        assert self.protocol.handshake_exc is None, self.protocol.handshake_exc

    @property
    def subprotocol(self) -> str | None:
        return self.protocol.subprotocol

    def send(self, message: Message, pieces: int = 1) -> bytes:
        data = message.encode() if isinstance(message, str) else message
        parts = split(data, pieces)
        send = self.protocol.send_text if isinstance(message, str) else self.protocol.send_binary
        send(parts[0], fin=len(parts) == 1)
        for index, part in enumerate(parts[1:], 2):
            self.protocol.send_continuation(part, fin=index == len(parts))
        return self._written()

    def ping(self, payload: bytes) -> bytes:
        self.protocol.send_ping(payload)
        return self._written()

    def close(self, code: int, reason: str) -> bytes:
        self.protocol.send_close(CloseCode(code), reason)
        return self._written()

    def receive(self, data: bytes) -> list[Heard]:
        """No message of a server comes in fragments."""
        self.protocol.receive_data(data)
        heard: list[Heard] = []
        for event in self.protocol.events_received():
            assert isinstance(event, Frame)
            assert event.fin
            payload = bytes(event.data)
            if event.opcode is Opcode.TEXT:
                heard.append(payload.decode())
            elif event.opcode is Opcode.BINARY:
                heard.append(payload)
            elif event.opcode is Opcode.PONG:
                heard.append(("pong", payload))
            elif event.opcode is Opcode.CLOSE:
                close = self.protocol.close_rcvd
                assert close is not None
                heard.append(("close", close.code, close.reason))
        assert self.protocol.parser_exc is None, self.protocol.parser_exc
        return heard

    def replies(self) -> bytes:
        """What it sends of its own accord: pongs, and a Close frame."""
        return self._written()

    def _written(self) -> bytes:
        return b"".join(self.protocol.data_to_send())


class WsprotoClient:
    """By `wsproto`."""

    def __init__(self, *, deflate: bool, subprotocols: list[str] | None = None) -> None:
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.extensions = [PerMessageDeflate()] if deflate else []
        self.subprotocols = subprotocols or []
        self.subprotocol: str | None = None
        self._replies = b""
        self._parts: list[str] | list[bytearray] = []

    def opening(self) -> bytes:
        return self.protocol.send(
            ws.Request(
                host="example.com", target="/chat", extensions=list(self.extensions), subprotocols=self.subprotocols
            )
        )

    def answered(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        (event,) = self.protocol.events()
        assert isinstance(event, ws.AcceptConnection)
        self.subprotocol = event.subprotocol

    def send(self, message: Message, pieces: int = 1) -> bytes:
        written = b""
        parts = split(message, pieces)
        for index, part in enumerate(parts, 1):
            event = (
                ws.TextMessage(data=part, message_finished=index == len(parts))
                if isinstance(part, str)
                else ws.BytesMessage(data=part, message_finished=index == len(parts))
            )
            written += self.protocol.send(event)
        return written

    def ping(self, payload: bytes) -> bytes:
        return self.protocol.send(ws.Ping(payload=payload))

    def close(self, code: int, reason: str) -> bytes:
        return self.protocol.send(ws.CloseConnection(code=code, reason=reason))

    def receive(self, data: bytes) -> list[Heard]:
        self.protocol.receive_data(data)
        heard: list[Heard] = []
        parts: list[ws.Message] = []  # its own: it passes on what it has of a frame
        for event in self.protocol.events():
            if isinstance(event, ws.Message):
                parts.append(event)
                if event.message_finished:
                    heard.append((parts[0].data[:0]).join(part.data for part in parts))
                    parts.clear()
            elif isinstance(event, ws.Pong):
                heard.append(("pong", bytes(event.payload)))
            elif isinstance(event, ws.Ping):
                self._replies += self.protocol.send(event.response())
            elif isinstance(event, ws.CloseConnection):
                heard.append(("close", event.code, event.reason or ""))
                if self.protocol.state.name == "REMOTE_CLOSING":
                    self._replies += self.protocol.send(event.response())
        assert not parts
        return heard

    def replies(self) -> bytes:
        replies, self._replies = self._replies, b""
        return replies


Client: TypeAlias = WebsocketsClient | WsprotoClient
CLIENTS: tuple[type[Client], ...] = (WebsocketsClient, WsprotoClient)


def split(data: Message, pieces: int) -> list[Message]:
    """Cut a message into so many parts, as equal as may be; some are empty if it is short."""
    edges = [len(data) * index // pieces for index in range(pieces + 1)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def connected(kind: type[Client], *, deflate: bool = True, offered: bool = True) -> tuple[Client, WebSocket]:
    """A client and its session, both past the handshake."""
    client = kind(deflate=offered)
    head, session = opened(client.opening(), deflate=deflate)
    client.answered(head)
    return client, session
