"""WebSocket (RFC 6455) as a client speaks it: the opening handshake, frames to send, messages from what has come.

Bytes in, messages out. No extension is asked for, so a frame with a reserved bit is wrong; so are a masked one, an
unknown opcode, a length written longer than it must be, a message begun in the midst of another, and a control frame
that is long or in parts. What is lawful and unusual (fragments, a ping between them) is understood.

Keys and masks are made once for each client, not for each connection and frame: they protect proxies on the way from
what scripts in browsers make them carry, and a server has the same work with any.
"""

from __future__ import annotations

import secrets
import struct
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING

from ..plan.request import Request
from .failure import WRONG_FRAME, WRONG_HANDSHAKE, WRONG_REPLY, ExchangeError
from .response import INTERIM, MOST_HEAD, read_head, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
class Opening:
    """The opening handshake of one client."""

    request: bytes
    accept: bytes  # what the server has to make of our key

    @classmethod
    def made(cls, *, path: str, headers: Sequence[str], host: str) -> Opening:
        """Ask for that path. Raises ValueError for a header that is the handshake's own."""
        for line in headers:
            if (name := line.partition(":")[0]).lower() in _OURS:
                raise ValueError(f"header {name} cannot be set for websocket: the handshake has its own")
        key = b64encode(secrets.token_bytes(16)).decode()
        ours = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13")
        request = Request(path=path, headers=(*headers, *ours)).encode(host)
        return cls(request=request, accept=b64encode(sha1((key + _GUID).encode(), usedforsecurity=False).digest()))

    def read(self, came: bytes) -> bytes | None:
        """What came after the response; None if that is not complete. Raises ExchangeError if it is no agreement."""
        status = 100
        while status in INTERIM:
            end = came.find(b"\r\n\r\n") + 4
            if end < 4:
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
    """A whole message in one frame: with a mask (four bytes) a client's, without one a server's."""
    first, flag, size = _FINAL | opcode, _MASKED if mask else 0, len(payload)
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
    """The cause that the payload of a close frame stands for."""
    return f"close {int.from_bytes(payload[:2]) if payload else _NO_CODE}"


class Messages:
    """`feed` it what was received; it gives the server's messages and control frames as they get complete."""

    def __init__(self, most: int) -> None:
        """`most`: bytes of a message; a longer one is wrong already by its length."""
        self._most = most
        self._buffer = bytearray()
        self._opcode = CONTINUATION  # of the message that has come in part; else this
        self._parts = b""

    @property
    def between(self) -> bool:
        """Whether nothing has come in part."""
        return not self._buffer and self._opcode == CONTINUATION

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of each. Raises ExchangeError for what is no frame, and for a message that is too long."""
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
                payload, self._parts = self._parts, b""
                yield opcode, payload

    def _frame(self) -> tuple[int, bytes] | None:
        """Take the next frame, its first byte and its payload, if it has come."""
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
