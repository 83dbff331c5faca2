"""What the fields of a head mean together: whom the request is for, where it ends, and what follows it. Pure.

RFC 9112 3.2 (Host), 6 (body length), 9 (connection); RFC 9110 7.8 (Upgrade), 10.1.1 (Expect). Whatever could be read in
two ways is refused: a proxy before us may have read it in the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prefork.http.names import (
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    DROPPED,
    EXPECT,
    HOST,
    TRANSFER_ENCODING,
    UPGRADE,
    USUAL,
)
from prefork.http.refusal import RefusalError

if TYPE_CHECKING:
    from prefork.http.limits import Limits
    from prefork.http.request import Field, Request

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
    if seen & DROPPED:
        request.fields = [field for field in request.fields if field[0].role != DROPPED]


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
