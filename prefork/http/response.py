"""Heads of responses: the checks of what an application gave, and the fields that frame the body. Pure.

A head is made in two steps, because an application may replace it until the first bytes of the body are sent.
`check_head` checks the status and the fields at once, while the application still runs and can see the error; `frame`
decides how the client finds the end of the body. The last lines of every head, the stamp, are the same for all
responses of one second.

The server owns the framing and the connection: fields about these are left out of what an application gave, as
applications that copy another server's response give them. No control character but the tab gets into a head; one
search of the whole head finds them all. The results of the checks are remembered, within a bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from email.utils import formatdate
from typing import Any, Final

from prefork.http.limits import page, phrase

# How the client finds the end of the body.
NO_BODY: Final = 1  # HEAD, 204, 205, 304
SIZED: Final = 2  # Content-Length
CHUNKED: Final = 3
TO_THE_END: Final = 4  # of the connection: HTTP/1.0 without Content-Length

# Fields with a meaning for the server, one bit each.
LENGTH: Final = 1
CLOSE: Final = 2  # Connection: close
UPGRADE: Final = 4  # of 426, which must name what to upgrade to (RFC 9110 15.5.22)
DATE: Final = 8
SERVER: Final = 16
_FIRST_ADDED: Final = 32  # from here on: the fields of --header
OF_STAMP: Final = ~(LENGTH | CLOSE | UPGRADE)  # those that replace one of the stamp's
_CONNECTION = -1  # not sent, but `close` is obeyed: PEP 3333 forbids it, and recipes for streaming have it
_LEFT_OUT = -2  # about the connection, the framing, or a request (RFC 9110 7.6.1, 10.1.4, 11.7.2)
_UPGRADE = -3  # with another status it would offer a protocol that this server does not speak (RFC 9110 7.8)
_MEANING = {
    "content-length": LENGTH,
    "date": DATE,
    "server": SERVER,
    "connection": _CONNECTION,
    "upgrade": _UPGRADE,
    **dict.fromkeys(
        ("keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer", "trailers", "transfer-encoding"),
        _LEFT_OUT,
    ),
}
_MOST_REMEMBERED = 1024  # names, and status lines
_MOST_HEADS = 256
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(r"[1-5][0-9]{2}(?: [ -~\x80-\xff]*)?")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110 5.5
_NAMES = re.compile(rf"{_NAME.pattern}(?:[ \t]*,[ \t]*{_NAME.pattern})*")  # of Trailer
CONTROLS: Final = bytes(byte for byte in (*range(0x20), 0x7F) if byte != 0x09)  # what no value may have (RFC 9110 5.5)

Head = tuple[int, bytes, int | None, int]  # see check_head


class ResponseError(Exception):
    """The application's response breaks PEP 3333, ASGI or HTTP. The text says what and where, for the log."""


class _Names(dict[str, tuple[int, str]]):
    """A memo from the name of a field to its meaning and the beginning of its line."""

    def __missing__(self, name: object) -> tuple[int, str]:
        if not isinstance(name, str):
            raise ResponseError(f"the header name {name!r} is {kind(name)}, not a str")
        if not _NAME.fullmatch(name):
            raise ResponseError(f"the header name {name!r} is not a token (RFC 9110 5.6.2)")
        meaning = _MEANING.get(name.lower(), 0)
        found = (meaning, str.__str__(name) + ": ")
        if len(self) < _MOST_REMEMBERED:
            self[name] = found
        return found


class _Statuses(dict[str, tuple[int, str]]):
    """A memo from a status, such as `200 OK`, to its number and the status line."""

    def __missing__(self, status: object) -> tuple[int, str]:
        if not isinstance(status, str):
            raise ResponseError(f"the status {status!r} is {kind(status)}, not a str such as '200 OK'")
        if not _STATUS.fullmatch(status):
            raise ResponseError(f"the status {status!r} is not of the form '200 OK': 3 digits, a space, a phrase")
        code = int(status[:3])
        if code < 200:
            raise ResponseError(f"the status {status!r} is an interim one: a final one, 200 to 599, is needed")
        text = str.__str__(status)
        # Without a phrase, "200", all servers take it, but the blank has to be there (RFC 9112 4).
        found = (code, f"HTTP/1.1 {text if text[3:] else f'{text} {phrase(code)}'}\r\n")
        if len(self) < _MOST_REMEMBERED:
            self[status] = found
        return found


class _Heads(dict[tuple[object, ...], Head]):
    """A memo from `(status, *fields)` to the checked head: applications repeat themselves (0.3 us instead of 1.1).

    A look-up raises ResponseError, and TypeError for a key that is not hashable; such a head needs a check of its own.
    """

    def __init__(self, check: Callable[[Any, list[Any]], Head]) -> None:
        super().__init__()
        self._check = check

    def __missing__(self, key: tuple[object, ...]) -> Head:
        status, *headers = key
        head = self._check(status, headers)
        if len(self) >= _MOST_HEADS:
            self.clear()
        self[key] = head
        return head


def check_asgi_head(status: Any, headers: Iterable[Any]) -> Head:
    """Check what an ASGI application sent with `http.response.start`; as `check_head`."""
    if not isinstance(status, int):
        raise ResponseError(f"the status {status!r} is {kind(status)}, not an int")
    fields = []
    announced = b""
    for item in headers:
        try:
            name, value = item
            field = name.decode("latin1"), value.decode("latin1")
        except (TypeError, ValueError, AttributeError):
            raise ResponseError(f"the header {item!r} is not a pair of bytes (name, value)") from None
        lower = field[0].lower()
        if lower == "trailer":  # RFC 9110 6.6.2: names the trailers that follow the body
            if not _NAMES.fullmatch(field[1]):
                raise ResponseError(f"the value {value!r} of the header {name!r} is no list of names")
            announced += b"Trailer: %b\r\n" % value
        else:
            fields.append(field)
    code, text, length, given = check_head(f"{int(status)} {phrase(int(status))}", fields)
    return code, text + announced, length, given


def check_head(status: str, headers: list[tuple[str, str]]) -> Head:
    """Check what a WSGI application gave to `start_response`.

    Return the status as a number; the status line and the fields as they are sent; the Content-Length, None without
    one; and which of LENGTH, CLOSE, UPGRADE, DATE, SERVER and of the fields of --header (`add_fields`) they contain.
    Raises ResponseError.
    """
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
                    if code in (204, 205):  # RFC 9110 8.6: not with 204; `frame` adds that of 205, which is 0
                        lines -= 1
                        continue
                elif meaning < 0:
                    meaning = _read_own(meaning, code, value)
                    if meaning != UPGRADE:
                        given |= meaning
                        lines -= 1
                        continue
                given |= meaning
            # str.__str__ gives the text of a subclass, however it prints itself, and TypeError for what is no str.
            text += f"{beginning}{value if type(value) is str else str.__str__(value)}\r\n"
        raw = text.encode("latin1")
        # Without its control characters, a correct head is shorter by its line ends and nothing else.
        if len(raw) - len(raw.translate(None, CONTROLS)) == 2 * lines:
            return code, raw, length, given
    except (TypeError, ValueError):  # not hashable, not two, not a str, not latin-1: _explain() finds out which
        pass
    raise _explain(status, headers)


_names = _Names()
_statuses = _Statuses()
WSGI_HEADS: Final = _Heads(check_head)
ASGI_HEADS: Final = _Heads(check_asgi_head)


def frame(code: int, given: int, length: int | None, *, head: bool, minor: int) -> tuple[int, bytes]:
    """Return how the body ends (RFC 9112 6), NO_BODY, SIZED, CHUNKED or TO_THE_END, and the field that says so.

    `given` has LENGTH if the application's head has a Content-Length. `length` is that, or else the size of the body if
    it is known. `head`: the method of the request is HEAD. `minor`: the client speaks HTTP/1.`minor`.
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


def add_fields(lines: Sequence[str], *, server: bool = True) -> bytes:
    """Return what `stamp` puts into every head of this process: `lines` (`Name: value`), and Server if asked for.

    From now on an application's field of the same name replaces them. Called again, it forgets what it was given.
    """
    names = {line.partition(":")[0].lower() for line in lines}
    for name in [name for name, bit in _MEANING.items() if bit >= _FIRST_ADDED]:
        del _MEANING[name]
    for place, name in enumerate(sorted(names - _MEANING.keys())):
        _MEANING[name] = _FIRST_ADDED << place
    for memo in (_names, WSGI_HEADS, ASGI_HEADS):
        memo.clear()
    servers = ["Server: prefork"] if server and "server" not in names else []
    return "".join(f"{line}\r\n" for line in [*servers, *lines]).encode("latin1")


def check_field(line: str) -> str:
    """Return `Name: value` if it can be a field of all responses. Raises ValueError, which says why not."""
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not _NAME.fullmatch(name):
        raise ValueError(f"{line!r} is not a header such as 'X-Frame-Options: DENY'")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{line!r} has a control character, or one that is not in latin-1")
    if is_servers_own(name) or name.lower() == "date" or name.lower().startswith("sec-websocket-"):
        raise ValueError(f"{line!r}: {name} depends on the response, so the server sets it")
    return f"{name}: {value}"


def is_servers_own(name: str) -> bool:
    """Whether a field is about the connection or the end of the body, which are the server's."""
    return _MEANING.get(name.lower(), 0) < 0 or name.lower() == "content-length"


def stamp(epoch_s: float, fields: bytes = b"Server: prefork\r\n") -> bytes:
    """Return the last lines of every head of this second: Date, the fields of `add_fields`, and the empty line."""
    return b"Date: %b\r\n%b\r\n" % (formatdate(int(epoch_s), usegmt=True).encode("ascii"), fields)


def replaced_by(name: bytes) -> int:
    """Return which field of the stamp an application's field of this name replaces: a bit, as `check_head` gives."""
    return max(0, _MEANING.get(name.decode("latin1").lower(), 0)) & OF_STAMP


def without(stamped: bytes, given: int) -> bytes:
    """Return the stamp without the fields that the application gave itself, so that the head has each exactly once."""
    lines = stamped.split(b"\r\n")
    return b"\r\n".join([line for line in lines if not given & replaced_by(line.partition(b":")[0])])


def error_response(status: int, stamped: bytes, *, html: bool = False, head: bool = False) -> bytes:
    """Return a complete response that ends the connection, with a page that tells nothing about the server."""
    body = page(status, html=html)
    kind = "html" if html else "plain"
    fields = f"Content-Type: text/{kind}; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    line = f"HTTP/1.1 {status} {phrase(status)}\r\n"
    if given := replaced_by(b"content-type"):
        stamped = without(stamped, given)
    return b"".join(((line + fields).encode("ascii"), stamped, b"" if head else body))


def _read_length(before: int | None, value: object) -> int:
    if before is not None:
        raise ResponseError("there is more than one Content-Length")
    if not isinstance(value, str):
        raise TypeError
    if not (value.isascii() and value.isdigit() and len(value) < 20):  # 0.3 us less than a pattern
        raise ResponseError(f"the Content-Length {value!r} is not a number of bytes")
    return int(value)


def _read_own(meaning: int, code: int, value: str) -> int:
    """Return what a field about the connection means: CLOSE, UPGRADE if it is to be sent, else 0. Raises TypeError."""
    text = str.__str__(value).lower()
    if meaning == _UPGRADE:
        return UPGRADE if code == 426 else 0
    if meaning == _CONNECTION and "close" in [option.strip(" \t") for option in text.split(",")]:
        return CLOSE
    return 0


def _explain(status: object, headers: Sequence[object]) -> ResponseError:
    """Return the error that describes what is wrong with a wrong head."""
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
