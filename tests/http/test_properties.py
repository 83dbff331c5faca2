"""For any requests, and for any bytes: what the parser must make of them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st

from prefork.http.fields import FieldTable
from prefork.http.limits import Limits
from prefork.http.parser import RequestParser
from tests.http.grammar import Writing, pipelines, writings
from tests.http.outcome import cut, cut_at_random, outcome
from tests.support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

TIGHT = Limits(request_line_bytes=40, fields=3, header_bytes=80, body_bytes=30, chunk_line_bytes=12, extension_bytes=16)
PIECES = [
    b"GET / HTTP/1.1", b"POST /a HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"Host: a", b"Host:", b":",
    b"a: b", b"Content-Length: 3", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: close",
    b"Connection: Upgrade", b"Upgrade: websocket", b"Expect: 100-continue", b"3\r\nabc\r\n", b"0\r\n\r\n", b"5;a=b\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n", b"hello", b"0", b"\x00",
    b"\xff", b"x" * 50,
]  # fmt: skip
any_bytes = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=25).map(
    b"".join
)
randoms = st.randoms(use_true_random=False)


@given(pipeline=pipelines(), rng=randoms)
@examples(50)
def test_requests_are_read_as_they_were_meant(pipeline: Sequence[Writing], rng: random.Random) -> None:
    data = b"".join(writing.data for writing in pipeline)
    for pieces in ([data], cut_at_random(data, rng), cut(data, 1)):
        seen = outcome(pieces)
        assert (seen.status, seen.reason, seen.at_eof) == (0, "", 0)
        assert seen.requests == [writing.seen for writing in pipeline]


@given(data=any_bytes, rng=randoms)
@example(data=b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", rng=random.Random(1))
@examples(300)
def test_any_bytes_give_the_same_however_they_are_cut(data: bytes, rng: random.Random) -> None:
    for limits in (Limits(), TIGHT):
        whole = outcome([data], limits=limits)
        assert outcome(cut(data, 1), limits=limits) == whole
        assert outcome(cut_at_random(data, rng), limits=limits) == whole


@given(
    writing=writings(),
    place=st.integers(0, 1000),
    piece=st.sampled_from(PIECES),
    instead=st.integers(0, 3),
    rng=randoms,
)
@examples(100)
def test_a_request_with_a_fault_gives_the_same_however_it_is_cut(
    writing: Writing, place: int, piece: bytes, instead: int, rng: random.Random
) -> None:
    at = place % (len(writing.data) + 1)
    data = writing.data[:at] + piece + writing.data[at + instead :]
    for limits in (Limits(), TIGHT):
        whole = outcome([data], limits=limits)
        assert outcome(cut(data, 1), limits=limits) == whole
        assert outcome(cut_at_random(data, rng), limits=limits) == whole


@given(first=writings(), second=writings())
@examples(50)
def test_what_was_asked_before_makes_no_difference(first: Writing, second: Writing) -> None:
    table = FieldTable()
    outcome([first.data], table=table)
    assert outcome([second.data], table=table) == outcome([second.data])


@given(data=any_bytes, rng=randoms)
@examples(300)
def test_what_is_kept_is_never_more_than_a_line(data: bytes, rng: random.Random) -> None:
    parser = RequestParser(TIGHT)
    for piece in cut_at_random(data, rng):
        parser.feed(piece)
        assert parser.backlog_bytes <= max(TIGHT.request_line_bytes, TIGHT.header_bytes, TIGHT.chunk_line_bytes)
