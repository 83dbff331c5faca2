r"""One line of the access log for one request, in the combined format or as JSON. Pure: the engine writes it.

Nothing that a client sends can begin a line, end a field or colour a terminal: all but printable ASCII is escaped,
quotes and backslashes too, as \xhh (combined) or as JSON does. What is not there is "-", or null.

The combined format, with the duration in microseconds behind it:

    127.0.0.1 - - [22/Nov/2026:17:48:32 +0000] "GET /a HTTP/1.1" 200 13 "http://x/" "curl/8.5" 412
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quote
from typing import Final

from prefork.http.head import Request

FORMATS: Final = ("combined", "json")
_Line = Callable[[str, str, Request | None, int, int, int, int | None], bytes]
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SAFE = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
_UNSAFE = re.compile(rb"[^ !#-\[\]-~]")


class AccessLog:
    """Makes the lines of one of FORMATS. State: the current second, and how it is written."""

    __slots__ = ("_line", "_second", "_time", "_written")

    def __init__(self, style: str = "combined") -> None:
        self._line: _Line = _json if style == "json" else _combined
        self._written = _iso_time if style == "json" else _clf_time
        self._second = -1
        self._time = ""

    def line(
        self,
        epoch_s: float,
        client: str,
        request: Request | None,
        status: int,
        sent: int,
        duration_us: int,
        queue_ms: int | None = None,
    ) -> bytes:
        """Return one line with its end.

        `client`: the address. `request`: None if what came was not understood. `sent`: bytes of the response's body.
        `queue_ms`: how long the connection waited to be taken, of its first request; the combined format has no place
        for it.
        """
        second = int(epoch_s)
        if second != self._second:
            self._time = self._written(datetime.fromtimestamp(second, UTC))
            self._second = second
        return self._line(self._time, client, request, status, sent, duration_us, queue_ms)


def _combined(
    time: str, client: str, request: Request | None, status: int, sent: int, duration_us: int, _queue_ms: int | None
) -> bytes:
    who = client.replace(" ", "%20").encode("ascii", "backslashreplace") or b"-"
    what, referer, agent = b"-", b"-", b"-"
    if request is not None:
        what = b"%b %b HTTP/1.%d" % (request.method.encode("ascii"), request.target, request.minor)
        referer, agent = _told(request, b"-")
    if (who + what + referer + agent).translate(None, _SAFE):  # one look at all four
        who, what, referer, agent = (_UNSAFE.sub(_escape, text) for text in (who, what, referer, agent))
    return b'%b - - [%b] "%b" %d %d "%b" "%b" %d\n' % (
        who,
        time.encode("ascii"),
        what,
        status,
        sent,
        referer,
        agent,
        duration_us,
    )


def _json(
    time: str, client: str, request: Request | None, status: int, sent: int, duration_us: int, queue_ms: int | None
) -> bytes:
    method = target = protocol = referer = agent = "null"
    if request is not None:
        method = quote(request.method)
        target = quote(request.target.decode("latin1"))
        protocol = f'"HTTP/1.{request.minor}"'
        referer, agent = (quote(text.decode("latin1")) if text else "null" for text in _told(request, b""))
    who = quote(client) if client else "null"
    line = (
        f'{{"time": "{time}", "client": {who}, "method": {method}, "target": {target}, "protocol": {protocol}, '
        f'"status": {status}, "bytes": {sent}, "referer": {referer}, "agent": {agent}, "duration_us": {duration_us}, '
        f'"queue_ms": {"null" if queue_ms is None else queue_ms}}}\n'
    )
    return line.encode("ascii")


def _told(request: Request, nothing: bytes) -> tuple[bytes, bytes]:
    """Return Referer and User-Agent."""
    referer = agent = nothing
    for name, value in request.fields:
        if name.cgi == "HTTP_USER_AGENT":
            agent = value or nothing
        elif name.cgi == "HTTP_REFERER":
            referer = value or nothing
    return referer, agent


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\x%02x" % found[0][0]


def _clf_time(moment: datetime) -> str:
    month = _MONTHS[moment.month - 1]  # strftime would ask the locale
    return f"{moment:%d}/{month}/{moment:%Y:%H:%M:%S} +0000"


def _iso_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
