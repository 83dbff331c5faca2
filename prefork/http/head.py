"""The head of a request, from its lines. Pure.

Two ways to one verdict. `whole` takes a head that came in one piece and looks faultless: a split and a lookup a line.
HeadReader takes line by line as they come, and judges each at its end. It alone says why something is refused, and
when: `whole` gives up at the slightest doubt. So the verdict does not depend on how the bytes were cut on their way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http.fields import FieldSection, without_end
from prefork.http.framing import settle
from prefork.http.refusal import RefusalError
from prefork.http.request import Request
from prefork.http.request_line import read

if TYPE_CHECKING:
    from prefork.http.fields import FieldTable
    from prefork.http.limits import Limits

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
    """A head, line by line."""

    __slots__ = ("_empty_line", "_limits", "_section", "request")

    def __init__(self, limits: Limits, table: FieldTable) -> None:
        self._limits = limits
        self._section = FieldSection(limits, table)
        self._empty_line = False
        self.request: Request | None = None  # once its line was read

    def check(self, line: bytes) -> None:
        """Judge a line that need not be complete. Raises RefusalError."""
        if self.request is not None:
            self._section.check(line)
        elif line.startswith(_TLS_HANDSHAKE):
            raise RefusalError(400, "a TLS handshake, but this port speaks plain HTTP")
        elif len(line) > self._limits.request_line_bytes:
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
