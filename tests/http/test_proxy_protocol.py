"""The PROXY header: both versions, cut anywhere, and everything that is none."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.proxy_protocol import V1_MOST, V2_MOST, End, ProxyHeader, ProxyProtocolError, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
REST = b"GET / HTTP/1.1\r\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def ends(family: int, source: str, destination: str, *ports: int) -> bytes:
    return v2(0x21, family, ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", *ports))


PATHS = b"/run/client.sock".ljust(108, b"\x00") + b"\x00abstract".ljust(108, b"\x00")
GOOD = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\n", ("192.0.2.1", 40000), ("192.0.2.2", 443)),
    (b"PROXY TCP4 255.255.255.255 1.1.1.1 65535 65535\r\n", ("255.255.255.255", 65535), ("1.1.1.1", 65535)),
    (b"PROXY TCP6 2001:db8::1 ::1 0 443\r\n", ("2001:db8::1", 0), ("::1", 443)),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:c000:0202 0 443\r\n", ("192.0.2.1", 0), ("192.0.2.2", 443)),
    (ends(0x21, "::ffff:192.0.2.1", "::ffff:192.0.2.2", 40000, 443), ("192.0.2.1", 40000), ("192.0.2.2", 443)),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None, None),
    (ends(0x11, "192.0.2.1", "192.0.2.2", 40000, 443), ("192.0.2.1", 40000), ("192.0.2.2", 443)),
    (ends(0x21, "2001:db8::1", "::1", 40000, 443), ("2001:db8::1", 40000), ("::1", 443)),
    (v2(0x21, 0x31, PATHS), ("unix:/run/client.sock", 0), ("unix:@abstract", 0)),
    (v2(0x20, 0x00, b""), None, None),
    (v2(0x20, 0x11, b"\x00" * 12), None, None),
    (v2(0x21, 0x00, b"whatever"), None, None),
    (v2(0x21, 0x11, bytes(12) + b"\x04\x00\x03abc"), ("0.0.0.0", 0), ("0.0.0.0", 0)),  # with an extension
]  # fmt: skip


@pytest.mark.parametrize(("data", "source", "destination"), GOOD)
def test_a_header(data: bytes, source: tuple[str, int] | None, destination: tuple[str, int] | None) -> None:
    wanted = ProxyHeader(
        source=End(*source) if source else None,
        destination=End(*destination) if destination else None,
        consumed=len(data),
    )
    assert parse(data) == wanted
    assert parse(data + REST) == wanted
    assert parse(data + data) == wanted, "only the first is a header, whatever the client sends"
    for size in range(len(data)):
        assert parse(data[:size]) is None, f"after {size} bytes"


@pytest.mark.parametrize(
    "data",
    [
        REST,
        b"\x16\x03\x01",
        b"proxy TCP4 192.0.2.1 192.0.2.2 40000 443\r\n",
        b"PROXY  TCP4 192.0.2.1 192.0.2.2 40000 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443 \r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 40000\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 040 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 40000 443\r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.2 40000 443\r\n",
        b"PROXY TCP4 ::1 ::1 40000 443\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 40000 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 40000 443\r\n",
        b"PROXY TCP7 ::1 ::1 40000 443\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 40000 443\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN\x00\r\n",
        b"PROXY " + b"a" * V1_MOST,
        b"PROXY UNKNOWN " + b"a" * V1_MOST + b"\r\n",
        v2(0x11, 0x11, bytes(12)),  # version 1 in the dress of 2
        v2(0x31, 0x11, bytes(12)),
        v2(0x22, 0x11, bytes(12)),
        v2(0x21, 0x12, bytes(12)),  # UDP
        v2(0x21, 0x41, bytes(12)),
        v2(0x21, 0x11, bytes(11)),
        v2(0x21, 0x21, bytes(35)),
        v2(0x21, 0x31, bytes(215)),
        v2(0x21, 0x11, bytes(V2_MOST)),
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ProxyProtocolError) as caught:
        parse(data)
    assert str(caught.value).isprintable()


def test_an_endless_header_is_refused_without_waiting_for_its_end() -> None:
    assert parse(b"PROXY UNKNOWN " + b"a" * (V1_MOST - 15)) is None
    with pytest.raises(ProxyProtocolError):
        parse(b"PROXY UNKNOWN " + b"a" * (V1_MOST - 14))
    with pytest.raises(ProxyProtocolError):
        parse(SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 0xFFFF))


@given(
    start=st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]),
    rest=st.binary(max_size=300),
)
def test_any_bytes_are_a_header_or_not_enough_or_none(start: bytes, rest: bytes) -> None:
    try:
        found = parse(start + rest)
    except ProxyProtocolError:
        return
    assert found is None or found.consumed <= len(start + rest)


def plain(address: str) -> str:
    """The IPv4 address that an IPv6 one stands for, or the same."""
    found = ip_address(address)
    return str((found.version == 6 and found.ipv4_mapped) or found)


@given(
    version=st.sampled_from([4, 6]),
    data=st.data(),
    ports=st.tuples(*[st.integers(0, 65535)] * 2),
)
def test_both_versions_say_the_same(version: int, data: st.DataObject, ports: tuple[int, int]) -> None:
    addresses = st.ip_addresses(v=4 if version == 4 else 6)
    source, destination = str(data.draw(addresses)), str(data.draw(addresses))
    if "%" in source + destination:
        return
    text = f"PROXY TCP{version} {source} {destination} {ports[0]} {ports[1]}\r\n".encode()
    first, second = parse(text), parse(ends(0x11 if version == 4 else 0x21, source, destination, *ports))
    assert first is not None
    assert second is not None
    assert (first.source, first.destination) == (second.source, second.destination) == (
        End(plain(source), ports[0]), End(plain(destination), ports[1]),
    )  # fmt: skip
