"""HTTP/1.1 as a client: the link of the http scenario, and the parser of responses.

The parser takes bytes and finds where a response ends, its status, and whether the connection stays open. It counts the
bytes of a body and does not keep them. A body ends by Content-Length, by the last chunk, or, without either, by the end
of the stream. A response to HEAD, and one with status 204 or 304, has no body, whatever it announces. Interim responses
(100, 103) are skipped. As curl does, the parser takes what a recipient may take though no server should send it: a line
that ends with LF alone (RFC 9112 section 2.2), a field that goes on in the next line (5.2), and a Content-Length given
several times with one value (RFC 9110 section 8.6). Anything else that no server should send (lengths that differ, a
length that is no number, a chunk without its line end, bytes after the end) is a wrong reply; a lab has to notice it.

The size of all heads and trailers of a response together is limited, and so is the line of a chunk. Only the deadline
of the exchange limits a body.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING

from loadtest.generator.failure import CLOSED_EARLY, RESET, WRONG_LENGTH, WRONG_REPLY, ExchangeError
from loadtest.generator.link import CHUNK, HUNG_UP, IN, RepeatingLink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadtest.generator.link import EngineApi


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What makes a response a good one."""

    statuses: frozenset[int] = frozenset(range(200, 300))
    length: int | None = None  # of the body, in bytes; None: any that is framed properly
    bodiless: bool = False  # it answers a HEAD, and has no body, whatever length it announces

    def flaw(self, status: int, length: int) -> str:
        """Return the cause why a complete response is a failure; empty when it is as expected."""
        if status not in self.statuses:
            return f"status {status}"
        return WRONG_LENGTH if self.length not in (None, length) else ""


class WebLink(RepeatingLink):
    """Sends the request when the response to the one before is complete; connects when there is no connection.

    A server may close a kept connection at any time, also just when a request is on its way. RFC 9112 section 9.3.1:
    a request whose kept connection ends before any byte of an answer is sent once more, on a new connection, if
    `retry`, which must be false for methods that are not idempotent. Its clock goes on. If nothing of it had been sent,
    it is sent on a new connection in any case, and that counts as no retry.
    """

    __slots__ = ("_expected", "_response", "_retry")

    interest = IN | HUNG_UP

    def __init__(
        self,
        engine: EngineApi,
        request: bytes,
        expected: Expectation | None = None,
        exchanges: int = 0,
        *,
        retry: bool = False,
    ) -> None:
        super().__init__(engine, request, exchanges)
        self._expected = expected or Expectation()
        self._retry = retry
        self._response: Response | None = None  # the one that has come in part

    def begin(self) -> None:
        """Start an exchange now; a connect that it needs is part of it, and so is a TLS handshake."""
        self.sent_ns = clock()
        if self.connection.fileno() < 0:
            self._left = self._exchanges
            self.connect()
        else:
            self.send()

    def examine(self, data: bytes) -> None:
        """Read a response that is not the usual one, or comes in pieces."""
        if not self.sent_ns:
            self.drop()  # the server closed an idle connection, or talks without having been asked
            return
        self._usual = None
        self._size = CHUNK
        in_one_piece = self._response is None
        if not data and in_one_piece:
            self.broken(CLOSED_EARLY)
            return
        response = self._response = self._response or Response(bodiless=self._expected.bodiless)
        try:
            if data:
                response.feed(data)
            else:
                response.end()
        except ExchangeError as error:
            self.fail(str(error))
            return
        if not response.complete:
            self.engine.batch.received += len(data)
            return
        self._response = None
        self._left -= 1
        # An answer to a request that is not wholly sent: what is left of that would be taken for the next one.
        keeps = response.keeps_alive and self._left and not self._rest and not self._ended
        if flaw := self._expected.flaw(response.status, response.length):
            self.fail(flaw, keep=bool(keeps))
            return
        self.note(len(data))
        if in_one_piece and not self._rest:
            self._usual = data
            self._size = len(data) + 1
            self._keeps = response.keeps_alive
        if not keeps:
            self._rest = b""
            self.connection.close()
        self.engine.freed.append(self)

    def broken(self, cause: str, *, unsent: bool = False) -> None:
        """Send the request on a new connection if the server closed a kept one before any byte of an answer."""
        kept = self._left != self._exchanges  # it has served at least one exchange
        closed = cause in (CLOSED_EARLY, RESET) and kept and self._response is None
        if not self.sent_ns or not closed or not (unsent or self._retry):
            self.fail(cause)
            return
        if not unsent:
            self.engine.batch.retried_ns.append(self.due_ns or self.sent_ns)
        began_ns = self.sent_ns
        self.drop()
        self.sent_ns = began_ns
        self._left = self._exchanges
        self.connect()

    def drop(self) -> None:
        """Close the connection and forget the exchange."""
        super().drop()
        self._response = None


_MOST_KEPT = 64 << 20  # bytes of usual replies of all targets


class Target:
    """A request of several that the links of a process send in turn, with its own usual reply, which they share."""

    __slots__ = ("keeps", "most", "request", "size", "usual")

    def __init__(self, request: bytes, most: int) -> None:
        """`most`: the longest reply to keep, in bytes."""
        self.request = request
        self.most = most
        self.usual: bytes | None = None
        self.size = CHUNK
        self.keeps = True

    @classmethod
    def made(cls, requests: Sequence[bytes]) -> list[Target]:
        """Make a target of each request."""
        return [cls(request, _MOST_KEPT // len(requests)) for request in requests]


class TargetsLink(WebLink):
    """Sends the next one of several requests each time; all links of a process take them from one iterator."""

    __slots__ = ("_target", "_targets")

    def __init__(
        self,
        engine: EngineApi,
        targets: Iterator[Target],
        expected: Expectation | None = None,
        exchanges: int = 0,
        *,
        retry: bool = False,
    ) -> None:
        super().__init__(engine, b"", expected, exchanges, retry=retry)
        self._targets = targets
        self._target: Target | None = None  # of the exchange in flight, or of the last one

    def begin(self) -> None:
        """Start an exchange with the next target."""
        target = self._target = next(self._targets)
        self.request = target.request
        self._usual = target.usual
        self._size = target.size
        self._keeps = target.keeps
        super().begin()

    def examine(self, data: bytes) -> None:
        """Read a response that is not the usual one of its target, or comes in pieces."""
        super().examine(data)
        target = self._target
        if target and self._usual is not None and len(self._usual) <= target.most:
            target.usual, target.size, target.keeps = self._usual, self._size, self._keeps


_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?")
_HEAD_END = re.compile(rb"\n\r?\n")
MOST_HEAD = 65536  # bytes of heads and trailers, or of a chunk's line
_TO_THE_END = -1
_BODILESS = (101, 204, 304)
INTERIM = frozenset(range(100, 200)) - {101}
"""Statuses that another response follows."""


class Response:
    """Parses one response: call `feed` with what was received until `complete` is true."""

    def __init__(self, *, bodiless: bool = False) -> None:
        """`bodiless`: the response answers a HEAD."""
        self.status = 0
        self.length = 0  # bytes of the body that have come
        self.keeps_alive = False
        self.complete = False
        self._bodiless = bodiless
        self._room = MOST_HEAD
        self._state = self._head
        self._buffer = b""  # what came and is not understood yet: a part of a line
        self._left = 0  # bytes of the body, or of the chunk with its line end, still to come; or _TO_THE_END

    def feed(self, data: bytes) -> bool:
        """Take the next bytes. Returns whether the response is complete. Raises ExchangeError ("wrong reply")."""
        self._buffer += data
        while not self.complete and self._state():
            pass
        if self.complete and self._buffer:
            raise ExchangeError(WRONG_REPLY)
        return self.complete

    def end(self) -> None:
        """Handle the end of the stream. Raises ExchangeError ("closed early") unless the body ends there."""
        if self._left != _TO_THE_END:
            raise ExchangeError(CLOSED_EARLY)
        self.complete = True

    def _head(self) -> bool:
        """Parse the head. Like every state, return whether it advanced, so that the next state can continue."""
        end = head_end(self._buffer)
        if end < 0:
            return self._incomplete()
        minor, self.status, fields = read_head(self._take(end))
        if self.status not in INTERIM:
            self._body(fields, minor)
        return True

    def _body(self, fields: dict[bytes, bytes], minor: int) -> None:
        said = tokens(fields.get(b"connection", b""))
        self.keeps_alive = b"close" not in said and (minor == 1 or b"keep-alive" in said)
        coding = fields.get(b"transfer-encoding")
        length = fields.get(b"content-length")
        if self._bodiless or self.status in _BODILESS:
            self.keeps_alive &= self.status != 101  # from there on it is not HTTP
            self.complete = True
        elif coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise ExchangeError(WRONG_REPLY)
            self._state = self._chunk_line
        elif length is not None:
            self._left = _length(length)
            self.complete = not self._left
            self._state = self._sized
        else:
            self.keeps_alive = False
            self._left = _TO_THE_END
            self._state = self._endless

    def _sized(self) -> bool:
        self._left -= self._pass_over(self._left)
        self.complete = not self._left
        return False

    def _endless(self) -> bool:
        self._pass_over(len(self._buffer))
        return False

    def _pass_over(self, size: int) -> int:
        """Drop up to `size` bytes of the body from the buffer, and count them."""
        took = min(size, len(self._buffer))
        self._buffer = self._buffer[took:]
        self.length += took
        return took

    def _take(self, size: int) -> bytes:
        """Take `size` bytes of a head or a trailer from the buffer, within their limit."""
        taken = self._buffer[:size]
        self._buffer = self._buffer[size:]
        self._room -= size
        if self._room < 0:
            raise ExchangeError(WRONG_REPLY)
        return taken

    def _chunk_line(self) -> bool:
        end = self._buffer.find(b"\n")
        if end < 0:
            return self._incomplete()
        match = _CHUNK.fullmatch(self._buffer[:end])
        if match is None:
            raise ExchangeError(WRONG_REPLY)
        self._buffer = self._buffer[end + 1 :]
        self._left = int(match[1], 16)
        self._state = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> bool:
        """Skip the chunk, and check its line end."""
        self._left -= self._pass_over(self._left)
        if self._left or self._buffer in (b"", b"\r"):
            return False
        if not self._buffer.startswith((b"\r\n", b"\n")):
            raise ExchangeError(WRONG_REPLY)
        self._buffer = self._buffer[self._buffer.index(b"\n") + 1 :]
        self._state = self._chunk_line
        return True

    def _trailer(self) -> bool:
        end = self._buffer.find(b"\n")
        if end < 0:
            return self._incomplete()
        self.complete = self._take(end + 1) in (b"\r\n", b"\n")
        return True

    def _incomplete(self) -> bool:
        if len(self._buffer) > MOST_HEAD:
            raise ExchangeError(WRONG_REPLY)
        return False


def head_end(came: bytes) -> int:
    """Return the length of the head, with its empty line; -1 while it is incomplete."""
    found = _HEAD_END.search(came)
    return found.end() if found else -1


def read_head(head: bytes) -> tuple[int, int, dict[bytes, bytes]]:
    """Parse a head with its empty line: minor version, status, fields. Raises ExchangeError."""
    lines = head.replace(b"\r\n", b"\n").split(b"\n")[:-2]
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        raise ExchangeError(WRONG_REPLY)
    return int(match[1]), int(match[2]), _fields(lines[1:])


def tokens(value: bytes) -> list[bytes]:
    """Split a list in a field's value, in lower case."""
    return [token.strip() for token in value.lower().split(b",")]


def _length(value: bytes) -> int:
    """Parse a Content-Length, several of them joined by commas. Raises ExchangeError unless all are one number."""
    if b"," in value:
        value, *others = {part.strip(b" \t") for part in value.split(b",")}
        if others:
            raise ExchangeError(WRONG_REPLY)
    if not _LENGTH.fullmatch(value):
        raise ExchangeError(WRONG_REPLY)
    return int(value)


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    """Return the fields by their lower-case names; the values of a repeated field are joined by commas."""
    found: dict[bytes, bytes] = {}
    name = b""
    for line in lines:
        if name and line[0] in b" \t":  # the value goes on
            found[name] = (found[name] + b" " + line.strip(b" \t")).strip(b" \t")
            continue
        name, colon, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        if not colon or not name or name.strip(b" \t") != name:
            raise ExchangeError(WRONG_REPLY)
        found[name] = found[name] + b", " + value if name in found else value
    return found
