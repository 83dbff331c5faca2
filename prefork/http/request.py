"""One request as its head describes it. The body follows as bytes events (parser.py)."""

from __future__ import annotations

from typing import TypeAlias

from prefork.http.names import Name

Field: TypeAlias = tuple[Name, bytes]  # the value without blanks around it; of any bytes but control characters


class Request:
    """What a client asks for.

    `method`: a token, in the case in which it came. `target`: as sent. `path`, `query`: its parts, still
    percent-encoded; the path is `*` for a request about the server as a whole, else it starts with a slash.
    `authority`: host and port as sent, of the target if that has one, else of the Host field; b"" only for HTTP/1.0.
    `minor`: 0 or 1, of HTTP/1.x. `fields`: in order; names with "_" are not among them, and Host equals `authority`.
    `content_length`: None if not given. `chunked`: the body came in chunks. `complete`: no body follows.
    `keep_alive`: the client agrees to further requests. `expects_continue`: it waits for 100 before the body.
    `upgrade`: the protocol it would rather speak, in lower case; b"" if that must not be honoured. `plain`: no field
    says anything of a body or an upgrade.
    """

    __slots__ = (
        "authority", "chunked", "complete", "content_length", "expects_continue", "fields", "keep_alive", "method",
        "minor", "path", "plain", "query", "target", "upgrade",
    )  # fmt: skip
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
