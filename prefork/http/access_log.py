r"""One line of the access log for one request: combined, JSON, or a format of one's own. Pure: the engine writes it.

Nothing that a client sends can begin a line, end a field or colour a terminal: all but printable ASCII is escaped,
quotes and backslashes too, as \xhh (combined) or as JSON does. What is not there is "-", or null.

The combined format, with the duration in microseconds behind it:

    127.0.0.1 - - [22/Nov/2026:17:48:32 +0000] "GET /a HTTP/1.1" 200 13 "http://x/" "curl/8.5" 412

A format of one's own is made of gunicorn's atoms (its setting access_log_format): `%(h)s %(t)s "%(r)s" %(s)s %(B)s`.
"""

from __future__ import annotations

import difflib
import re
from binascii import Error, a2b_base64
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final, NamedTuple, Protocol

from prefork.http.head import Request

FORMATS: Final = ("combined", "json")  # those with a name


class Response(Protocol):
    """What a format of one's own may ask of a response. A WSGI one also has its `environ`."""

    @property
    def head(self) -> bytes:
        """The status line and the fields that the application gave; b"" if the response is not the application's."""


class _Entry(NamedTuple):
    """What a line says; see AccessLog.line."""

    time: str
    client: str
    request: Request | None
    status: int
    sent: int
    duration_us: int
    queue_ms: int | None
    response: Response | None


_Line = Callable[[_Entry], bytes]
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SAFE = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
_UNSAFE = re.compile(rb"[^ !#-\[\]-~]")


class AccessLog:
    """Makes the lines of one of FORMATS, or of a format of one's own. State: the current second, and how it is written.

    `pid`: of the process that it writes for.
    """

    __slots__ = ("_line", "_second", "_time", "_written")

    def __init__(self, style: str = "combined", pid: int = 0) -> None:
        """Raises ValueError as `check_format` does."""
        self._written = _iso_time if style == "json" else _clf_time
        self._line: _Line = {"json": _json, "combined": _combined}.get(style) or _OwnFormat(style, pid).line
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
        response: Response | None = None,
    ) -> bytes:
        """Return one line with its end.

        `client`: the address. `request`: None if what came was not understood. `sent`: bytes of the response's body.
        `queue_ms`: how long the connection waited to be taken, of its first request; only JSON has a place for it.
        `response`: None if it is not the application's; for a format of one's own.
        """
        second = int(epoch_s)
        if second != self._second:
            self._time = self._written(datetime.fromtimestamp(second, UTC))
            self._second = second
        return self._line(_Entry(self._time, client, request, status, sent, duration_us, queue_ms, response))


def _combined(entry: _Entry) -> bytes:
    time, client, request, status, sent, duration_us, _queue_ms, _response = entry
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


def _json(entry: _Entry) -> bytes:
    time, client, request, status, sent, duration_us, queue_ms, _response = entry
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


# --- A format of one's own: text with gunicorn's atoms. It is read once, into the text around the atoms and a function
# for each atom. In a format that begins with "{" values are escaped as in JSON, so that its lines are JSON.


_Value = Callable[[_Entry], bytes | str | int]


def _line_of(entry: _Entry) -> bytes:
    request = entry.request
    return b"%b %b HTTP/1.%d" % (request.method.encode("ascii"), request.target, request.minor) if request else b"-"


def _user(entry: _Entry) -> bytes:
    """The user of HTTP Basic (RFC 7617 2)."""
    kind, _, credentials = _field(entry, b"authorization").partition(b" ")
    if kind.lower() != b"basic":
        return b"-"
    try:
        return a2b_base64(credentials).partition(b":")[0] or b"-"
    except Error:
        return b"-"


def _field(entry: _Entry, lower: bytes) -> bytes:
    """A field of the request; several of one name are joined (RFC 9110 5.3)."""
    fields = entry.request.fields if entry.request else ()
    return b", ".join(value for name, value in fields if name.lower == lower) or b"-"


def _response_field(entry: _Entry, lower: bytes) -> bytes:
    """A field that the application gave to its response."""
    head = entry.response.head if entry.response else b""
    fields = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    return b", ".join(value for name, _, value in fields if name.lower() == lower) or b"-"


def _variable(entry: _Entry, upper: str) -> str:
    """A variable of the WSGI environment, as the application has left it."""
    environ: Mapping[str, Any] = getattr(entry.response, "environ", {})
    value = environ.get(upper)
    if value is None:  # what applications add may be written in any way
        value = next((value for name, value in environ.items() if name.upper() == upper), None)
    return "-" if value is None else str(value)


_ATOMS: Final[Mapping[str, _Value]] = {
    "h": lambda entry: entry.client or "-",
    "l": lambda _entry: "-",
    "u": _user,
    "t": lambda entry: f"[{entry.time}]",
    "r": _line_of,
    "m": lambda entry: entry.request.method if entry.request else "-",
    "U": lambda entry: entry.request.path if entry.request else "-",
    "q": lambda entry: entry.request.query if entry.request else "-",
    "H": lambda entry: f"HTTP/1.{entry.request.minor}" if entry.request else "-",
    "s": lambda entry: entry.status,
    "B": lambda entry: entry.sent,
    "b": lambda entry: entry.sent,
    "f": lambda entry: _field(entry, b"referer"),
    "a": lambda entry: _field(entry, b"user-agent"),
    "T": lambda entry: entry.duration_us // 1_000_000,
    "M": lambda entry: entry.duration_us // 1000,
    "D": lambda entry: entry.duration_us,
    "L": lambda entry: f"{entry.duration_us // 1_000_000}.{entry.duration_us % 1_000_000:06d}",
    "p": lambda _entry: "-",  # the same in all lines: a part of the template
}
_PARTS = re.compile(r"%(?:\(((?:\{[^{}]*\})?[^(){}%]*)\)([a-z]?)|(%)|\{([^{}]*)\}([a-z])|(.?))")


def check_format(text: str) -> str:
    """Return the format if it is one. Raises ValueError: which of its atoms is none, and which was meant."""
    if text not in FORMATS:
        for _part in _parts(text):
            pass
    return text


def _parts(text: str) -> Iterator[str | _Value]:
    """Cut a format into its text and its atoms."""
    if "%" not in text:
        near = difflib.get_close_matches(text, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give combined, json, or a text with atoms such as %(h)s"
        raise ValueError(f"{text!r} is no format: {hint}")
    if not text.replace("\t", "").isprintable():
        raise ValueError(f"{text!r} has a control character: a request is one line of the log")
    end = 0
    for found in _PARTS.finditer(text):
        yield text[end : found.start()]
        end = found.end()
        name, conversion, percent = found.group(1, 2, 3)
        if percent:
            yield "%"
        elif name is None or conversion != "s" or (value := _value(name)) is None:
            raise ValueError(f"{found[0]!r} is no atom{_near(found)}")
        else:
            yield value
    yield text[end:]


def _value(name: str) -> _Value | None:
    """What the atom `%(name)s` stands for."""
    inner, _, kind = name[1:].partition("}")
    if not name.startswith("{") or not inner:
        return _ATOMS.get(name)
    lower, upper = inner.lower().encode("utf-8"), inner.upper()
    kinds: Mapping[str, _Value] = {
        "i": lambda entry: _field(entry, lower),
        "o": lambda entry: _response_field(entry, lower),
        "e": lambda entry: _variable(entry, upper),
    }
    return kinds.get(kind)


def _near(found: re.Match[str]) -> str:
    """The end of the sentence that begins with what is no atom."""
    name, _conversion, _percent, apache, kind, letter = found.groups()
    if apache:  # as Apache's own log formats have it
        name = f"{{{apache}}}{kind if kind in 'ioe' else 'i'}"
    elif name and name.startswith("{"):
        name = f"{{{name[1:].partition('}')[0]}}}i"
    elif name is None:
        name = letter or ""
    for wanted in (name, name.lower(), name.upper()):
        if _value(wanted):
            return f"; did you mean '%({wanted})s'?"
    return f": there are {' '.join(_ATOMS)}, {{field}}i, {{field}}o and {{variable}}e; a percent sign is '%%'"


class _OwnFormat:
    """The lines of one format."""

    __slots__ = ("_escape", "_template", "_values")

    def __init__(self, text: str, pid: int) -> None:
        """Raises ValueError as `check_format` does."""
        self._values: list[_Value] = []
        self._escape = b"\\u%04x" if text.startswith("{") else b"\\x%02x"
        self._template = b""
        for part in _parts(text):
            if isinstance(part, str):
                self._template += part.encode("utf-8", "backslashreplace").replace(b"%", b"%%")
            elif part is _ATOMS["p"]:
                self._template += b"<%d>" % pid
            else:
                self._values.append(part)
                self._template += b"%b"
        self._template += b"\n"

    def line(self, entry: _Entry) -> bytes:
        """Return one line with its end."""
        return self._template % tuple([self._printed(value(entry)) for value in self._values])

    def _printed(self, value: bytes | str | int) -> bytes:
        if isinstance(value, int):
            return b"%d" % value
        text = value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value
        return _UNSAFE.sub(lambda found: self._escape % found[0][0], text) if text.translate(None, _SAFE) else text
