"""Who the client is, when proxies of ours stand between: Forwarded (RFC 7239) and X-Forwarded-For, -Proto, -Host. Pure.

Each proxy appends the address that it was called from. So the list is believed from its right end, only if the peer
is trusted, and only as far as the addresses in it are: the first one that is not is the client's. What stands left of
it, the client may have written itself. Protocol and host are taken from the same proxy's hand as the address.

A proxy that writes one of the two kinds may pass on the other as a client wrote it. If both are there and do not say
the same, neither is believed: the peer stays what it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

from prefork.http.fields import TOKEN, is_authority

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Network

    from prefork.http.fields import Field


# --- Which peers are proxies of ours, so that what they say about the client is believed. Pure.


Address: TypeAlias = IPv4Address | IPv6Address
UNIX = "unix:"  # what a peer on a Unix socket is called, whoever it is: reaching the socket is the file's permissions


class Trusted:
    """The proxies of `--trusted-proxies`: addresses, networks (10.0.0.0/8), and `unix:` for Unix sockets."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, items: Iterable[str]) -> None:
        """Raises ValueError with a sentence for the user."""
        self._unix = False
        self._networks: list[IPv4Network | IPv6Network] = []
        for item in items:
            if item == UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(ip_network(item))
            except ValueError as error:
                raise ValueError(
                    f"{item!r} is no trusted proxy: {error}; give an address, a network or {UNIX}"
                ) from None

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def has_peer(self, peer: str) -> bool:
        """Whether the other end of a connection is one: its address without a port, or `unix:`."""
        if peer.startswith(UNIX):
            return self._unix
        address = parse(peer)
        return address is not None and address in self

    def __contains__(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parse(text: str) -> Address | None:
    """Return the address, an IPv4 one also for `::ffff:192.0.2.1`; None if it is none. Scopes (`%eth0`) are none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


_MOST_HOPS = 32  # beyond, nobody looks: each costs microseconds
_MOST_BYTES = 8192  # of Forwarded
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}

# RFC 7239 4. Each byte tells what may follow it, so a text that does not match is given up in linear time. No group is
# possessive: `re` of Python 3.11 fails with some of those (no match up to 3.11.4, SystemError in 3.11.7).
_TOKEN = TOKEN.pattern
_TEXT = rb"[\t !#-\[\]-~\x80-\xff]*(?:\\[\t -~\x80-\xff][\t !#-\[\]-~\x80-\xff]*)*"
_PAIR = re.compile(rb'(%b)=(?:(%b)|"(%b)")' % (_TOKEN, _TOKEN, _TEXT))
_ANY_PAIR = rb'%b=(?:%b|"%b")' % (_TOKEN, _TOKEN, _TEXT)
_ELEMENT = re.compile(rb"[ \t]*(%b(?:;%b)*)[ \t]*(,|\Z)" % (_ANY_PAIR, _ANY_PAIR))
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_NODE = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::([0-9]{1,5}))?|([0-9A-Fa-f:.]{2,45})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The client as our proxies saw it.

    `address`: its address without a port. `port`: 0 if unknown. `scheme`: "http", "https", or "" if nobody said.
    `host`: the authority that it asked for, b"" if nobody said.
    """

    address: str
    port: int = 0
    scheme: str = ""
    host: bytes = b""


@dataclass(frozen=True, slots=True)
class _Hop:
    """What one proxy said."""

    node: bytes = b""
    scheme: bytes = b""
    host: bytes = b""


def find_origin(fields: Sequence[Field], peer: str, port: int, trusted: Trusted) -> Origin:
    """Return who the client is: the peer (address without port, or `unix:`), or whom trusted proxies name."""
    here = Origin(address=peer, port=port)
    if not trusted.has_peer(peer):
        return here
    found = [
        _walk(hops, here, trusted) for hops in (_forwarded(_values(fields, b"forwarded")), _x_forwarded(fields)) if hops
    ]
    agreed = {(origin.address, origin.scheme, origin.host) for origin in found}
    return found[0] if len(agreed) == 1 else here


def _walk(hops: list[_Hop], here: Origin, trusted: Trusted) -> Origin:
    """From the peer's own word leftwards, as long as the one who speaks is trusted."""
    origin = here
    for hop in reversed(hops[-_MOST_HOPS:]):
        address, port = _node(hop.node)
        origin = Origin(
            address=str(address or origin.address),  # "unknown", "_hidden": all that we know is who said so
            port=port if address else origin.port,
            scheme=_SCHEMES.get(hop.scheme.lower(), ""),
            host=hop.host if is_authority(hop.host) else b"",
        )
        if address is None or address not in trusted:
            break
    return origin


def _node(text: bytes) -> tuple[Address | None, int]:
    """Return address and port (0 if not given) of RFC 7239's node, or of what stands in X-Forwarded-For."""
    match = _NODE.fullmatch(text)
    if not match:
        return None, 0
    literal, plain, port, bare = match.groups()
    number = int(port or 0)
    return (parse((literal or plain or bare).decode("ascii")), number) if number <= 65535 else (None, 0)


def _values(fields: Sequence[Field], lower: bytes) -> list[bytes]:
    return [value for name, value in fields if name.lower == lower]


def _elements(fields: Sequence[Field], lower: bytes) -> list[bytes]:
    """The last elements of a list, as many as anybody looks at."""
    joined = b",".join(_values(fields, lower))
    return [element.strip(b" \t") for element in joined.rsplit(b",", _MOST_HOPS)[-_MOST_HOPS:]] if joined else []


def _x_forwarded(fields: Sequence[Field]) -> list[_Hop]:
    """Protocol and host belong to the address at the same place from the right; a list that is shorter, to its end."""
    nodes = _elements(fields, b"x-forwarded-for")
    schemes = _elements(fields, b"x-forwarded-proto")
    hosts = _elements(fields, b"x-forwarded-host")
    count = max(len(nodes), 1 if schemes or hosts else 0)
    return [
        _Hop(node=_at(nodes, place), scheme=_at(schemes, place), host=_at(hosts, place))
        for place in range(count, 0, -1)
    ]


def _at(items: list[bytes], place: int) -> bytes:
    """The item at a place counted from the right, or the leftmost."""
    return items[-min(place, len(items))] if items else b""


def _forwarded(values: list[bytes]) -> list[_Hop]:
    """The elements of Forwarded, in order; none if it cannot be read, or is longer than any honest one."""
    hops: list[_Hop] = []
    if sum(map(len, values)) > _MOST_BYTES:
        return hops
    for value in values:
        end = 0
        while end < len(value) or not end:
            match = _ELEMENT.match(value, end)
            pairs = _PAIR.findall(match[1]) if match else []
            said = {name.lower(): token or _ESCAPED.sub(rb"\1", text) for name, token, text in pairs}
            if not match or len(said) < len(pairs) or (match[2] and match.end() == len(value)):
                return []  # RFC 7239 4: elements that are not empty, and each parameter once
            hops.append(_Hop(node=said.get(b"for", b""), scheme=said.get(b"proto", b""), host=said.get(b"host", b"")))
            end = match.end()
    return hops
