"""A WebSocket session, frame by frame: what a client may send, and what it is told if it may not."""

from __future__ import annotations

import random
import zlib

import pytest

from prefork.http.websocket import CLOSED, CLOSING, OPEN, Event, WebSocket, apply_mask, fastest_mask
from prefork.http.websocket_close import Closed, WebSocketError
from prefork.http.websocket_deflate import Deflate
from tests.http.outcome import cut, cut_at_random
from tests.http.websocket_clients import frame

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
FIRST_TEXT, FIRST_BINARY, MORE, LAST = 0x01, 0x02, 0x00, 0x80
PACKED_TEXT, PACKED_BINARY, FIRST_PACKED_TEXT, FIRST_PACKED_BINARY = 0xC1, 0xC2, 0x41, 0x42
TAIL = b"\x00\x00\xff\xff"


def deflate(*, client_anew: bool = False, server_anew: bool = False) -> Deflate:
    return Deflate(server_bits=12, client_bits=12, server_anew=server_anew, client_anew=client_anew)


def packed(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def told(code: int, reason: str = "") -> bytes:
    """A Close frame of ours."""
    payload = code.to_bytes(2, "big") + reason.encode() if code else b""
    return bytes((CLOSE, len(payload))) + payload


# --- messages


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_messages_of_every_length_come_and_go(length: int) -> None:
    data = bytes(random.Random(length).choices(range(128), k=length))
    session = WebSocket()
    assert session.feed(frame(BINARY, data) + frame(TEXT, data)) == [data, data.decode()]
    size = 0 if length < 126 else 2 if length < 65536 else 8
    head = bytes((BINARY, {0: length, 2: 126, 8: 127}[size])) + (length.to_bytes(size, "big") if size else b"")
    assert session.binary(data) == head + data
    assert session.text(data.decode())[1:] == session.binary(data)[1:]
    assert session.outgoing() == b""


def test_any_buffer_can_be_sent_as_binary() -> None:
    session = WebSocket()
    assert session.binary(bytearray(b"abc")) == session.binary(memoryview(b"abc")) == session.binary(b"abc")


def test_a_message_in_fragments_is_one_message() -> None:
    euro = "€".encode()
    data = frame(FIRST_TEXT, euro[:1]) + frame(MORE) + frame(MORE, euro[1:2]) + frame(LAST, euro[2:])
    session = WebSocket()
    assert session.feed(data + frame(TEXT, b"next")) == ["€", "next"]
    assert session.feed(frame(FIRST_BINARY) + frame(LAST, b"b") + frame(BINARY, b"c")) == [b"b", b"c"]
    assert session.feed(frame(FIRST_BINARY) + frame(LAST)) == [b""]


def test_pings_are_answered_in_order_also_between_fragments() -> None:
    session = WebSocket()
    data = frame(FIRST_TEXT, b"a") + frame(PING, b"1") + frame(PONG, b"x") + frame(PING) + frame(LAST, b"b")
    assert session.feed(data) == ["ab"]
    assert session.outgoing() == bytes((PONG, 1)) + b"1" + bytes((PONG, 0))
    assert session.outgoing() == b""


def test_fragments_cost_no_memory_beyond_their_bytes() -> None:
    session = WebSocket(max_message_bytes=100)
    empty = frame(MORE) * 1000
    session.feed(frame(FIRST_BINARY, b"a" * 99))
    for _ in range(10):
        assert session.feed(empty) == []
    assert session.feed(frame(LAST, b"b")) == [b"a" * 99 + b"b"]


# --- what a client must not send


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes((TEXT, 0x05)) + b"hello", 1002),  # no mask
        (bytes((CLOSE, 0x00)), 1002),
        (b"GET / HTTP/1.1\r\n", 1002),
        (frame(0xC1, b"x"), 1002),  # reserved bits, and nothing was agreed on
        (frame(0xA1, b"x"), 1002),
        (frame(0x91, b"x"), 1002),
        (frame(0xC9, b"x"), 1002),
        *((frame(0x80 | opcode, b"x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (frame(0x09, b"x"), 1002),  # control frames in fragments, or too long
        (frame(0x08), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
        (frame(PING, b"x" * 5, size=2), 1002),
        (frame(MORE, b"x"), 1002),  # no message was begun
        (frame(LAST, b"x"), 1002),
        (frame(FIRST_TEXT, b"x") + frame(TEXT, b"x"), 1002),  # one was, and is not at its end
        (frame(FIRST_TEXT, b"x") + frame(FIRST_BINARY, b"x"), 1002),
        (frame(TEXT, b"x" * 125, size=2), 1002),  # lengths in more bytes than it takes
        (frame(TEXT, b"x" * 125, size=8), 1002),
        (frame(TEXT, b"x" * 65535, size=8), 1002),
        (frame(TEXT, b"x", size=8, length=1 << 63), 1002),
        (frame(TEXT, b"x", size=8, length=(1 << 63) - 1), 1009),
        (frame(TEXT, b"x", size=8, length=(1 << 24) + 1), 1009),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),  # a surrogate
        (frame(TEXT, b"\xc0\x80"), 1007),  # more bytes than it takes
        (frame(TEXT, "€".encode()[:2]), 1007),
        (frame(FIRST_TEXT, "€".encode()[:2]) + frame(LAST, b"x"), 1007),
        (frame(FIRST_TEXT, "€".encode()[:1]) + frame(LAST, "€".encode()[1:2]), 1007),
        (frame(CLOSE, b"\x03"), 1002),
        *(
            (frame(CLOSE, code.to_bytes(2, "big")), 1002)
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
        ),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    ],
)
def test_who_breaks_the_protocol_is_told_so_and_not_heard_again(data: bytes, code: int) -> None:
    for pieces in ([data], cut(data, 1) if len(data) < 1000 else [data[:9], data[9:]]):
        session = WebSocket()
        events: list[Event] = []
        for piece in [frame(TEXT, b"before"), *pieces, frame(TEXT, b"after")]:
            events += session.feed(piece)
        assert [type(event) for event in events] == [str, Closed]
        assert isinstance(events[1], Closed)
        assert events[1].code == code
        assert session.outgoing() == told(code, events[1].reason)
        assert session.state == CLOSED
        assert session.feed(frame(PING)) == []
        assert session.outgoing() == b""


def test_a_fault_in_a_head_is_seen_before_the_payload() -> None:
    for head, code in (
        (bytes((TEXT, 0x05)), 1002),
        (bytes((0x83, 0x85)), 1002),
        (bytes((PING, 0xFE, 0x00, 0x7E)), 1002),
        (frame(TEXT, b"", size=2, length=5)[:4], 1002),
        (frame(TEXT, b"", size=8, length=(1 << 24) + 1)[:10], 1009),
    ):
        session = WebSocket()
        events = [event for byte in cut(head, 1) for event in session.feed(byte)]
        assert [event.code for event in events if isinstance(event, Closed)] == [code]


@pytest.mark.parametrize("first", [FIRST_TEXT, FIRST_PACKED_TEXT])
@pytest.mark.parametrize(
    "pieces", [[b"ok\xff"], [b"ok", b"\xff"], ["\u03ba".encode() + b"\xf4", b"\x90"], [b"\xe2\x82", b"", b"x"]]
)
def test_text_in_fragments_that_is_not_utf_8_is_seen_with_the_fragment(first: int, pieces: list[bytes]) -> None:
    session = WebSocket(deflate=deflate())
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    for index, piece in enumerate(pieces):
        deflated = compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
        events = session.feed(frame(MORE if index else first, piece if first == FIRST_TEXT else deflated))
        assert events == ([Closed(1007, "not UTF-8")] if index == len(pieces) - 1 else [])
    assert session.outgoing() == told(1007, "not UTF-8")


# --- sizes


def test_a_message_has_its_bound_however_it_comes() -> None:
    for data in (
        frame(BINARY, b"x" * 101),
        frame(FIRST_BINARY, b"x" * 100) + frame(LAST, b"x"),
        frame(FIRST_BINARY, b"x" * 50) + frame(MORE, b"x" * 51),
        frame(PACKED_BINARY, packed(b"x" * 101)),
        frame(FIRST_PACKED_TEXT, packed(b"x" * 60) + TAIL) + frame(MORE, packed(b"x" * 41)),
    ):
        session = WebSocket(deflate=deflate(), max_message_bytes=100)
        assert session.feed(data)[-1:] == [Closed(1009, "message too big")]
    for data in (
        frame(BINARY, b"x" * 100),
        frame(FIRST_BINARY, b"x" * 50) + frame(PING, b"x" * 125) + frame(MORE, b"x" * 50) + frame(LAST),
        frame(PACKED_BINARY, packed(b"x" * 100)),
        frame(FIRST_PACKED_BINARY, packed(b"x" * 100) + TAIL) + frame(LAST, b"\x00"),
    ):
        session = WebSocket(deflate=deflate(), max_message_bytes=100)
        assert session.feed(data) == [b"x" * 100]
        assert session.feed(data) == [b"x" * 100]


def test_a_deflate_bomb_is_not_unpacked() -> None:
    """16 MiB of zeros in 16 KiB."""
    session = WebSocket(deflate=deflate(), max_message_bytes=100_000)
    assert session.feed(frame(PACKED_BINARY, packed(bytes(1 << 24)))) == [Closed(1009, "message too big")]
    session = WebSocket(deflate=deflate())
    assert session.feed(frame(PACKED_BINARY, packed(bytes((1 << 24) + 1)))) == [Closed(1009, "message too big")]


def test_many_that_are_large_unpacked_come_one_by_one() -> None:
    """As when they came in one piece; what is behind them as well."""
    large = bytes(3 << 19)
    data = frame(PACKED_BINARY, packed(large)) * 3 + frame(PACKED_TEXT, packed(b"small")) + frame(PING) + b"\x81"
    session = WebSocket(deflate=deflate())
    assert session.feed(data) == [large]
    assert session.behind
    assert session.feed(b"\x82") == [large], "that more comes is no reason to take more"
    assert session.feed(b"") == [large]
    assert session.outgoing() == b""
    assert session.feed(b"") == ["small"]
    assert session.outgoing() == b"\x8a\x00"
    assert not session.behind
    assert session.feed(bytes(4) + b"ab") == ["ab"]


# --- deflate


def test_compressed_and_plain_messages_mix() -> None:
    session = WebSocket(deflate=deflate())
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)

    def next_packed(data: bytes) -> bytes:
        return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)

    text = b"said again and again, " * 5
    first = next_packed(text)[:-4]
    second = next_packed(text)[:-4]
    assert len(second) < 20
    third = next_packed(text) + next_packed(text)[:-4]
    data = (
        frame(PACKED_TEXT, first) + frame(TEXT, b"plain") + frame(PACKED_BINARY, second)
        + frame(FIRST_PACKED_TEXT, third[:7]) + frame(PING) + frame(MORE, third[7:9]) + frame(MORE)
        + frame(LAST, third[9:])
    )  # fmt: skip
    expected = [text.decode(), "plain", text, (text * 2).decode()]
    assert session.feed(data) == expected
    assert session.state == OPEN


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(PACKED_TEXT, b"\xff\xff\xff"), 1007),  # no such block
        (frame(PACKED_TEXT, packed(b"hello")[:-1] + b"\x07garbage!"), 1007),
        (frame(PACKED_TEXT, packed(b"\xff\xfe")), 1007),
        (frame(PACKED_TEXT, b"\x03\x00" + b"behind the last block"), 1007),
        (frame(FIRST_PACKED_TEXT, packed(b"a") + TAIL) + frame(0xC0, b""), 1002),  # the bit in a continuation
        (frame(FIRST_PACKED_TEXT, packed(b"a") + TAIL) + frame(0x40, b""), 1002),
        (frame(0xC9), 1002),
        (frame(0xC8), 1002),
        (frame(0xE1), 1002),
    ],
)
def test_what_is_wrong_with_compressed_frames(data: bytes, code: int) -> None:
    session = WebSocket(deflate=deflate())
    (event,) = session.feed(data)
    assert isinstance(event, Closed)
    assert event.code == code


def test_a_block_that_says_it_is_the_last_ends_the_context_and_not_the_session() -> None:
    """RFC 7692 7.2.3.4, whose example it is."""
    hello = b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"
    session = WebSocket(deflate=deflate())
    for pieces in ((hello,), (hello[:7], hello[7:]), (hello[:3], hello[3:])):
        firsts = [PACKED_TEXT] if len(pieces) == 1 else [FIRST_PACKED_TEXT, LAST]
        assert session.feed(b"".join(map(frame, firsts, pieces))) == ["Hello"]
    assert session.feed(frame(PACKED_TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00")) == ["Hello"]
    assert session.feed(frame(PACKED_TEXT, b"\xf2\x00\x11\x00\x00")) == ["Hello"]


def test_short_messages_are_sent_as_they_are_and_longer_ones_refer_to_those_before() -> None:
    session = WebSocket(deflate=deflate())
    assert session.text("x" * 63) == b"\x81\x3f" + b"x" * 63
    text = "".join(random.Random(1).choices("abcdefghijklmnop", k=500))
    first, second = session.text(text), session.text(text)
    assert first[0] == second[0] == PACKED_TEXT
    assert len(second) < 20 < len(first)
    session.ping()  # a quiet client: what was said is forgotten
    assert len(session.text(text)) == len(first)


def test_each_message_stands_by_itself_where_that_was_agreed_on() -> None:
    session = WebSocket(deflate=deflate(client_anew=True, server_anew=True))
    text = "".join(random.Random(1).choices("abcdefghijklmnop", k=500))
    assert session.text(text) == session.text(text)
    data = frame(PACKED_TEXT, packed(text.encode()))
    assert session.feed(data + data) == [text, text]
    refers_back = zlib.compressobj(9, zlib.DEFLATED, -12, zdict=text.encode())
    payload = (refers_back.compress(text.encode()) + refers_back.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert [type(event) for event in session.feed(frame(PACKED_TEXT, payload))] == [Closed]


# --- closing


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999])
def test_a_client_that_closes_gets_its_code_back(code: int) -> None:
    session = WebSocket()
    payload = code.to_bytes(2, "big") + "für heute".encode()
    assert session.feed(frame(PING, b"1") + frame(CLOSE, payload) + frame(TEXT, b"x")) == [Closed(code, "für heute")]
    assert session.outgoing() == bytes((PONG, 1)) + b"1" + told(code, "für heute")
    assert session.state == CLOSED


def test_a_client_may_close_without_a_code_and_inside_a_message() -> None:
    session = WebSocket()
    assert session.feed(frame(FIRST_TEXT, b"x") + frame(CLOSE)) == [Closed(1005, "")]
    assert session.outgoing() == told(0)


def test_a_server_that_closes_waits_for_the_answer_and_drops_the_rest() -> None:
    session = WebSocket(deflate=deflate())
    assert session.close(1012, "again soon") == told(1012, "again soon")
    assert session.state == CLOSING
    assert session.feed(frame(TEXT, b"x") + frame(FIRST_PACKED_TEXT, packed(b"y" * 90) + TAIL)) == []
    assert session.feed(frame(LAST, b"\x00") + frame(CLOSE, b"\x03\xf4")) == [Closed(1012, "")]
    assert session.outgoing() == b""
    assert session.state == CLOSED


def test_a_close_of_ours_that_comes_second_is_the_answer_to_theirs() -> None:
    session = WebSocket()
    session.feed(frame(PING) + frame(0x83))
    assert session.close(1000, "bye") == bytes((PONG, 0)) + told(1002, "unknown opcode")
    with pytest.raises(WebSocketError, match="closed"):
        session.close()


def test_a_fault_while_closing_is_not_answered_a_second_time() -> None:
    session = WebSocket()
    session.close()
    assert session.feed(frame(0x83)) == [Closed(1002, "unknown opcode")]
    assert session.outgoing() == b""


def test_nothing_can_be_sent_after_a_close() -> None:
    ours, theirs = WebSocket(), WebSocket()
    ours.close()
    theirs.feed(frame(CLOSE))
    assert theirs.text("before the Close is out") != b""
    theirs.outgoing()
    for session in (ours, theirs):
        for send in (lambda s: s.text("x"), lambda s: s.binary(b"x"), lambda s: s.ping(), lambda s: s.close()):
            with pytest.raises(WebSocketError, match="closed"):
                send(session)


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 70000])
def test_a_close_code_that_cannot_be_sent_is_the_applications_fault(code: int) -> None:
    session = WebSocket()
    with pytest.raises(WebSocketError, match=str(code)):
        session.close(code)
    assert session.state == OPEN


def test_a_close_reason_is_cut_between_characters_if_it_does_not_fit() -> None:
    assert WebSocket().close(1000, "x" * 124) == told(1000, "x" * 123)
    assert WebSocket().close(1000, "ü" * 62) == told(1000, "ü" * 61)
    assert WebSocket().close(1000, "\ud800") == told(1000, "?")


def test_what_is_no_message_is_the_applications_fault() -> None:
    session = WebSocket()
    for send, what in (
        (lambda: session.text(b"x"), "is a bytes"),  # type: ignore[arg-type]
        (lambda: session.text(None), "is a NoneType"),  # type: ignore[arg-type]
        (lambda: session.text("\ud800"), "UTF-8"),
        (lambda: session.binary("x"), "is a str"),  # type: ignore[arg-type]
        (lambda: session.binary(5), "is an int"),  # type: ignore[arg-type]
    ):
        with pytest.raises(WebSocketError, match=what):
            send()
    assert session.state == OPEN


# --- how bytes are cut


def test_a_long_frame_in_many_pieces_is_gathered_once() -> None:
    """A thousand pieces are not looked at a thousand times: the time is that of a few, so it is only run."""
    data = frame(BINARY, bytes(1 << 20))
    session = WebSocket()
    events = [event for piece in cut(data, 1024) for event in session.feed(piece)]
    assert events == [bytes(1 << 20)]


def test_a_session_makes_the_same_of_bytes_however_they_are_cut() -> None:
    rng = random.Random(7)
    firsts = (TEXT, BINARY, FIRST_TEXT, FIRST_BINARY, MORE, LAST, PING, PONG, CLOSE, PACKED_TEXT, FIRST_PACKED_TEXT, 0)
    for _ in range(1000):
        data = b""
        for _ in range(rng.randrange(1, 8)):
            payload = rng.choice([b"", b"abc", b"\xff", packed(b"abc"), packed(b"a" * 200), b"\x03\xe8", b"y" * 130])
            data += frame(rng.choice(firsts[: rng.choice((7, 8, 12))]), payload)
        if rng.random() < 0.4:
            at = rng.randrange(len(data))
            data = data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
        outcomes = []
        for pieces in ([data], cut(data, 1), cut_at_random(data, rng)):
            session = WebSocket(deflate=deflate(), max_message_bytes=250)
            events = [event for piece in pieces for event in session.feed(piece)]
            outcomes.append((events, session.outgoing(), session.state))
        assert outcomes[0] == outcomes[1] == outcomes[2]


def test_masks_are_applied_in_c() -> None:
    """Else `websockets` has moved its undocumented function."""
    assert fastest_mask() is not apply_mask


@pytest.mark.parametrize("mask", [b"\x00\x00\x00\x00", b"\x01\xff\x80\x7f"])
def test_masking_in_python_is_the_same(mask: bytes) -> None:
    for size in range(20):
        data = bytes(range(size))
        assert apply_mask(data, mask) == apply_mask(bytearray(data), mask) == fastest_mask()(data, mask)
        assert apply_mask(apply_mask(data, mask), mask) == data
