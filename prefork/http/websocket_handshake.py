"""The opening handshake of a WebSocket (RFC 6455 4.2): from a request to a session, or to a refusal. Pure.

    opening = handshake(request)                    Opening or Refusal
    head, session = opening.accept(None, [], stamp) send the head; what follows belongs to the session
    refuse(refusal, stamp)                          the whole response, after which the connection is closed

That it is a GET of HTTP/1.1 with Upgrade, Connection and Host, and without a body, is known already: a request with
`upgrade` is nothing else (framing.py).
"""

from __future__ import annotations

import hashlib
import re
from binascii import b2a_base64
from typing import TYPE_CHECKING

from prefork.http import websocket_deflate
from prefork.http.fields import TOKEN
from prefork.http.limits import Refusal, quoted
from prefork.http.response import CONTROLS, ResponseError, error_response, is_servers_own, replaced_by, without
from prefork.http.websocket import MOST_MESSAGE, WebSocket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefork.http.head import Request
    from prefork.http.websocket_deflate import Deflate

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = b"sec-websocket-key"
_VERSION = b"sec-websocket-version"
_PROTOCOL = b"sec-websocket-protocol"
_EXTENSIONS = b"sec-websocket-extensions"
_SIXTEEN_BYTES = re.compile(rb"[A-Za-z0-9+/]{22}==")  # in base64
_VERSION_NEEDED = b"Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
_HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
# Of the handshake itself; an application that answers as another server did has those of that one's connection.
_HANDSHAKES = frozenset({b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-version"})


class Handshake:
    """A handshake that is in order and waits for the application's word.

    `subprotocols`: what the client offers, the one it likes most first.
    """

    __slots__ = ("_deflate", "_key", "subprotocols")

    def __init__(self, key: bytes, subprotocols: list[str], deflate: tuple[str, Deflate] | None) -> None:
        self._key = key
        self._deflate = deflate
        self.subprotocols = subprotocols

    def accept(
        self,
        subprotocol: str | None,
        headers: Iterable[tuple[bytes, bytes]],
        stamp: bytes,
        *,
        max_message_bytes: int = MOST_MESSAGE,
    ) -> tuple[bytes, WebSocket]:
        """Return the answer's head and the session that begins behind it. Raises ResponseError.

        `stamp`: the end of every head of this second (response.py).
        """
        accept = b2a_base64(hashlib.sha1(self._key + _MAGIC, usedforsecurity=False).digest(), newline=False)
        lines = [_HEAD, accept, b"\r\n"]
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ResponseError(f"the client did not offer the subprotocol {subprotocol!r}")
            lines.append(b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("ascii"))
        deflate = None
        if self._deflate is not None:
            answer, deflate = self._deflate
            lines.append(b"Sec-WebSocket-Extensions: %b\r\n" % answer.encode("ascii"))
        given = 0
        for name, value in headers:
            if _is_sent(name, value, subprotocol):
                given |= replaced_by(name)
                lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(without(stamp, given) if given else stamp)
        return b"".join(lines), WebSocket(deflate=deflate, max_message_bytes=max_message_bytes)


def handshake(request: Request, *, deflate: bool = True) -> Handshake | Refusal:
    """Judge a request whose `upgrade` is b"websocket". `deflate`: compress messages, if the client can."""
    fields: dict[bytes, list[bytes]] = {_KEY: [], _VERSION: [], _PROTOCOL: [], _EXTENSIONS: []}
    for name, value in request.fields:
        if name.lower in fields:
            fields[name.lower].append(value)
    if fields[_VERSION] != [b"13"]:  # 4.2.2: whatever else it may be
        return Refusal(426, f"Sec-WebSocket-Version: {quoted(b', '.join(fields[_VERSION]))}")
    key = b", ".join(fields[_KEY])
    if not _SIXTEEN_BYTES.fullmatch(key):
        return Refusal(400, f"Sec-WebSocket-Key: {quoted(key)}")
    offered = b", ".join(fields[_PROTOCOL])
    subprotocols = [item for part in offered.split(b",") if (item := part.strip(b" \t"))]
    if not all(map(TOKEN.fullmatch, subprotocols)) or len(set(subprotocols)) < len(subprotocols):
        return Refusal(400, f"Sec-WebSocket-Protocol: {quoted(offered)}")
    extensions = b", ".join(fields[_EXTENSIONS])
    agreed = None
    if deflate:
        try:
            agreed = websocket_deflate.negotiate(extensions.decode("latin1"))
        except ValueError as error:
            return Refusal(400, f"Sec-WebSocket-Extensions: {quoted(extensions)}: {error}")
    return Handshake(key, [item.decode("ascii") for item in subprotocols], agreed)


def refuse(refusal: Refusal, stamp: bytes) -> bytes:
    """Return the response to a handshake that is not in order."""
    return error_response(refusal.status, _VERSION_NEEDED + stamp if refusal.status == 426 else stamp)


def _is_sent(name: object, value: object, subprotocol: str | None) -> bool:
    """Check a field of an application's, and return whether it belongs to the answer. Raises ResponseError."""
    if not isinstance(name, bytes) or not isinstance(value, bytes):
        raise ResponseError(f"the header {name!r}: {value!r} is not a pair of bytes")
    if not TOKEN.fullmatch(name):
        raise ResponseError(f"the header name {name!r} is not a token (RFC 9110 5.6.2)")
    if len(value.translate(None, CONTROLS)) < len(value):
        raise ResponseError(f"the value {value!r} of the header {name!r} has a control character")
    lower = name.lower()
    if lower == _PROTOCOL and value.decode("latin1") != subprotocol:
        raise ResponseError(f"the header {name!r} says {value!r}: give it as `subprotocol` of websocket.accept")
    # A 101 has no body (RFC 9110 8.6), and its connection is the WebSocket's (7.8).
    return lower not in _HANDSHAKES and lower != _PROTOCOL and not is_servers_own(lower.decode())
