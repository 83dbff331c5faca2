"""The first line of a request: METHOD SP target SP HTTP/1.x, nothing more and nothing less (RFC 9112 3). Pure.

RFC 9112 lets a server be lenient about blanks here and warns of it; this one is not. Percent-encoding is left as it is,
also where it is broken (`/100%`): it does not decide where a message ends, people do type it, and what it means is
decided once, by whoever decodes the path. Printable characters that a URI must not have but browsers send (`|`, `{`,
`"`) pass for the same reason. A fragment does not: no form of target has one (RFC 9112 3.2).
"""

from __future__ import annotations

import re
from typing import Final

from prefork.http.authority import is_authority
from prefork.http.names import TOKEN
from prefork.http.refusal import RefusalError, quoted
from prefork.http.request import Request

_MOST_METHOD = 32  # bytes
_METHODS: Final = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "REPORT")
}
_MINORS: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")  # RFC 9112 2.3
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
        raise RefusalError(505 if _VERSION.fullmatch(version) else 400, f"version: {quoted(version)}")
    if not target or target.translate(None, _VISIBLE):
        raise RefusalError(400, f"target with what is no part of a URI: {quoted(target)}")
    if target[0] == _SLASH and method != "CONNECT":  # origin-form, RFC 9112 3.2.1
        path, _, query = target.partition(b"?")
        return Request(method, target, path, query, b"", minor)
    return _other_form(method, target, minor)


def _other_method(word: bytes) -> str:
    """Any token is a method (RFC 9110 9.1): whether it is one here, the app knows."""
    if len(word) > _MOST_METHOD or not TOKEN.fullmatch(word):
        raise RefusalError(400, f"method: {quoted(word)}")
    return word.decode("ascii")


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
