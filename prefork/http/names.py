"""Field names: what a name is called in lower case, as a CGI variable, and what it means for framing. Pure.

Names come from a table of those in use, in their usual spellings, so that a known one costs a lookup and no check.
The table itself never grows: what clients make up is remembered elsewhere (fields.py), within a bound.
"""

from __future__ import annotations

import re
from typing import Final

# Roles: one bit each, so that a set of them is a sum.
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 4
CONNECTION: Final = 8
EXPECT: Final = 16
UPGRADE: Final = 32
CONTENT_TYPE: Final = 64
DROPPED: Final = 128  # the name has a "_" and would pass for another one as a CGI variable
FRAMING: Final = HOST | CONTENT_LENGTH | TRANSFER_ENCODING  # what decides where a message ends and whom it is for

TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_ROLES = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"expect": EXPECT,
    b"upgrade": UPGRADE,
    b"content-type": CONTENT_TYPE,
}
# CGI variables that must not exist. HTTP_PROXY is read by HTTP clients as the proxy to use ("httpoxy"); the body is
# decoded by the time an app sees it, so HTTP_TRANSFER_ENCODING would be a lie.
_UNSEEN = frozenset({b"proxy", b"transfer-encoding"})
# Fields that a client sends with the same value again and again and that hold no secret: the lines are remembered.
_REPEATED = frozenset(
    b"host user-agent accept accept-charset accept-encoding accept-language cache-control connection content-type dnt "
    b"keep-alive origin pragma priority sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode "
    b"sec-fetch-site sec-fetch-user sec-gpc te upgrade-insecure-requests via x-forwarded-host x-forwarded-port "
    b"x-forwarded-proto x-requested-with".split()
)
_OTHERS = (
    b"authorization content-encoding content-length cookie date expect forwarded from if-match if-modified-since "
    b"if-none-match if-range if-unmodified-since max-forwards proxy proxy-authorization range referer trailer "
    b"transfer-encoding upgrade x-csrftoken x-forwarded-for x-real-ip x-request-id".split()
)


class Name:
    """One field name.

    `lower`: the name in lower case. `cgi`: its key in a CGI or WSGI environment, "" if it must not appear there.
    `role`: HOST and so on, 0 for the many that the server has no interest in. `repeats`: worth remembering by line.
    """

    __slots__ = ("cgi", "lower", "repeats", "role")

    def __init__(self, raw: bytes) -> None:
        self.lower = raw.lower()
        self.role = DROPPED if b"_" in raw else _ROLES.get(self.lower, 0)
        self.repeats = self.lower in _REPEATED
        key = self.lower.decode("ascii").upper().replace("-", "_")
        if self.role == DROPPED or self.lower in _UNSEEN:
            self.cgi = ""
        else:
            self.cgi = key if self.role & (CONTENT_LENGTH | CONTENT_TYPE) else f"HTTP_{key}"

    def __repr__(self) -> str:
        return f"Name({self.lower!r})"


def _usual() -> dict[bytes, Name]:
    table = {}
    for lower in (*_REPEATED, *_OTHERS):
        table[lower] = table[lower.title()] = Name(lower)
    for odd in (b"DNT", b"TE", b"sec-ch-ua", b"Sec-GPC"):
        table[odd] = table[odd.lower()]
    return table


USUAL: Final = _usual()  # by spelling; never changed
