"""Response heads: what an application answered, checked, and framed so that the connection stays in step. Pure.

A head is made in two steps, because an application may take back its first one until body bytes leave:
`read_head` checks status and fields (at once, while the application still runs and can see the error), `frame` decides
how the body's end is marked. The end of every head, `stamp`, is the same for all responses of a second.

Rules: the server owns the framing, so Transfer-Encoding and the other hop-by-hop fields are refused. No
control character gets into a head; that is one look at the whole, not one for each field. What is known of a name or a
status line is remembered, within a bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from typing import Any, Final

from .refusal import page, phrase

# How the client knows where the body ends.
NO_BODY: Final = 1  # HEAD, 204, 205, 304
SIZED: Final = 2  # Content-Length
CHUNKED: Final = 3
TO_THE_END: Final = 4  # the connection is closed behind it: HTTP/1.0 without Content-Length

# What a field name means here, one bit each.
LENGTH: Final = 1
DATE: Final = 2
SERVER: Final = 4
CLOSE: Final = 8  # Connection: close
_REFUSED = 16
# PEP 3333 forbids these two as well, but streaming recipes have them: left out, and `close` is heard.
_HOP = 32
_MEANING = {
    "content-length": LENGTH, "date": DATE, "server": SERVER, "connection": _HOP, "keep-alive": _HOP,
} | dict.fromkeys(
    ("proxy-authenticate", "proxy-authorization", "te", "trailer", "trailers",
     "transfer-encoding", "upgrade"), _REFUSED,
)  # fmt: skip
_MOST_REMEMBERED = 1024  # names, and status lines
_MOST_HEADS = 256
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(r"[1-5][0-9]{2} [ -~\x80-\xff]*")
_VALUE = re.compile(r"[ -~\x80-\xff]*")
_NAMES = re.compile(rf"{_NAME.pattern}(?:[ \t]*,[ \t]*{_NAME.pattern})*")  # of Trailer
_CONTROLS = bytes([*range(0x20), 0x7F])


Head = tuple[int, bytes, int | None, int]  # see read_head


class ResponseError(Exception):
    """What an application answered breaks PEP 3333 or HTTP. The text says what and where, for the log."""


class _Names(dict[str, tuple[int, str]]):
    """From a field name to its meaning and the beginning of its line. A memo: what it holds follows from the key."""

    def __missing__(self, name: object) -> tuple[int, str]:
        if not isinstance(name, str):
            raise ResponseError(f"the header name {name!r} is {kind(name)}, not a str")
        if not _NAME.fullmatch(name):
            raise ResponseError(f"the header name {name!r} is not a token (RFC 9110 5.6.2)")
        meaning = _MEANING.get(name.lower(), 0)
        if meaning == _REFUSED:
            raise ResponseError(f"the header {name!r} is the server's own: an application must not set it")
        found = (meaning, str.__str__(name) + ": ")
        if len(self) < _MOST_REMEMBERED:
            self[name] = found
        return found


class _Statuses(dict[str, tuple[int, str]]):
    """From `200 OK` to the number and the status line. A memo as well."""

    def __missing__(self, status: object) -> tuple[int, str]:
        if not isinstance(status, str):
            raise ResponseError(f"the status {status!r} is {kind(status)}, not a str such as '200 OK'")
        if not _STATUS.fullmatch(status):
            raise ResponseError(f"the status {status!r} is not of the form '200 OK': 3 digits, a space, a phrase")
        code = int(status[:3])
        if code < 200:
            raise ResponseError(f"the status {status!r} is an interim one: a final one, 200 to 599, is needed")
        found = (code, "HTTP/1.1 " + str.__str__(status) + "\r\n")
        if len(self) < _MOST_REMEMBERED:
            self[status] = found
        return found


_names = _Names()
_statuses = _Statuses()
_Heads = dict[tuple[object, ...], Head]
_heads: _Heads = {}  # a memo of read_head
_asgi_heads: _Heads = {}  # of read_asgi_head: what is right there may be wrong here


def read_head(status: str, headers: list[tuple[str, str]]) -> Head:
    """Check what was given to start_response.

    Returns the status as a number; the status line and the fields as they are sent; the Content-Length, None without
    one; and the set of those of LENGTH, DATE, SERVER and CLOSE that were given. Raises ResponseError.
    """
    try:
        key = (status, *headers)
        found = _heads.get(key) if type(headers) is list else None
    except TypeError:
        return _check_head(status, headers)  # not hashable: odd, or wrong
    if found is None:
        found = _check_head(status, headers)
        _remember(_heads, key, found)
    return found


def read_asgi_head(status: Any, headers: Iterable[Any]) -> Head:
    """Check what an ASGI application sent with http.response.start; as `read_head`."""
    headers = headers if type(headers) is list else list(headers)
    try:
        key = (status, *headers)
        found = _asgi_heads.get(key)
    except TypeError:
        return _check_asgi_head(status, headers)  # its pairs are lists, say
    if found is None:
        found = _check_asgi_head(status, headers)
        _remember(_asgi_heads, key, found)
    return found


def _check_asgi_head(status: Any, headers: Iterable[Any]) -> Head:
    if not isinstance(status, int):
        raise ResponseError(f"the status {status!r} is {kind(status)}, not an int")
    fields, announced = [], b""
    for item in headers:
        try:
            name, value = item
            field = name.decode("latin1"), value.decode("latin1")
        except (TypeError, ValueError, AttributeError):
            raise ResponseError(f"the header {item!r} is not a pair of bytes (name, value)") from None
        lower = field[0].lower()
        if lower == "trailer":  # RFC 9110 6.6.2: who is to send trailers should say which
            if not _NAMES.fullmatch(field[1]):
                raise ResponseError(f"the value {value!r} of the header {name!r} is no list of names")
            announced += b"Trailer: %b\r\n" % value
        elif lower != "transfer-encoding":  # ASGI: it may be given, and is the server's to ignore
            fields.append(field)
    code, text, length, given = _check_head(f"{int(status)} {phrase(int(status))}", fields)
    return code, text + announced, length, given


def _remember(memo: _Heads, key: tuple[object, ...], head: Head) -> None:
    if len(memo) >= _MOST_HEADS:
        memo.clear()
    memo[key] = head  # applications repeat themselves (measured: 0.3 us instead of 1.1)


def _check_head(status: str, headers: list[tuple[str, str]]) -> Head:
    try:
        code, text = _statuses[status]
        length = None
        given = 0
        if type(headers) is not list:
            raise ResponseError(f"the headers are {kind(headers)}, not a list of (name, value) tuples")
        lines = 1 + len(headers)
        for name, value in headers:
            meaning, beginning = _names[name]
            if meaning:
                if meaning == LENGTH:
                    length = _read_length(length, value)
                    if code in (204, 205):  # RFC 9110 8.6: not with 204; 205 is always 0, and says so by itself
                        lines -= 1
                        continue
                elif meaning == _HOP:
                    given |= CLOSE if value.strip().lower() == "close" else 0
                    lines -= 1
                    continue
                given |= meaning
            # str.__str__: of a subclass its text, however it prints itself; a TypeError for what is no str.
            text += f"{beginning}{value if type(value) is str else str.__str__(value)}\r\n"
        raw = text.encode("latin1")
        # One look at all values: without controls, the head is shorter by its line ends and nothing else.
        if len(raw) - len(raw.translate(None, _CONTROLS)) == 2 * lines:
            return code, raw, length, given
    except (TypeError, ValueError):  # not hashable, not two, not a str, not latin-1: explain() finds out which
        pass
    raise _explain(status, headers)


def frame(code: int, given: int, length: int | None, *, head: bool, minor: int) -> tuple[int, bytes]:
    """Decide how a body ends (RFC 9112 6): NO_BODY, SIZED, CHUNKED or TO_THE_END, and the fields that say so.

    `given`: LENGTH if the application's head has a Content-Length already. `length`: that, or what is known of the
    body, or None. `head`: the request's method is HEAD. `minor`: of the client's version.
    """
    if code in (204, 304):
        return NO_BODY, b""
    if code == 205:
        return NO_BODY, b"Content-Length: 0\r\n"
    if length is not None:
        return NO_BODY if head else SIZED, b"" if given & LENGTH else b"Content-Length: %d\r\n" % length
    if head:
        return NO_BODY, b""
    if minor:
        return CHUNKED, b"Transfer-Encoding: chunked\r\n"
    return TO_THE_END, b""


def persistence(*, keep_alive: bool, minor: int) -> bytes:
    """Return the Connection field; none where it goes without saying."""
    if keep_alive:
        return b"" if minor else b"Connection: keep-alive\r\n"
    return b"Connection: close\r\n"


def stamp(epoch_s: float, server: bytes = b"prefork") -> bytes:
    """Return the end of every head of this second: Date, Server, and the empty line."""
    return b"Date: %b\r\nServer: %b\r\n\r\n" % (formatdate(int(epoch_s), usegmt=True).encode("ascii"), server)


def without(stamped: bytes, given: int) -> bytes:
    """Return the stamp without the fields that the application gave itself, so that each is there exactly once."""
    date, server, *end = stamped.split(b"\r\n")
    kept = [line for line, bit in ((date, DATE), (server, SERVER)) if not given & bit]
    return b"\r\n".join([*kept, *end])


def error_response(status: int, stamped: bytes, *, html: bool = False, head: bool = False) -> bytes:
    """Return the whole response that ends a connection: a page that gives nothing away, and Connection: close."""
    body = page(status, html=html)
    kind = "html" if html else "plain"
    fields = f"Content-Type: text/{kind}; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    line = f"HTTP/1.1 {status} {phrase(status)}\r\n"
    return b"".join(((line + fields).encode("ascii"), stamped, b"" if head else body))


def _read_length(before: int | None, value: object) -> int:
    if before is not None:
        raise ResponseError("there is more than one Content-Length")
    if not isinstance(value, str):
        raise TypeError
    if not (value.isascii() and value.isdigit() and len(value) < 20):  # 0.3 us less than a pattern
        raise ResponseError(f"the Content-Length {value!r} is not a number of bytes")
    return int(value)


def _explain(status: object, headers: Sequence[object]) -> ResponseError:
    """Say what is wrong with a head that is known to be wrong."""
    if not isinstance(status, str):
        return ResponseError(f"the status {status!r} is {kind(status)}, not a str such as '200 OK'")
    for item in headers:
        if not isinstance(item, tuple) or len(item) != 2:
            return ResponseError(f"the header {item!r} is not a (name, value) tuple")
        name, value = item
        if not isinstance(name, str):
            return ResponseError(f"the header name {name!r} is {kind(name)}, not a str")
        if not isinstance(value, str):
            return ResponseError(f"the value {value!r} of the header {name!r} is {kind(value)}, not a str")
        if not _VALUE.fullmatch(value):
            return ResponseError(
                f"the value {value!r} of the header {name!r} has a control character, or one that is not in latin-1"
            )
    return ResponseError(f"the head {status!r} {headers!r} cannot be sent")


def kind(value: object) -> str:
    """Name a value's type as a sentence does: `an int`, `a NoneType`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
