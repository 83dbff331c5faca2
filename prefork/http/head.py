"""The head of a request, from its lines. Pure.

Two ways to one verdict. `whole` takes a head that came in one piece and looks faultless: a split and a lookup a line.
HeadReader takes line by line as they come, and judges each at its end. It alone says why something is refused, and
when: `whole` gives up at the slightest doubt. So the verdict does not depend on how the bytes were cut on their way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from prefork.http.fields import (
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    TOKEN,
    TRANSFER_ENCODING,
    UPGRADE,
    USUAL,
    Field,
    FieldSection,
    is_authority,
    without_end,
)
from prefork.http.limits import RefusalError, quoted

if TYPE_CHECKING:
    from prefork.http.fields import FieldTable
    from prefork.http.limits import Limits

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # what a client waits for that `expects_continue`


# --- One request as its head describes it. The body follows as bytes events (parser.py).


class Request:
    """What a client asks for.

    `method`: a token without lower case. `target`: as sent. `path`, `query`: its parts, still
    percent-encoded; the path is `*` for a request about the server as a whole, else it starts with a slash.
    `authority`: host and port as sent, of the target if that has one, else of the Host field; b"" only for HTTP/1.0.
    `minor`: 0 or 1, of HTTP/1.x; 1 also for those to come. `fields`: in order; Host equals `authority`.
    `content_length`: None if not given. `chunked`: the body came in chunks. `complete`: no body follows.
    `keep_alive`: the client agrees to further requests. `expects_continue`: it waits for 100 before the body.
    `upgrade`: the protocol it would rather speak, in lower case; b"" if that must not be honoured. `plain`: no field
    says anything of a body or an upgrade.
    """

    __slots__ = (
        "authority",
        "chunked",
        "complete",
        "content_length",
        "expects_continue",
        "fields",
        "keep_alive",
        "method",
        "minor",
        "path",
        "plain",
        "query",
        "target",
        "upgrade",
    )
    fields: list[Field]  # set once the head is complete

    def __init__(self, method: str, target: bytes, path: bytes, query: bytes, authority: bytes, minor: int) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.query = query
        self.authority = authority
        self.minor = minor
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = minor == 1
        self.expects_continue = False
        self.upgrade = b""
        self.complete = True
        self.plain = False

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target!r} HTTP/1.{self.minor}>"


# --- The first line of a request: METHOD SP target SP HTTP/1.x, nothing more and nothing less (RFC 9112 3). Pure.
#
# RFC 9112 lets a server be lenient about blanks here and warns of it; this one is not. Percent-encoding is left as it
# is, also where it is broken (`/100%`): it does not decide where a message ends, people do type it, and what it means
# is decided once, by whoever decodes the path. Printable characters that a URI must not have but browsers send (`|`,
# `{`, `"`) pass for the same reason. No form of target has a fragment (RFC 9112 3.2), but clients that put a URI
# together by hand send one: it is cut off from what names the resource (RFC 9110 7.1), as other servers do.


_MOST_METHOD = 32  # bytes
_METHODS: Final = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "REPORT")
}
_MINORS: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_VERSION = re.compile(rb"HTTP/([0-9])\.[0-9]")  # RFC 9112 2.3
_SLASH: Final = ord("/")
_VISIBLE: Final = bytes(byte for byte in range(0x21, 0x7F) if byte != ord("#"))
_ABSOLUTE = re.compile(rb"https?://([^/?]*)([^?]*)\??(.*)", re.IGNORECASE)


def read(line: bytes) -> Request:
    """Return what a request line says, with neither fields nor framing yet. Raises RefusalError."""
    try:
        word, target, version = line.split(b" ")
    except ValueError:
        raise RefusalError(400, f"request line is not METHOD SP target SP version: {quoted(line)}") from None
    method = _METHODS.get(word) or _other_method(word)
    minor = _MINORS.get(version)
    if minor is None:
        minor = _other_minor(version)
    if not target or target.translate(None, _VISIBLE):
        return _without_fragment(method, target, minor)
    if target[0] == _SLASH and method != "CONNECT":  # origin-form, RFC 9112 3.2.1
        path, _, query = target.partition(b"?")
        return Request(method, target, path, query, b"", minor)
    return _other_form(method, target, minor)


def _other_method(word: bytes) -> str:
    """Any token is a method (RFC 9110 9.1): whether it is one here, the app knows.

    But for `get`: it is another method than GET, and ASGI has only upper case. Applications that take it for GET, or
    `head` for HEAD, would send another body than its client reads.
    """
    if not TOKEN.fullmatch(word):
        raise RefusalError(400, f"method: {quoted(word)}")
    if len(word) > _MOST_METHOD:
        raise _method_too_long()
    if word != word.upper():
        raise RefusalError(501, f"method in lower case: {quoted(word)}")
    return word.decode("ascii")


def _method_too_long() -> RefusalError:
    return RefusalError(501, f"method of more than {_MOST_METHOD} bytes")  # RFC 9112 3


def _other_minor(version: bytes) -> int:
    """A minor version above ours is read as ours (RFC 9110 2.5); another major one is another protocol."""
    match = _VERSION.fullmatch(version)
    if not match or match[1] != b"1":
        raise RefusalError(505 if match else 400, f"version: {quoted(version)}")
    return 1


def _without_fragment(method: str, target: bytes, minor: int) -> Request:
    """Read a target that has more than a URI without a fragment may have.

    Only of a path it is clear what a fragment follows: one behind a host would be taken for a part of that.
    """
    if target[:1] != b"/" or target.translate(None, _VISIBLE).strip(b"#") or method == "CONNECT":
        raise RefusalError(400, f"target with what is no part of a URI: {quoted(target)}")
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return Request(method, target, path, query, b"", minor)


def _other_form(method: str, target: bytes, minor: int) -> Request:
    if method == "CONNECT":
        # Authority-form, RFC 9112 3.2.3. There is no tunnel for any target, hence 501 (RFC 9110 15.6.2) and not 405,
        # which is about one resource and lists what that one allows.
        if not is_authority(target, port_needed=True):
            raise RefusalError(400, f"CONNECT to what is not host:port: {quoted(target)}")
        raise RefusalError(501, f"CONNECT to {quoted(target)}: this is no proxy")
    if target == b"*" and method == "OPTIONS":  # asterisk-form, RFC 9112 3.2.4
        return Request(method, target, b"*", b"", b"", minor)
    match = _ABSOLUTE.fullmatch(target)  # absolute-form, RFC 9112 3.2.2
    if not match:
        raise RefusalError(400, f"target in no form that {method} may have: {quoted(target)}")
    authority, path, query = match.groups()
    if not is_authority(authority):
        raise RefusalError(400, f"target's host: {quoted(authority)}")
    if not path:  # RFC 9110 4.2.3: the same as "/"; RFC 9112 3.2.4: for OPTIONS the server as a whole
        path = b"*" if method == "OPTIONS" and b"?" not in target else b"/"
    return Request(method, target, path, query, authority, minor)


# --- What the fields of a head mean together: whom the request is for, where it ends, and what follows it. Pure.
#
# RFC 9112 3.2 (Host), 6 (body length), 9 (connection); RFC 9110 7.8 (Upgrade), 10.1.1 (Expect). Whatever could be read
# in two ways is refused: a proxy before us may have read it in the other.


_ONCE: Final = HOST | CONTENT_LENGTH | TRANSFER_ENCODING | CONTENT_TYPE
_PLAIN: Final = HOST | CONTENT_TYPE | CONNECTION  # nothing but these: the usual case, and no body
_BODY: Final = CONTENT_LENGTH | TRANSFER_ENCODING

_CLOSE, _KEEP_ALIVE, _UPGRADE = 1, 2, 4
_OPTIONS: Final = {b"close": _CLOSE, b"keep-alive": _KEEP_ALIVE, b"Keep-Alive": _KEEP_ALIVE, b"upgrade": _UPGRADE}
_WEBSOCKET: Final = b"websocket"


def settle(request: Request, fields: list[Field], limits: Limits) -> Request:
    """Complete a request by its fields. Raises RefusalError."""
    seen = 0
    host = connection = b""
    for name, value in fields:
        if role := name.role:
            if role & seen & _ONCE:
                raise RefusalError(400, f"more than one {name.lower.decode('ascii')}")
            seen |= role
            if role == HOST:
                host = value
            elif role == CONNECTION:
                connection = connection + b"," + value if connection else value
    request.fields = fields
    if request.authority:
        _use_the_targets_host(request)
    elif host:
        request.authority = host
    elif request.minor:
        # Missing: RFC 9112 3.2. Empty: for clients whose URI has no authority, but ours all have (RFC 9110 4.2.1).
        raise RefusalError(400, "empty Host" if seen & HOST else "no Host")
    options = 0
    if connection and (connection != b"keep-alive" or not request.minor):  # which from 1.1 says nothing
        options = _OPTIONS.get(connection) or _connection_options(connection)
        # RFC 9112 9.3: close wins; without a word 1.1 goes on and 1.0 does not.
        request.keep_alive = not options & _CLOSE and bool(request.minor or options & _KEEP_ALIVE)
    if seen & ~_PLAIN:
        _settle_rest(request, seen, options, limits)
    else:
        request.plain = True
    return request


def _use_the_targets_host(request: Request) -> None:
    """An absolute target's host replaces what Host says (RFC 9112 3.2.2); but 1.1 needs one all the same (3.2)."""
    at = [index for index, (name, _) in enumerate(request.fields) if name.role == HOST]
    if at:
        request.fields[at[0]] = (request.fields[at[0]][0], request.authority)
    elif request.minor:
        raise RefusalError(400, "no Host")
    else:
        request.fields.append((USUAL[b"Host"], request.authority))


def _settle_rest(request: Request, seen: int, options: int, limits: Limits) -> None:
    if seen & _BODY:
        _settle_body(request, seen, limits)
    if seen & EXPECT:  # RFC 9110 10.1.1: not from HTTP/1.0, and only if there is a body to wait for
        request.expects_continue = request.minor == 1 and not request.complete
    if seen & UPGRADE and options & _UPGRADE and request.complete and request.minor and request.method == "GET":
        # RFC 9110 7.8: ignored from HTTP/1.0, and unless Connection names it. With a body it would be open which
        # protocol's bytes follow; WebSocket, the only one that is spoken here, begins with a GET (RFC 6455 4.1).
        wishes = b",".join(value for name, value in request.fields if name.role == UPGRADE)
        if _WEBSOCKET in elements(wishes):
            request.upgrade = _WEBSOCKET


def _settle_body(request: Request, seen: int, limits: Limits) -> None:
    """RFC 9112 6.3, without its leniencies: both lengths, or chunks from HTTP/1.0, are how requests are smuggled."""
    if seen & TRANSFER_ENCODING:
        if seen & CONTENT_LENGTH:
            raise RefusalError(400, "both Transfer-Encoding and Content-Length")
        if not request.minor:
            raise RefusalError(400, "Transfer-Encoding in HTTP/1.0")
        request.chunked = True
        request.complete = False
        return
    (length,) = (int(value) for name, value in request.fields if name.role == CONTENT_LENGTH)
    if length > limits.body_bytes:
        raise RefusalError(413, f"Content-Length {length}, more than {limits.body_bytes} bytes")
    request.content_length = length
    request.complete = not length


def _connection_options(connection: bytes) -> int:
    options = 0
    for option in elements(connection):
        options |= _OPTIONS.get(option, 0)
    return options


def elements(value: bytes) -> list[bytes]:
    """Return the elements of a list in lower case (RFC 9110 5.6.1), with empty ones."""
    return [element.strip(b" \t") for element in value.lower().split(b",")]


_MOST_LINES = 1024  # request lines that are remembered, without a query and
_MOST_LINE = 128  # bytes long
_TLS_HANDSHAKE = b"\x16\x03"


def whole(head: bytes, table: FieldTable, limits: Limits) -> Request | None:
    """Read a head without its last CRLF CRLF; None if it has to be looked at line by line."""
    if len(head) > limits.whole_head_bytes:
        return None
    lines = head.split(b"\r\n")
    if len(lines) > limits.fields:  # the request line among them: at the limit, they are counted one by one
        return None
    try:
        return settle(read(lines.pop(0)), list(map(table.__getitem__, lines)), limits)
    except RefusalError:
        return None


def can_repeat(request: Request) -> bool:
    """Whether the same fields behind another request line would mean the same: nothing but them decides anything."""
    return request.plain and request.keep_alive and request.minor == 1 and request.target[:1] == b"/"


def again(line: bytes, usual: Request, table: FieldTable) -> Request | None:
    """Read a request line, followed by the fields of an earlier request that can_repeat; None if it is no usual one."""
    known = table.lines.get(line)
    if known is not None:
        request = Request(*known)
    else:
        try:
            request = read(line)
        except RefusalError:
            return None
        if not request.minor or request.authority:
            return None
        if len(line) <= _MOST_LINE and not request.query:
            if len(table.lines) >= _MOST_LINES:
                table.lines.clear()
            table.lines[line] = (request.method, request.target, request.path, b"", b"", 1)
    request.fields = usual.fields
    request.authority = usual.authority
    request.plain = True
    return request


class HeadReader:
    """A head, line by line. `is_head`: the method is HEAD, whatever is wrong with the rest."""

    __slots__ = ("_empty_line", "_limits", "_section", "is_head", "request")

    def __init__(self, limits: Limits, table: FieldTable) -> None:
        self._limits = limits
        self._section = FieldSection(limits, table)
        self._empty_line = False
        self.is_head = False
        self.request: Request | None = None  # once its line was read

    def check(self, line: bytes) -> None:
        """Judge a line that need not be complete. Raises RefusalError."""
        if self.request is not None:
            self._section.check(line)
            return
        self.is_head = line.startswith(b"HEAD ")
        if line.startswith(_TLS_HANDSHAKE):
            raise RefusalError(400, "a TLS handshake, but this port speaks plain HTTP")
        if len(line) > self._limits.request_line_bytes:
            if TOKEN.fullmatch(line, 0, _MOST_METHOD + 1):
                raise _method_too_long()
            raise RefusalError(414, f"request line of more than {self._limits.request_line_bytes} bytes")

    def take(self, line: bytes) -> Request | None:
        """Take a line with its LF; returns the request if it was the head's last. Raises RefusalError."""
        if self.request is not None:
            return settle(self.request, self._section.fields, self._limits) if self._section.take(line) else None
        self.check(line)
        text = without_end(line)
        if text:
            self.request = read(text)
        elif self._empty_line:
            raise RefusalError(400, "empty lines instead of a request")
        else:
            self._empty_line = True  # RFC 9112 2.2: some clients end a body with a CRLF that does not belong to it
        return None
