"""The PROXY protocol, versions 1 and 2: what a load balancer says about a connection before the client's bytes. Pure.

    v1   PROXY TCP4 192.0.2.1 192.0.2.2 40000 443 CRLF         at most 107 bytes; TCP6, UNKNOWN
    v2   12 bytes of signature, version and command, family, length, then addresses and extensions (TLV)

It is read once, at the start of a connection from a peer that is trusted; whatever comes after it is the client's, also
if it looks the same. A peer that should send it and does not is refused: with a guess, anyone could pass for anyone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from prefork.http.limits import quoted

V1_MOST: Final = 107  # bytes, its CRLF included
V2_MOST: Final = 16 + 4096  # bytes; the addresses need 216 at most, the rest are extensions
_V1_START = b"PROXY "
_V2_START = b"\r\n\r\n\x00\r\nQUIT\n"
_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f.:]{2,45}) ([0-9A-Fa-f.:]{2,45}) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [ -~]*)?\r\n")
_LOCAL, _PROXY = 0x20, 0x21  # version 2 in the high half, the command in the low
_UNSPECIFIED, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_UNIX_PATH = 108  # bytes


class ProxyProtocolError(ValueError):
    """What came is no PROXY header; the message is for the log."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of the connection that the proxy took: an address and its port, or a Unix path and 0."""

    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyHeader:
    """`source` is the client, `destination` what it connected to; None if the proxy speaks for itself.

    `consumed`: the header's length in bytes; the client's begin behind it.
    """

    source: End | None
    destination: End | None
    consumed: int


def parse(data: bytes) -> ProxyHeader | None:
    """Read the header at the start of what came; None if more is needed. Raises ProxyProtocolError."""
    if data.startswith(_V1_START):
        return _parse_v1(data)
    if data.startswith(_V2_START):
        return _parse_v2(data)
    if _V1_START.startswith(data) or _V2_START.startswith(data):
        return None
    raise ProxyProtocolError(f"no PROXY header: {quoted(data)}")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, V1_MOST) + 1
    if not end:
        if len(data) < V1_MOST:
            return None
        raise ProxyProtocolError(f"PROXY header without an end within {V1_MOST} bytes")
    line = data[:end]
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(source=None, destination=None, consumed=end)
    match = _V1.fullmatch(line)
    if not match:
        raise ProxyProtocolError(f"PROXY header: {quoted(line)}")
    kind = IPv4Address if match[1] == b"TCP4" else IPv6Address
    try:
        source, destination = (
            End(_text(kind(match[index].decode("ascii"))), _port(match[index + 2])) for index in (2, 3)
        )
    except ValueError:
        raise ProxyProtocolError(f"addresses of a PROXY header: {quoted(line)}") from None
    return ProxyHeader(source=source, destination=destination, consumed=end)


def _text(address: IPv4Address | IPv6Address) -> str:
    """The address; an IPv4 one for `::ffff:192.0.2.1`, as a proxy that listens on an IPv6 socket may have it."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _port(digits: bytes) -> int:
    number = int(digits)
    if number > 65535 or (digits[:1] == b"0" and digits != b"0"):
        raise ValueError(digits)
    return number


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    command, family = data[12], data[13]
    consumed = 16 + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"version and command of a PROXY header: 0x{command:02x}")
    if consumed > V2_MOST:
        raise ProxyProtocolError(f"PROXY header of {consumed} bytes, more than {V2_MOST}")
    if len(data) < consumed:
        return None
    body = data[16:consumed]
    if command == _LOCAL or family == _UNSPECIFIED:
        return ProxyHeader(source=None, destination=None, consumed=consumed)
    source, destination = _ends(family, body)
    return ProxyHeader(source=source, destination=destination, consumed=consumed)


def _ends(family: int, body: bytes) -> tuple[End, End]:
    """The two ends; extensions behind them are passed over."""
    if family in (_TCP4, _TCP6):
        size = 4 if family == _TCP4 else 16
        if len(body) >= 2 * size + 4:
            kind = IPv4Address if family == _TCP4 else IPv6Address
            ports = [int.from_bytes(body[at : at + 2], "big") for at in (2 * size, 2 * size + 2)]
            return End(_text(kind(body[:size])), ports[0]), End(_text(kind(body[size : 2 * size])), ports[1])
    elif family == _UNIX_STREAM:
        if len(body) >= 2 * _UNIX_PATH:
            return End(_path(body[:_UNIX_PATH]), 0), End(_path(body[_UNIX_PATH : 2 * _UNIX_PATH]), 0)
    else:
        raise ProxyProtocolError(f"address family of a PROXY header: 0x{family:02x}")
    raise ProxyProtocolError(f"PROXY header too short for its addresses: {len(body)} bytes")


def _path(field: bytes) -> str:
    """A Unix path, which ends at its first NUL; an abstract one begins with it. Printable, for logs."""
    name = b"@" + field[1:] if field[:1] == b"\x00" else field
    return "unix:" + name.partition(b"\x00")[0].decode("ascii", "backslashreplace")
