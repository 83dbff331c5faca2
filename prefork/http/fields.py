"""Field lines: from bytes to (Name, value), each judged by itself; what they mean together is in framing.py. Pure.

    field-line = field-name ":" OWS field-value OWS      (RFC 9112 5)

No blank before the colon, no folded line (5.2), no control character but the tab in a value (RFC 9110 5.5). A value
that has to be of one kind is judged here as well, so that a line once judged is judged for good.

Clients repeat themselves: of a browser's ten lines, eight are the same in each of its requests and for all with the
same browser. A FieldTable remembers lines, so that these cost a lookup (measured: 0.06 us instead of 0.7). It
remembers only names that are not secret and do repeat (names.py), short lines, and few: when it is full it starts
anew, so whoever fills it on purpose takes the speed away, but only while he goes on.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, TypeAlias

from prefork.http.limits import RefusalError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.http.limits import Limits


# --- Field names: what a name is called in lower case, as a CGI variable, and what it means for framing. Pure.
#
# Names come from a table of those in use, in their usual spellings, so that a known one costs a lookup and no check.
# The table itself never grows: what clients make up is remembered elsewhere (fields.py), within a bound.


# Roles: one bit each, so that a set of them is a sum.
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 4
CONNECTION: Final = 8
EXPECT: Final = 16
UPGRADE: Final = 32
CONTENT_TYPE: Final = 64
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
    `ambiguous`: the key of a name with "_", to be used if no other field has it; "" for all others.
    `role`: HOST and so on, 0 for the many that the server has no interest in. `repeats`: worth remembering by line.
    """

    __slots__ = ("ambiguous", "cgi", "lower", "repeats", "role")

    def __init__(self, raw: bytes, *, pass_underscore: bool = False) -> None:
        self.lower = raw.lower()
        self.role = _ROLES.get(self.lower, 0)
        self.repeats = self.lower in _REPEATED
        key = self.lower.decode("ascii").upper().replace("-", "_")
        self.cgi = self.ambiguous = ""
        if self.lower.replace(b"_", b"-") in _UNSEEN:
            return
        if b"_" not in raw:
            self.cgi = key if self.role & (CONTENT_LENGTH | CONTENT_TYPE) else f"HTTP_{key}"
        elif pass_underscore:
            self.ambiguous = f"HTTP_{key}"

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


# --- Host and port, as in a Host field or in a target that names one: is this one? Pure.


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


_MOST_LINES = 1024
_MOST_LINE = 200  # bytes
_MOST_NAMES = 1024
_MOST_NAME = 64  # bytes
_TEXT = bytes(byte for byte in range(256) if byte == 0x09 or (byte >= 0x20 and byte != 0x7F))
_LENGTH = re.compile(rb"[0-9]{1,19}")  # bytes: int() takes signs, blanks and "_", and str's digits are of any script
_CODINGS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*,[ \t]*)+chunked", re.IGNORECASE)


Field: TypeAlias = tuple[Name, bytes]  # the value without blanks around it; of any bytes but control characters


class FieldTable(dict[bytes, Field]):
    """Field lines, without their line ends, and what they say: `table[line]`. Raises RefusalError.

    One for each worker, shared by the parsers of its connections; never grows beyond its bounds.

    `underscores`: what becomes of a name with "_", which as a CGI variable would pass for one with "-": "drop" keeps it
    out of the environment, "pass" puts it there unless another field has its key, "refuse" raises RefusalError. All
    but the last keep the field in the request. `dropped`: called with the first name that is kept out.
    """

    __slots__ = ("_dropped", "_names", "_underscores", "lines")

    def __init__(self, underscores: str = "drop", dropped: Callable[[bytes], None] | None = None) -> None:
        self._underscores = underscores
        self._dropped = dropped
        self.lines: dict[
            bytes, tuple[str, bytes, bytes, bytes, bytes, int]
        ] = {}  # head.again's: what a Request is made of
        self._names: dict[bytes, Name] = {}  # made up by clients; full, it stays as it is

    def __missing__(self, line: bytes) -> Field:
        raw, colon, value = line.partition(b":")
        name = USUAL.get(raw) or self._names.get(raw) or self._learn(raw, line)
        if not colon:
            raise RefusalError(400, f"field line without a colon: {quoted(line)}")
        if value.translate(None, _TEXT):
            raise RefusalError(400, f"control character in a field: {quoted(line)}")
        value = value.strip(b" \t")
        if name.role:
            _judge(name.role, value)
        field = (name, value)
        if name.repeats and len(line) <= _MOST_LINE:
            if len(self) >= _MOST_LINES:
                self.clear()
            self[line] = field
        return field

    def _learn(self, raw: bytes, line: bytes) -> Name:
        if not TOKEN.fullmatch(raw):
            what = "folded line" if line[:1] in (b" ", b"\t") else "field name"
            raise RefusalError(400, f"{what}: {quoted(line)}")
        if b"_" in raw:
            if self._underscores == "refuse":
                raise RefusalError(400, f"field name with an underscore: {quoted(raw)}")
            if self._underscores == "drop" and self._dropped is not None:
                self._dropped(raw)
                self._dropped = None
        name = Name(raw, pass_underscore=self._underscores == "pass")
        if len(self._names) < _MOST_NAMES and len(raw) <= _MOST_NAME:
            self._names[raw] = name
        return name


def _judge(role: int, value: bytes) -> None:
    """Check a value that has to be of one kind."""
    if role == HOST:
        if value and not is_authority(value):  # an empty one is legal at times: framing.py
            raise RefusalError(400, f"Host: {quoted(value)}")
    elif role == CONTENT_LENGTH:
        # RFC 9112 6.3 would let "5, 5" pass as 5. No client sends it but to see what comes of it.
        if not _LENGTH.fullmatch(value):
            raise RefusalError(400, f"Content-Length: {quoted(value)}")
    elif role == TRANSFER_ENCODING:
        if value.lower() != b"chunked":
            # RFC 9112 6.1: 501 for a coding that we do not know. 6.3: 400 if it leaves open where the body ends.
            known_end = _CODINGS.fullmatch(value) and b"chunked" not in value.lower()[:-7]
            raise RefusalError(501 if known_end else 400, f"Transfer-Encoding: {quoted(value)}")
    elif role == EXPECT and value.lower() != b"100-continue":  # RFC 9110 10.1.1
        raise RefusalError(417, f"Expect: {quoted(value)}")


class FieldSection:
    """Field lines as they come, up to the empty one: those of a head, or of trailers. Bounded in number and size."""

    __slots__ = ("_bytes", "_limits", "_table", "fields")

    def __init__(self, limits: Limits, table: FieldTable) -> None:
        self._limits = limits
        self._table = table
        self._bytes = 0
        self.fields: list[Field] = []

    def check(self, line: bytes) -> None:
        """Judge the length of a line, which need not be complete. Raises RefusalError."""
        if self._bytes + len(line) > self._limits.header_bytes:
            raise RefusalError(431, f"more than {self._limits.header_bytes} bytes of fields")

    def take(self, line: bytes) -> bool:
        """Take a complete line; returns whether it was the empty one, the last. Raises RefusalError."""
        self.check(line)
        self._bytes += len(line)
        text = without_end(line)
        if not text:
            return True
        if len(self.fields) >= self._limits.fields:
            raise RefusalError(431, f"more than {self._limits.fields} fields")
        self.fields.append(self._table[text])
        return False

    def check_trailers(self) -> None:
        """Refuse trailers that would have said where the message ends or whom it is for (RFC 9110 6.5.1)."""
        for name, _ in self.fields:
            if name.role & FRAMING:
                raise RefusalError(400, f"trailer that decides on framing: {quoted(name.lower)}")


def without_end(line: bytes) -> bytes:
    """Cut the CRLF off a line that ends in LF. Raises RefusalError for LF alone (RFC 9112 2.2 would let it pass)."""
    if line[-2:] != b"\r\n":
        raise RefusalError(400, f"line that ends in a bare LF: {quoted(line)}")
    return line[:-2]
