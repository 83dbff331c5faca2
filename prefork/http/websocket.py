"""One WebSocket, seen from the server (RFC 6455): bytes to messages, messages to bytes. Pure.

    str | bytes *, Closed?      what feed() returns, over all calls: messages, and how it ended

`feed` takes bytes as they were received, and raises for nothing that a client may send: who breaks the protocol gets
a Close frame, and is not listened to any more. What the protocol owes a client (pongs, a Close frame) is kept for
`outgoing`. Each frame's head is judged as soon as it is there, before its payload is waited for, and how the bytes
were cut makes no difference to what comes out.

A session is OPEN, CLOSING (our Close frame is out, the client's is awaited, its messages are dropped) or CLOSED
(nothing is read any more: send what is owed, close the connection). Messages can be sent as long as no Close frame is
out: answers to what came before the client's Close, or before what was wrong, go before what is owed. Text is checked
with each frame.

Memory: a message, unpacked, has at most `max_message_bytes`, and so has a frame as it came. Once _MOST_AT_ONCE bytes
were unpacked, the rest of what came waits for another call, see `behind`. Fragments are put together in one buffer, so
it makes no difference how many they are. An idle session takes 0.2 KB, plus what its compression holds
(websocket_deflate.py).

Masks are applied by the C code of `websockets` (see `fastest_mask`). The protocol class of `websockets`, and `wsproto`
(all in Python, no bound for what it unpacks), take this long for an echo of one text message, in microseconds; the
floor is masks, UTF-8 and zlib (at level 6, as the two), nothing else:

                        floor   here   websockets 17.4   wsproto 1.3.2
    32 bytes              0.5    1.3               4.4            12.7
    4 KiB                 1.1    2.3               5.8            19.1
    32 bytes, deflate     2.5    2.1               7.7            19.0
    4 KiB, deflate       34.0   23.4              40.7            63.0
"""

from __future__ import annotations

import sys
from codecs import utf_8_decode
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

from prefork.http import websocket_close
from prefork.http.response import kind
from prefork.http.websocket_close import (
    INVALID_DATA,
    NORMAL,
    PROTOCOL_ERROR,
    TOO_BIG,
    Closed,
    ViolationError,
    WebSocketError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.http.websocket_deflate import Deflate

Event: TypeAlias = str | bytes | Closed
Mask: TypeAlias = "Callable[[bytes | bytearray, bytes | bytearray], bytes]"  # of a payload and four bytes

OPEN: Final = 1
CLOSING: Final = 2
CLOSED: Final = 3

MOST_MESSAGE: Final = 1 << 24  # bytes
_MOST_AT_ONCE: Final = 1 << 20  # bytes, unpacked: 64 KiB as received can stand for a thousand times as many

# The first byte of a frame: FIN, three reserved bits of which the first means "compressed", four bits of opcode.
_FIN = 0x80
_COMPRESSED = 0x40
_TEXT = 0x01
_BINARY = 0x02
_CONTROL = 0x08
_CLOSE = 0x88
_PING = 0x89
_PONG = 0x8A
_WHOLE_TEXT = _FIN | _TEXT
_WHOLE_BINARY = _FIN | _BINARY
_LEGAL = frozenset({0x00, 0x01, 0x02, 0x80, 0x81, 0x82, _CLOSE, _PING, _PONG})
_LEGAL_WITH_DEFLATE = _LEGAL | {0x41, 0x42, 0xC1, 0xC2}
_MOST_CONTROL = 125
# Below, a message goes as it is: the headers of its packet are as long, and compressing costs more than all the rest.
_WORTH_COMPRESSING = 64
_SHORT = Struct(">BB")
_MEDIUM = Struct(">BBH")
_LONG = Struct(">BBQ")


def apply_mask(data: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """Mask a payload, or unmask it (5.3), in Python: it takes 15 to 30 times as long as in C."""
    size = len(data)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, sys.byteorder) ^ int.from_bytes(repeated, sys.byteorder)).to_bytes(size, sys.byteorder)


@cache
def fastest_mask() -> Mask:
    """Return the C code of `websockets` that masks, or `apply_mask`.

    Its name is not documented, so a release of `websockets` may move it, or change what it does. It is loaded without
    the package, which takes 20 ms and imports modules of the standard library that an application may shadow.
    """
    try:
        package = PathFinder.find_spec("websockets")
        places = package.submodule_search_locations if package else None
        spec = PathFinder.find_spec("websockets.speedups", places) if places else None
        if spec is None or spec.loader is None:
            return apply_mask
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        in_c: Mask = module.apply_mask
        works = in_c(b"masked", b"mask") == apply_mask(b"masked", b"mask")
    except (ImportError, AttributeError, TypeError, ValueError):  # it is not compiled here, or has been changed
        return apply_mask
    return in_c if works else apply_mask


class WebSocket:
    """A session, from the moment the handshake is answered. `state`: OPEN, CLOSING or CLOSED.

    `owed`: frames that the protocol itself has to say, see `outgoing`.
    """

    __slots__ = (
        "_begun",
        "_checked",
        "_deflate",
        "_legal",
        "_max",
        "_message",
        "_need",
        "_rest",
        "_room",
        "_unmask",
        "_unpacked",
        "owed",
        "state",
    )

    def __init__(self, *, deflate: Deflate | None = None, max_message_bytes: int = MOST_MESSAGE) -> None:
        self.state = OPEN
        self._unmask = fastest_mask()
        self._deflate = deflate
        self._legal = _LEGAL_WITH_DEFLATE if deflate else _LEGAL
        self._max = max_message_bytes
        self._room = max_message_bytes  # how long the next data frame may be
        self._begun = 0  # a message in fragments: its first byte, without FIN; 0: there is none
        self._message: bytearray | bytes = b""  # what came of it
        self._checked = 0  # how much of that is UTF-8, if it is text
        self._rest: bytearray | bytes = b""  # what came and is not a whole frame yet
        self._need = 0  # how much of a rest it takes to go on
        self._unpacked = 0  # bytes, by the last call of `feed`
        self.owed: list[bytes] = []

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return what they complete. Raises for nothing that a client may send."""
        if self.state == CLOSED:
            return []
        events: list[Event] = []
        self._unpacked = 0
        closing = self.state == CLOSING
        received: bytearray | bytes = data
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return events
            received, self._rest = self._rest, b""
        try:
            position = self._read(received, events)
            if position < len(received):
                self._rest = bytearray(received[position:])
        except ViolationError as error:
            self._fail(error.code, error.reason, events)
        except UnicodeDecodeError:
            self._fail(INVALID_DATA, "not UTF-8", events)
        return [event for event in events if isinstance(event, Closed)] if closing else events

    @property
    def behind(self) -> bool:
        """Whether `feed` has left something that it could take: call it with nothing when there is room for more."""
        return self._unpacked > _MOST_AT_ONCE and len(self._rest) > 1

    def outgoing(self) -> bytes:
        """Return what the protocol itself has to say after `feed`: to be sent before anything else."""
        owed = b"".join(self.owed)
        self.owed.clear()
        return owed

    def text(self, data: str) -> bytes:
        """Return the bytes of a text message. Raises WebSocketError."""
        try:
            payload = data.encode()
        except AttributeError:
            raise WebSocketError(f"a text message is {kind(data)}, not a str") from None
        except UnicodeEncodeError as error:
            raise WebSocketError(f"a text message cannot be sent as UTF-8: {error}") from None
        return self._write(_WHOLE_TEXT, payload)

    def binary(self, data: bytes) -> bytes:
        """Return the bytes of a binary message. Raises WebSocketError."""
        if type(data) is not bytes:
            try:
                data = memoryview(data).tobytes()
            except TypeError:
                raise WebSocketError(f"a binary message is {kind(data)}, not bytes") from None
        return self._write(_WHOLE_BINARY, data)

    def ping(self) -> bytes:
        """Return a Ping: for a client that was not heard for a while, so it is time to save memory, too.

        Whatever comes after that, the Pong or anything else, shows that the client is there.
        """
        self._must_be_open()
        if self._deflate is not None:
            self._deflate.rest()
        return _frame(_PING, b"")

    def close(self, code: int = NORMAL, reason: str = "") -> bytes:
        """Return a Close frame; nothing can be sent after that. Raises WebSocketError."""
        self._must_be_open()
        frame = _frame(_CLOSE, websocket_close.payload(code, reason))
        if self.state == CLOSED:
            return self.outgoing()  # the client was first
        self.state = CLOSING
        return frame

    def _must_be_open(self) -> None:
        if self.state != OPEN and not (self.owed and self.owed[-1][0] == _CLOSE):
            raise WebSocketError("the WebSocket is closed: nothing can be sent")

    def _write(self, first: int, payload: bytes) -> bytes:
        self._must_be_open()
        if self._deflate is not None and len(payload) >= _WORTH_COMPRESSING:
            first |= _COMPRESSED
            payload = self._deflate.compress(payload)
        return _frame(first, payload)

    def _read(self, data: bytes | bytearray, events: list[Event]) -> int:
        """Go from frame to frame; returns how much of the data is understood. Raises what `feed` handles."""
        end = len(data)
        position = 0
        while end - position >= 2:
            first = data[position]
            length = data[position + 1] - 0x80
            if length < 0 or first not in self._legal:
                raise _fault(first, length)
            start = position + 6  # behind head and mask
            if length > _MOST_CONTROL:
                size = 2 if length == 126 else 8
                start += size
                mask = start - 4
                if mask > end:
                    self._need = mask - position
                    return position
                length = _extended(first, size, int.from_bytes(data[position + 2 : mask], "big"))
            if length > self._room and not first & _CONTROL:
                raise ViolationError(TOO_BIG, "message too big")
            stop = start + length
            if stop > end:
                self._need = stop - position
                return position
            payload = self._unmask(data[start:stop], data[start - 4 : start])
            position = stop
            if first == _WHOLE_TEXT and not self._begun:  # the usual case
                events.append(payload.decode())
            elif first & _CONTROL:
                if self._take_control(first, payload, events):
                    return end
            else:
                self._take_data(first, payload, events)
                if self._unpacked > _MOST_AT_ONCE:
                    break
        self._need = 2
        return position

    def _take_data(self, first: int, payload: bytes, events: list[Event]) -> None:
        """Take a frame of a message: a whole one or a fragment."""
        begun = first & ~_FIN
        if self._begun:
            if begun:
                raise ViolationError(PROTOCOL_ERROR, "message inside another one")
            begun = self._begun
        elif not begun:
            raise ViolationError(PROTOCOL_ERROR, "continuation of nothing")
        last = bool(first & _FIN)
        if begun & _COMPRESSED:
            assert self._deflate is not None
            payload = self._deflate.decompress(payload, self._max - len(self._message), last=last)
            self._unpacked += len(payload)
        message: bytes | bytearray = payload
        if self._begun or not last:
            message = self._message or bytearray()
            message += payload
            if begun & _TEXT:
                self._checked += utf_8_decode(message[self._checked :], "strict", last)[1]
        if last:
            self._begun, self._message, self._room, self._checked = 0, b"", self._max, 0
            events.append(message.decode() if begun & _TEXT else bytes(message))
        else:
            self._begun, self._message = begun, message
            # What is compressed has its bound where it is unpacked.
            self._room = self._max if begun & _COMPRESSED else self._max - len(message)

    def _take_control(self, first: int, payload: bytes, events: list[Event]) -> bool:
        """Take a Close, a Ping or a Pong; returns whether it was the last frame."""
        if first == _PING:
            self.owed.append(_frame(_PONG, payload))
        elif first == _CLOSE:
            closed = websocket_close.read(payload)
            self._end(payload)
            events.append(closed)
        return self.state == CLOSED

    def _fail(self, code: int, reason: str, events: list[Event]) -> None:
        """A client broke the protocol (7.1.7)."""
        self._end(websocket_close.payload(code, reason))
        events.append(Closed(code, reason))

    def _end(self, payload: bytes) -> None:
        """Answer with a Close frame unless one is out already, and let go of all that a session holds."""
        if self.state == OPEN:
            self.owed.append(_frame(_CLOSE, payload))
        self.state = CLOSED
        self._deflate = None
        self._message = self._rest = b""


def _frame(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length <= _MOST_CONTROL:
        return _SHORT.pack(first, length) + payload
    if length < 1 << 16:
        return _MEDIUM.pack(first, 126, length) + payload
    return _LONG.pack(first, 127, length) + payload


def _extended(first: int, size: int, length: int) -> int:
    """Judge a length of 2 or 8 bytes (5.2)."""
    if first & _CONTROL:
        raise ViolationError(PROTOCOL_ERROR, "control frame too long")
    if length < (126 if size == 2 else 1 << 16) or length >> 63:
        raise ViolationError(PROTOCOL_ERROR, "invalid length")
    return length


def _fault(first: int, length: int) -> ViolationError:
    """Say what is wrong with the first two bytes of a frame."""
    if length < 0:
        reason = "frame without a mask"
    elif first & 0x0F in (0, _TEXT, _BINARY):
        reason = "reserved bit"
    elif first & 0x0F in (_CLOSE & 0x0F, _PING & 0x0F, _PONG & 0x0F):
        reason = "reserved bit" if first & 0x70 else "fragmented control frame"
    else:
        reason = "unknown opcode"
    return ViolationError(PROTOCOL_ERROR, reason)
