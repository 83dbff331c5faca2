"""WebSocket as bytes: what the client asks, which agreement it takes, its frames, and what it makes of a server's."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from loadtest.generator.failure import ExchangeError
from loadtest.generator.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NORMAL,
    PING,
    PONG,
    TEXT,
    Handshake,
    Messages,
    close_cause,
    frame,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

OPENING = Handshake.made(path="/chat?room=1", headers=("X-One: 1", "Sec-WebSocket-Protocol: chat"), host="h:80")
KINDS = st.sampled_from([TEXT, BINARY])


def agreement(
    *, accept: bytes = OPENING.accept, status: bytes = b"101 Switching Protocols", more: bytes = b""
) -> bytes:
    fields = b"upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Accept: " + accept
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + more + b"\r\n"


def test_the_request_is_a_handshake_with_what_was_asked_for() -> None:
    head, _, body = OPENING.request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert (lines[0], body) == ("GET /chat?room=1 HTTP/1.1", b"")
    assert set(lines) >= {"Host: h:80", "X-One: 1", "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Version: 13"}
    key = re.search(r"^Sec-WebSocket-Key: (.*)$", head.decode().replace("\r", ""), re.MULTILINE)
    assert key
    assert len(base64.b64decode(key[1], validate=True)) == 16
    digest = hashlib.sha1(key[1].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    assert base64.b64encode(digest) == OPENING.accept


def test_no_two_clients_have_one_key() -> None:
    assert (
        Handshake.made(path="/", headers=(), host="h").accept != Handshake.made(path="/", headers=(), host="h").accept
    )


@pytest.mark.parametrize("name", ["Upgrade", "sec-websocket-key", "Sec-WebSocket-Extensions"])
def test_what_is_the_handshakes_own_cannot_be_set(name: str) -> None:
    with pytest.raises(ValueError, match=f"header {name} cannot be set for websocket"):
        Handshake.made(path="/", headers=(f"{name}: x",), host="h")


def test_a_server_of_a_library_agrees() -> None:
    server = ServerProtocol()
    server.receive_data(OPENING.request)
    (request,) = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    (sent,) = server.data_to_send()
    assert OPENING.read(sent) == b""


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 2])
def test_an_agreement_ends_where_frames_begin(before: bytes) -> None:
    whole = before + agreement()
    assert all(OPENING.read(whole[:end]) is None for end in range(len(whole)))
    assert OPENING.read(whole + b"\x89\x00") == b"\x89\x00"


@pytest.mark.parametrize(
    ("response", "cause"),
    [
        (agreement(status=b"403 Forbidden"), "status 403"),
        (agreement(status=b"200 OK"), "status 200"),
        (agreement(accept=b"x"), "wrong handshake"),
        (agreement(more=b"Sec-WebSocket-Extensions: permessage-deflate\r\n"), "wrong handshake"),
        (agreement().replace(b"WebSocket\r", b"h2c\r"), "wrong handshake"),
        (agreement().replace(b", Upgrade", b""), "wrong handshake"),
        (b"hello from prefork\n\r\n\r\n", "wrong reply"),
        (b"x" * 70000, "wrong reply"),
    ],
)
def test_what_is_no_agreement_has_a_cause(response: bytes, cause: str) -> None:
    with pytest.raises(ExchangeError, match=f"^{cause}$"):
        OPENING.read(response)


@given(
    kind=KINDS, payload=st.binary(max_size=200) | st.sampled_from([b"x" * 65535, b"y" * 65536]), masked=st.booleans()
)
def test_frames_are_as_a_library_writes_them(kind: int, payload: bytes, masked: bool) -> None:
    mask = b"\1\2\3\4" if masked else b""
    made = frame(kind, payload, mask)
    head, sent = made[: len(made) - len(payload)], made[len(made) - len(payload) :]
    if masked:
        assert head.endswith(mask)
        sent = bytes(byte ^ mask[place % 4] for place, byte in enumerate(sent))
        head = bytes((head[0], head[1] ^ 0x80)) + head[2:-4]
    assert head + sent == Frame(Opcode(kind), payload).serialize(mask=False)


def heard(pieces: Sequence[bytes], most: int = 1 << 20) -> list[tuple[int, bytes]]:
    messages = Messages(most)
    found = [message for piece in pieces for message in messages.feed(piece)]
    assert messages.between
    return found


@given(st.data())
def test_messages_come_out_however_they_come_in(data: st.DataObject) -> None:
    """In fragments, with control frames between them, and cut anywhere."""
    wanted, sent = [], b""
    for kind, parts in data.draw(st.lists(st.tuples(KINDS, st.lists(st.binary(max_size=300), min_size=1)), max_size=4)):
        for number, part in enumerate(parts):
            if control := data.draw(st.sampled_from([0, PING, PONG])):
                wanted.append((control, part[:125]))
                sent += frame(control, part[:125])
            made = bytearray(frame(CONTINUATION if number else kind, part))
            made[0] &= 0xFF if number == len(parts) - 1 else 0x7F
            sent += made
        wanted.append((kind, b"".join(parts)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=6)) | {0, len(sent)})
    assert heard([sent[a:b] for a, b in itertools.pairwise(cuts)]) == wanted


def test_a_message_in_part_is_not_between() -> None:
    for piece in (b"\x81", b"\x01\x01x", b"\x81\x05hell"):
        messages = Messages(10)
        assert list(messages.feed(piece)) == []
        assert not messages.between


@pytest.mark.parametrize(
    ("sent", "cause"),
    [
        (frame(TEXT, b"x", b"\0\0\0\0"), "wrong frame"),  # masked
        (b"\xc1\x01x", "wrong frame"),  # a reserved bit
        (b"\x83\x01x", "wrong frame"),  # an unknown opcode
        (b"\x80\x01x", "wrong frame"),  # a continuation of nothing
        (b"\x01\x01x\x81\x01x", "wrong frame"),  # a message in the midst of another
        (b"\x09\x01x", "wrong frame"),  # half a ping
        (b"\x89\x7e\x00\x7e" + b"x" * 126, "wrong frame"),  # a long ping
        (b"\x88\x01x", "wrong frame"),  # half a code
        (b"\x81\x7e\x00\x05hello", "wrong frame"),  # a length longer than it must be
        (b"\x81\x7f" + (65535).to_bytes(8), "wrong frame"),
        (b"\x81\x7f\xff" + b"\xff" * 7, "wrong reply"),  # more than can be right, judged before it comes
        (b"\x01\x06worlds\x80\x05hello", "wrong reply"),  # the same in parts
    ],
)
def test_what_no_server_should_send_has_a_cause(sent: bytes, cause: str) -> None:
    with pytest.raises(ExchangeError, match=f"^{cause}$"):
        heard([sent], most=10)


def test_the_causes_of_a_close() -> None:
    assert close_cause(NORMAL) == "close 1000"
    assert close_cause((1012).to_bytes(2) + b"restart") == "close 1012"
    assert close_cause(b"") == "close 1005"
    assert heard([frame(CLOSE, NORMAL)]) == [(CLOSE, NORMAL)]
