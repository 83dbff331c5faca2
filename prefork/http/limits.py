"""How much one client may send before it is refused. Everything that comes from the network has its bound here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# --- What a client is told when its request is not served: a status, its phrase, and a page that gives nothing away.
# Pure.
#
# The reason goes to the log only. It quotes what came, which an attacker chose: escaped, and cut.


_MOST_QUOTED = 60  # bytes of the client's in one reason
PHRASES: Final = {  # RFC 9110 15, RFC 6585, RFC 8297, RFC 7725
    100: "Continue", 101: "Switching Protocols", 103: "Early Hints",
    200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content",
    205: "Reset Content", 206: "Partial Content",
    300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
    305: "Use Proxy", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout",
    409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed", 413: "Content Too Large",
    414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed",
    421: "Misdirected Request", 422: "Unprocessable Content", 426: "Upgrade Required", 428: "Precondition Required",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 451: "Unavailable For Legal Reasons",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 505: "HTTP Version Not Supported", 511: "Network Authentication Required",
}  # fmt: skip
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{status} {phrase}</title></head>
<body><h1>{status} {phrase}</h1></body>
</html>
"""


class Refusal:
    """An event: the request cannot be served, and nothing more of its connection can be understood.

    `status` is for the client, `reason` for the log. `head`: the request's method was read and is HEAD, so that the
    response has no content (RFC 9110 9.3.2).
    """

    __slots__ = ("head", "reason", "status")

    def __init__(self, status: int, reason: str, *, head: bool = False) -> None:
        self.status = status
        self.reason = reason
        self.head = head

    def __repr__(self) -> str:
        return f"Refusal({self.status}, {self.reason!r})"


class RefusalError(Exception):
    """Raised where a fault is found; the parser makes a Refusal of it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


def quoted(data: bytes) -> str:
    """What came from a client, for a log: printable ASCII in quotes, the rest escaped, cut at 60 bytes."""
    return repr(data[:_MOST_QUOTED])[1:] + ("..." if len(data) > _MOST_QUOTED else "")


def phrase(status: int) -> str:
    """Return the reason phrase of a status; for one without a name, that of its class (RFC 9110 15)."""
    return PHRASES.get(status) or PHRASES.get(status // 100 * 100, "Unknown")


def page(status: int, *, html: bool) -> bytes:
    """Return the body of an error page: the status and its phrase, and nothing about the server or the app."""
    text = f"{status} {phrase(status)}\n"
    return (_PAGE.format(status=status, phrase=phrase(status)) if html else text).encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, line ends included; the status that answers what passes them."""

    request_line_bytes: int = 8192  # 414
    fields: int = 100  # 431; the same for trailers
    header_bytes: int = 65536  # 431; all field lines of a head, or of the trailers
    body_bytes: int = 1 << 30  # 413; decoded
    chunk_line_bytes: int = 1024  # 400; a chunk's size with its extensions
    extension_bytes: int = 16384  # 400; chunk extensions of one body, all together
    # A head of so many bytes, its last CRLF CRLF not counted, is within both limits of bytes, however it is divided.
    whole_head_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole_head_bytes", min(self.request_line_bytes, self.header_bytes) - 4)
