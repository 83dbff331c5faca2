"""A client that repeats its fields gets what it would get on a connection of its own, whatever its request lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.http.fields import FieldTable
from prefork.http.head import Request
from prefork.http.limits import Limits, Refusal
from prefork.http.parser import Event, RequestParser
from tests.support.examples import examples

LINES = (
    b"GET / HTTP/1.1", b"GET /a HTTP/1.1", b"GET /a?b=c HTTP/1.1", b"HEAD / HTTP/1.1", b"GET /%20 HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"GET http://other.example/x HTTP/1.1", b"GET / HTTP/1.0", b"POST / HTTP/1.1", b"PURGE /a HTTP/1.1",
    b"GET /" + b"x" * 8200 + b" HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/2.0", b"CONNECT a:1 HTTP/1.1",
    b"", b"GET /\x00 HTTP/1.1",
)  # fmt: skip
BLOCKS = (
    b"Host: example.org\r\nAccept: */*\r\n", b"Host: example.org\r\n", b"Host: example.org\r\nConnection: close\r\n",
    b"Host: example.org\r\nContent-Length: 0\r\n",
    b"Host: example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Accept: */*\r\n", b"Host: example.org\r\nX: a\r\nX: b\r\n",
    b"Host: example.org\r\nExpect: 100-continue\r\n", b"",
)  # fmt: skip


def said(events: list[Event]) -> list[object]:
    """What the events tell, in a form that compares."""
    found: list[object] = []
    for event in events:
        if isinstance(event, Request):
            told = {name: getattr(event, name) for name in Request.__slots__ if name not in ("fields", "plain")}
            found.append((told, [(name.lower, value) for name, value in event.fields]))
        elif isinstance(event, Refusal):
            found.append((event.status, event.reason))
        else:
            found.append(event)
    return found


@examples(500)
@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(BLOCKS)), max_size=12))
def test_a_repeated_head_means_what_a_first_one_does(heads: list[tuple[bytes, bytes]]) -> None:
    table = FieldTable()
    parser = RequestParser(Limits(), table)
    for line, block in heads:
        data = line + b"\r\n" + block + b"\r\n"
        assert parser.idle
        events = parser.feed(data)
        assert said(events) == said(RequestParser(Limits()).feed(data))
        last = events[-1] if events else None
        if not isinstance(last, Request) or not last.complete or not last.keep_alive:
            return
