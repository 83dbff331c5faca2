"""Two other parsers of HTTP/1.1, read as ours is: llhttp by way of httptools, and h11.

A peer's answer is the requests that it takes to be complete, and why it stopped. Where a peer refuses what we accept,
or ends a message elsewhere, one of us is wrong, or there is a reason: those that are known have a name here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11
import httptools

if TYPE_CHECKING:
    from tests.http.outcome import Outcome

Message = tuple[str, bytes, bytes]  # method, target, body
MOST_BYTES = 1 << 20


@dataclass(kw_only=True)
class Answer:
    """Of a peer. `refusal`: its own words, "" if it has no objection."""

    messages: list[Message] = field(default_factory=list)
    refusal: str = ""


class _Collector:
    """The callbacks of httptools."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.method = ""
        self.target = self.body = b""
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.target = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.answer.messages.append((self.parser.get_method().decode(), self.target, self.body))


def ask_httptools(data: bytes) -> Answer:
    collector = _Collector()
    try:
        collector.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        collector.answer.refusal = f"{type(error).__name__}: {error}"
    return collector.answer


def ask_h11(data: bytes) -> Answer:
    answer = Answer()
    try:
        while data:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_BYTES)
            connection.receive_data(data)
            message = _next_message(connection)
            if message is None:
                break
            answer.messages.append(message)
            data = connection.trailing_data[0]
            if connection.their_state is h11.MUST_CLOSE:
                break
    except h11.RemoteProtocolError as error:
        answer.refusal = f"{error.error_status_hint}: {error}"
    return answer


def _next_message(connection: h11.Connection) -> Message | None:
    method, target, body = "", b"", b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return None
        if isinstance(event, h11.Request):
            method, target = event.method.decode(), event.target
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return method, target, body


PEERS = {"httptools": ask_httptools, "h11": ask_h11}

# Why a peer may differ: for whom, words of the difference, and what is in the bytes.
KNOWN = {
    "its methods are a closed list": ("httptools", r"Invalid method|space after method", rb""),
    "it ends a message at Upgrade, whatever its body": ("httptools", r"", rb"(?i)\r\nupgrade:"),
    "no blanks before a chunk's extension (RFC 9110 5.6.3)": ("", r"chunk", rb"[ \t][;=]|[;=][ \t]"),
    "no empty line before a request (RFC 9112 2.2)": (
        "h11",
        r"no request line received",
        rb"\A\r\n|\r\n\r\n\r\n|[^\n]\r\n[A-Z]",
    ),
    "no tab after chunked (RFC 9112 5: OWS)": ("httptools", r"invalid `Transfer-Encoding`", rb"(?i)chunked[ \t]*\t"),
    "no minor version above 1 (RFC 9110 2.5)": ("httptools", r"Invalid HTTP version", rb"HTTP/1\.[2-9]\r\n"),
    "HTTP/1.0 is never kept alive": ("h11", r"wants more bytes", rb"HTTP/1\.0\r\n"),
}


def known_reason(peer: str, difference: str, data: bytes) -> str:
    """The name of the reason for a difference; "" if there is none."""
    for name, (whose, words, pattern) in KNOWN.items():
        if whose in ("", peer) and re.search(words, difference) and re.search(pattern, data):
            return name
    return ""


def difference(peer: str, data: bytes, ours: Outcome) -> str:
    """Say how the peer's answer differs where it must not; "" if it does not.

    That we refuse what it accepts is no difference: strictness is why this parser exists.
    """
    answer = PEERS[peer](data)
    accepted = [
        (str(seen.attributes["method"]), seen.attributes["target"], seen.body)
        for seen in ours.requests
        if seen.finished
    ]
    shared = answer.messages[: len(accepted)]
    if shared != accepted[: len(shared)]:
        return f"{peer} reads {shared}, we {accepted}"
    if len(shared) < len(accepted):
        what = f"refuses with {answer.refusal!r}" if answer.refusal else "wants more bytes"
        return f"{peer} {what} after {shared}, we accept {accepted}"
    beyond = answer.messages[len(accepted) :]
    closed = bool(ours.requests) and ours.requests[-1].finished and not ours.requests[-1].attributes["keep_alive"]
    return f"{peer} has {beyond} beyond our {accepted}" if beyond and not ours.status and not closed else ""


def laxity(peer: str, data: bytes, ours: Outcome) -> bool:
    """Whether the peer has no objection to what we refuse."""
    return bool(ours.status) and not PEERS[peer](data).refusal
