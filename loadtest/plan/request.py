"""The request that the http scenario sends.

It comes from flags, plan keys and locust's options as text. All of them use the parsers here; each parser refuses what
could end a line of the head, and so smuggle in another one. The fields that say where a request ends are made here,
from the body, and cannot be given: a request whose length is a lie measures nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MOST_BODY = 64 << 20  # bytes
MOST_PATHS = 100_000
_MOST_FILE = 16 << 20  # bytes of a file of paths
_MOST_SENT = 256 << 20  # bytes of all requests together
_MOST_TEXT = 16384  # letters of a path or of a field: more than servers take
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_PATH = re.compile(r"/(?:[!\"$-.0-~][!\"$-~]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS = re.compile(r"[1-5](?:[0-9]{2}|xx)")
_OURS = {
    "content-length": "it is made from the body",
    "transfer-encoding": "the body is sent in one piece",
    "connection": "ask for a connection per request instead",
}
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods whose request may be sent twice (RFC 9110 section 9.2.2)."""

_WITH_BODY = ("POST", "PUT", "PATCH")  # what a server expects a length of, even if that is 0


def method(text: str) -> str:
    """Parse a method, in upper case. Raises ValueError, as all parsers here do, saying what to write instead."""
    if not _METHOD.fullmatch(text) or text == "CONNECT":
        raise ValueError(f"{text!r} is not a method of a request; write GET, HEAD, POST or the like")
    return text


def path(text: str) -> str:
    """Parse a path, with a query if there is one."""
    if not _PATH.fullmatch(text) or len(text) > _MOST_TEXT:
        raise ValueError(f"{text[:80]!r} is not a path; it begins with one / and has no # or space (write %20)")
    return text


def paths(text: str, folder: Path) -> Iterator[str]:
    """Yield the path, or those in @FILE: one in each line, without empty lines and # comments.

    Relative names start in `folder`.
    """
    if not text.startswith("@"):
        yield path(text)
        return
    name = text[1:]
    count = 0
    for number, line in enumerate(_content(name, folder, _MOST_FILE).decode("latin-1").split("\n"), 1):
        if (written := line.strip()) and not written.startswith("#"):
            count += 1
            if count > MOST_PATHS:
                raise ValueError(f"{name!r} has more than {MOST_PATHS:,} paths")
            try:
                yield path(written)
            except ValueError as error:
                raise ValueError(f"{name}:{number}: {error}") from None
    if not count:
        raise ValueError(f"{name!r} has no path; write one in each line, such as /items/1")


def header(text: str) -> str:
    """Parse one field, `Name: value`."""
    name, colon, value = text.partition(":")
    if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or len(text) > _MOST_TEXT:
        raise ValueError(f"{text[:80]!r} is not a header; write 'Name: value', in one line")
    if reason := _OURS.get(name.lower()):
        raise ValueError(f"{name} cannot be set: {reason}")
    return f"{name}: {value.strip()}"


def body(text: str, folder: Path) -> bytes:
    """Return the bytes of TEXT, or of @FILE; relative names start in `folder`."""
    return _content(text[1:], folder, MOST_BODY) if text.startswith("@") else text.encode()


def _content(name: str, folder: Path, most: int) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"cannot read {name!r}: {getattr(error, 'strerror', error)}") from None
    if len(content) > most:
        raise ValueError(f"{name!r} is longer than {most >> 20} MiB")
    return content


def status(text: str) -> str:
    """Parse the statuses of a good response: 200, 2xx, or several of them with commas between."""
    parts = [part.strip() for part in text.split(",")]
    if not all(_STATUS.fullmatch(part) for part in parts):
        raise ValueError(f"{text!r} is no status; write 200, 2xx, or several like 200,404")
    return ",".join(parts)


def statuses(text: str) -> frozenset[int]:
    """Return the statuses that a text names which went through `status`."""
    named = set(text.split(","))
    return frozenset(number for number in range(100, 600) if named & {str(number), f"{number // 100}xx"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request; its texts have gone through the parsers above."""

    method: str = "GET"
    path: str = "/"
    headers: tuple[str, ...] = ()
    body: bytes = b""
    keep_alive: bool = True

    @classmethod
    def made(cls, *, method: str, payload: int, body: bytes, **rest: Any) -> Request:
        """Make the request. Without a body, a method that needs one gets `payload` bytes."""
        return cls(method=method, body=body or (b"." * payload if method in _WITH_BODY else b""), **rest)

    def at(self, paths: Sequence[str]) -> list[Request]:
        """Return this request for each of the paths. Raises ValueError when all bodies together are too long."""
        if len(self.body) * len(paths) > _MOST_SENT:
            said = f"{len(paths):,} paths with {len(self.body):,} bytes of body each"
            raise ValueError(f"{said} are more than {_MOST_SENT >> 20} MiB of requests; send a shorter body")
        return [replace(self, path=path) for path in paths]

    def fields(self, host: str) -> list[tuple[str, str]]:
        """Return all fields of the head. Given fields replace ours of the same name."""
        given = [(name, value.strip()) for name, _, value in (line.partition(":") for line in self.headers)]
        ours = [("Host", host), ("Accept-Encoding", "identity")]
        names = {name.lower() for name, _ in given}
        fields = [(name, value) for name, value in ours if name.lower() not in names] + given
        if self.body or self.method in _WITH_BODY:
            fields.append(("Content-Length", str(len(self.body))))
        if not self.keep_alive:
            fields.append(("Connection", "close"))
        return fields

    def encode(self, host: str) -> bytes:
        """Return the bytes of the request to that host."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.fields(host))
        return f"{self.method} {self.path} HTTP/1.1\r\n{fields}\r\n".encode("latin-1") + self.body
