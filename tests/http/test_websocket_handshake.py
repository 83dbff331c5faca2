"""The handshake: which requests open a WebSocket, what the answer says, and what an application may put into it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidHeaderFormat, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

from prefork.http.limits import Refusal
from prefork.http.response import ResponseError
from prefork.http.websocket import WebSocket
from prefork.http.websocket_deflate import negotiate
from prefork.http.websocket_handshake import Handshake, handshake, refuse
from tests.http.websocket_clients import STAMP, parsed

START = b"GET /chat HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"


def judged(*lines: bytes, deflate: bool = True) -> Handshake | Refusal:
    return handshake(parsed(START + b"".join(lines) + b"\r\n")[0], deflate=deflate)


def opening(*lines: bytes, deflate: bool = True) -> Handshake:
    found = judged(KEY, VERSION, *lines, deflate=deflate)
    assert isinstance(found, Handshake), found
    return found


def extensions(offer: bytes) -> bytes | None:
    """What is answered to an offer."""
    head, _ = opening(b"Sec-WebSocket-Extensions: %b\r\n" % offer).accept(None, [], STAMP)
    found = [line for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Extensions")]
    return found[0].partition(b": ")[2] if found else None


def test_the_answer_is_that_of_the_rfc() -> None:
    """Section 1.3, whose key it is."""
    head, session = opening().accept(None, [], STAMP)
    assert head == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" + STAMP
    )
    assert isinstance(session, WebSocket)


def test_what_follows_the_handshake_belongs_to_the_session() -> None:
    request, rest = parsed(START + KEY + VERSION + b"\r\n" + b"\x81\x81\x00\x00\x00\x00x")
    found = handshake(request)
    assert isinstance(found, Handshake)
    assert found.accept(None, [], STAMP)[1].feed(rest) == ["x"]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((KEY,), 426),
        ((KEY, b"Sec-WebSocket-Version: 8\r\n"), 426),
        ((KEY, b"Sec-WebSocket-Version: 13, 8\r\n"), 426),
        ((KEY, VERSION, VERSION), 426),
        ((b"Sec-WebSocket-Version: 12\r\n",), 426),
        ((VERSION,), 400),
        ((VERSION, KEY, KEY), 400),
        ((VERSION, b"Sec-WebSocket-Key: \r\n"), 400),
        ((VERSION, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n"), 400),
        ((VERSION, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n"), 400),
        ((VERSION, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=!\r\n"), 400),
        ((VERSION, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZZZZ\r\n"), 400),
        ((VERSION, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ== x\r\n"), 400),
        ((VERSION, KEY, b"Sec-WebSocket-Protocol: a b\r\n"), 400),
        ((VERSION, KEY, b"Sec-WebSocket-Protocol: a, b/c\r\n"), 400),
        ((VERSION, KEY, b"Sec-WebSocket-Protocol: a, b, a\r\n"), 400),
        ((VERSION, KEY, b"Sec-WebSocket-Protocol: \xe4\r\n"), 400),
        ((VERSION, KEY, b"Sec-WebSocket-Extensions: permessage-deflate; =\r\n"), 400),
        ((VERSION, KEY, b"Sec-WebSocket-Extensions: permessage-deflate, x" + b"x" * 1010 + b"\r\n"), 400),
    ],
)
def test_a_handshake_that_is_not_in_order_is_refused(lines: tuple[bytes, ...], status: int) -> None:
    refusal = judged(*lines)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    answer = refuse(refusal, STAMP)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"Connection: close\r\n") == 1
    fields = (b"Sec-WebSocket-Version: 13\r\n", b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n")
    assert all((field in answer) == (status == 426) for field in fields)


def test_subprotocols_are_offered_in_their_order() -> None:
    assert opening().subprotocols == []
    assert opening(b"Sec-WebSocket-Protocol: \r\n").subprotocols == []
    assert opening(b"Sec-WebSocket-Protocol: v2, v1,\r\nSec-WebSocket-Protocol: V1\r\n").subprotocols == [
        "v2", "v1", "V1",
    ]  # fmt: skip


def test_only_a_subprotocol_that_was_offered_can_be_chosen() -> None:
    found = opening(b"Sec-WebSocket-Protocol: v2, v1\r\n")
    assert b"\r\nSec-WebSocket-Protocol: v1\r\n" in found.accept("v1", [], STAMP)[0]
    assert b"Sec-WebSocket-Protocol" not in found.accept(None, [], STAMP)[0]
    for wrong in ("v3", "", "v2, v1", "v1\r\nX: y"):
        with pytest.raises(ResponseError, match="did not offer"):
            found.accept(wrong, [], STAMP)


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        (
            b"permessage-deflate; client_max_window_bits",  # browsers
            b"permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
        ),
        (
            b"permessage-deflate; client_max_window_bits=10; server_max_window_bits=9",
            b"permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
        ),
        (
            b"permessage-deflate; client_max_window_bits=15; server_max_window_bits=15",
            b"permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
        ),
        (b"permessage-deflate", b"permessage-deflate; client_no_context_takeover; server_max_window_bits=12"),
        (
            b'permessage-deflate; client_max_window_bits="12"; server_no_context_takeover; client_no_context_takeover',
            (
                b"permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
                b"server_max_window_bits=12; client_max_window_bits=12"
            ),
        ),
        (
            (
                b"x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=8; client_max_window_bits, "
                b"permessage-deflate; client_max_window_bits"
            ),  # zlib has no window of 8 bits
            b"permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
        ),
        (b"permessage-deflate; server_max_window_bits=8", None),
        (b"permessage-deflate; server_max_window_bits=16", None),
        (b"permessage-deflate; server_max_window_bits", None),
        (b"permessage-deflate; client_max_window_bits=x", None),
        (b"permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        (b"permessage-deflate; server_no_context_takeover=1", None),
        (b"permessage-deflate; unknown", None),
        (b"permessage-bzip2", None),
        (b"anything; goes=here, or / not", None),
    ],
)
def test_compression_is_agreed_on(offer: bytes, answer: bytes | None) -> None:
    assert extensions(offer) == answer


PARAMETERS = st.tuples(
    st.sampled_from(
        ["server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits", "client_max_window_bits"]
        * 4
        + ["unknown"]
    ),
    st.sampled_from(
        ["", "", "", "=8", "=9", "=12", "=13", '="15"', r'="1\0"', "=08", "=16", '=""', '="a b"', "=", " = 9"]
    ),
).map("".join)
OFFERS = st.lists(
    st.tuples(
        st.sampled_from(["permessage-deflate"] * 5 + ["x-webkit-deflate-frame", "", "a b"]),
        st.lists(PARAMETERS, max_size=4),
        st.sampled_from(["; ", ";", " ;\t", ";;"]),
    ).map(lambda offer: offer[2].join([offer[0], *offer[1]])),
    min_size=1,
    max_size=3,
).map(", ".join)


@given(OFFERS)
def test_compression_is_agreed_on_as_websockets_does(offers: str) -> None:
    """Its parser and its two ways to accept an offer: with a window of 12 bits, or with a new context each time."""
    expected: str | type[ValueError] | None = None
    try:
        parsed_offers = parse_extension(offers.strip()) if "permessage-deflate" in offers else []
    except InvalidHeaderFormat:
        expected = ValueError
    else:
        ways = (
            {"client_max_window_bits": 12, "require_client_max_window_bits": True},
            {"client_no_context_takeover": True},
        )
        for name, parameters in parsed_offers:
            for way in ways:
                factory = ServerPerMessageDeflateFactory(server_max_window_bits=12, **way)
                with contextlib.suppress(NegotiationError, ValueError):
                    if expected is None and name == "permessage-deflate":
                        expected = build_extension([(name, factory.process_request_params(parameters, [])[0])])
    try:
        agreed = negotiate(offers.strip())
        found: str | type[ValueError] | None = agreed and agreed[0]
    except ValueError:
        found = ValueError
    assert found == expected


def test_compression_can_be_switched_off() -> None:
    offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    head, session = opening(offer, deflate=False).accept(None, [], STAMP)
    assert b"Extensions" not in head
    assert session.text("x" * 200)[0] == 0x81


def test_an_applications_fields_are_sent_and_replace_the_servers() -> None:
    head, _ = opening().accept(None, [(b"set-cookie", b"a=\xe4"), (b"X-Y", b""), (b"server", b"mine")], STAMP)
    assert b"\r\nset-cookie: a=\xe4\r\nX-Y: \r\nserver: mine\r\n" in head
    assert b"Server" not in head
    assert b"\r\nDate: " in head
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"a", b"b\r\nc: d"),
        (b"a", b"b\n"),
        (b"a", b"b\x00"),
        (b"a b", b""),
        (b"a:", b""),
        (b"", b""),
        (b"a\r\n", b""),
        (b":status", b"101"),
        ("a", b"b"),
        (b"a", "b"),
        (b"a", None),
        (b"a", b"b\x7f"),
        (b"a", b"b\x1b"),
        (b"Sec-WebSocket-Protocol", b"x"),
    ],
)
def test_an_applications_field_cannot_spoil_the_head(name: bytes, value: bytes) -> None:
    with pytest.raises(ResponseError):
        opening().accept(None, [(name, value)], STAMP)


def test_what_is_another_connections_is_left_out_of_the_head() -> None:
    """An application that passes on the answer of another server has that one's handshake."""
    copied = [
        (b"Connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"content-length", b"0"), (b"Keep-Alive", b"x"),
        (b"Transfer-Encoding", b"chunked"), (b"sec-websocket-accept", b"x"), (b"TE", b"x"), (b"trailer", b"x"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate"), (b"Sec-WebSocket-Protocol", b"v1"),
    ]  # fmt: skip
    one = opening(b"Sec-WebSocket-Protocol: v1\r\n")
    assert one.accept("v1", copied, STAMP)[0] == one.accept("v1", [], STAMP)[0]
    with pytest.raises(ResponseError, match="give it as `subprotocol`"):
        one.accept(None, copied, STAMP)


@pytest.mark.parametrize("value", [b"a\tb", b"\ta\t", b"caf\xe9"])
def test_a_value_may_have_tabs_and_obs_text(value: bytes) -> None:
    assert b"\r\nx: %b\r\n" % value in opening().accept(None, [(b"x", value)], STAMP)[0]
