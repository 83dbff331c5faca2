"""Which peers are proxies of ours, so that what they say about the client is believed. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Network

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
