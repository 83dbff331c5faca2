"""Host and port, as in a Host field or in a target that names one: is this one? Pure."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

# RFC 3986 3.2.2, 3.2.3: an IP literal or a name, then perhaps a port, which may be empty. No user information: for
# http and https it is an error to be treated as such (RFC 9110 4.2.4). No name at all is no host (RFC 9110 4.2.1).
# The address literals of the future (`[v1.x]`) are refused: nobody can know what they mean.
_AUTHORITY = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::([0-9]{0,5}))?"
)


def is_authority(text: bytes, *, port_needed: bool = False) -> bool:
    """Whether the text is `host` or `host:port`."""
    match = _AUTHORITY.fullmatch(text)
    if not match:
        return False
    literal, port = match.groups()
    if port:
        return int(port) <= 65535 and (literal is None or _is_ipv6(literal))
    return not port_needed and (literal is None or _is_ipv6(literal))


def _is_ipv6(literal: bytes) -> bool:
    try:
        IPv6Address(literal.decode("ascii"))
    except ValueError:
        return False
    return True
