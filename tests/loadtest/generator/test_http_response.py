"""Where an HTTP response ends, however it comes in pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.generator.failure import ExchangeError
from loadtest.generator.http import Response, head_end

OK = b"HTTP/1.1 200 OK\r\n"
GOOD = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", 200, True),
    "empty": (OK + b"content-length:0\r\n\r\n", 200, True),
    "close": (OK + b"Connection: close\r\nContent-Length: 1\r\n\r\n!", 200, False),
    "close among others": (OK + b"Connection: foo, Close\r\nContent-Length: 1\r\n\r\n!", 200, False),
    "old": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n!", 200, False),
    "old but kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n!", 200, True),
    "no reason": (b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", 404, True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", 304, True),
    "after hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok", 200, True),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1F\r\n" + b"x" * 31 + b"\r\n0\r\n\r\n", 200, True),
    "chunk extension": (OK + b"Transfer-Encoding: Chunked\r\n\r\n1;a=b\r\nx\r\n0;c\r\n\r\n", 200, True),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n", 200, True),
    "length twice": (OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 200, True),
    "length in a list": (OK + b"Content-Length: 5, 5\r\n\r\nhello", 200, True),
    "folded": (OK + b"A: b\r\n\tc\r\n \r\nContent-Length:\r\n 5\r\n\r\nhello", 200, True),
    "LF alone": (b"HTTP/1.1 200 OK\nConnection: close\nContent-Length: 6\n\na\r\n\r\nb", 200, False),
    "LF here and there": (OK + b"Content-Length: 5\nA: b\r\n\nhello", 200, True),
    "chunks and LF": (OK + b"Transfer-Encoding: chunked\n\n3\nabc\n2;x\r\nde\n0\nA: b\n\n", 200, True),
    "CRLF in a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n", 200, True),
}


@pytest.mark.parametrize("name", GOOD)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_a_response_is_complete_at_its_last_byte_however_it_is_cut(name: str, cuts: list[int]) -> None:
    text, status, keeps_alive = GOOD[name]
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    response = Response()
    for start, end in itertools.pairwise(edges):
        if start < end:
            assert response.feed(text[start:end]) == (end == len(text))
    assert (response.complete, response.status, response.keeps_alive) == (True, status, keeps_alive)


def test_without_a_length_the_body_goes_on_to_the_end_of_the_stream() -> None:
    response = Response()
    for piece in (OK + b"Connection: keep-alive\r\n\r\nab", b"c" * 100_000):
        assert not response.feed(piece)
    response.end()
    assert (response.complete, response.keeps_alive) == (True, False)


@pytest.mark.parametrize("name", GOOD)
def test_an_end_before_the_last_byte_is_too_early(name: str) -> None:
    text, _, _ = GOOD[name]
    for end in range(len(text)):
        response = Response()
        if end:
            response.feed(text[:end])
        with pytest.raises(ExchangeError, match="closed early"):
            response.end()


@pytest.mark.parametrize(
    "text",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"SSH-2.0-x\r\n" + b"y" * 70_000,
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        OK + b"Content-Length: 1, 2\r\n\r\nx",
        OK + b"Content-Length: 1,\r\n\r\nx",
        OK + b"Content-Length: 1, 01\r\n\r\nx",
        OK + b"Content-Length: 1 1, 11\r\n\r\nx",
        OK + b" Content-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\r\n\r\n",
        OK + b"Content-Length: \xb2\r\n\r\n",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"Content-Length : 1\r\n\r\nx",
        OK + b"Content-Length: 1\r\n\r\nxy",
        OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\r\na\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
        OK * 2 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nbody",
    ],
)
def test_what_no_server_should_send_is_a_wrong_reply(text: bytes) -> None:
    with pytest.raises(ExchangeError, match="wrong reply"):
        Response().feed(text)


@pytest.mark.parametrize("name", ["length", "close", "chunked", "no content", "LF alone"])
def test_a_response_to_head_ends_with_its_head(name: str) -> None:
    text, status, keeps_alive = GOOD[name]
    head = text[: head_end(text)]
    response = Response(bodiless=True)
    assert response.feed(head)
    assert (response.status, response.length, response.keeps_alive) == (status, 0, keeps_alive)
    with pytest.raises(ExchangeError, match="wrong reply"):
        Response(bodiless=True).feed(head + b"x")


@pytest.mark.parametrize(
    ("name", "length"), [("length", 5), ("empty", 0), ("chunked", 34), ("CRLF in a chunk", 4), ("not modified", 0)]
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_the_bytes_of_the_body_are_counted(name: str, length: int, step: int) -> None:
    text, _, _ = GOOD[name]
    response = Response()
    for start in range(0, len(text), step):
        response.feed(text[start : start + step])
    assert (response.complete, response.length) == (True, length)


def test_after_a_change_of_protocol_the_connection_is_not_kept() -> None:
    response = Response()
    assert response.feed(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n")
    assert (response.status, response.keeps_alive) == (101, False)


@pytest.mark.parametrize(
    ("before", "more"),
    [
        (OK, b"A: b\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
    ],
)
def test_heads_and_trailers_are_bounded_however_they_come(before: bytes, more: bytes) -> None:
    response = Response()
    response.feed(before + b"B: c\r\n" if before else more)
    for _ in range(65536 // len(more) - 10):
        assert not response.feed(more)
    with pytest.raises(ExchangeError, match="wrong reply"):
        response.feed(more * 30)
    with pytest.raises(ExchangeError, match="wrong reply"):
        Response().feed(before + more * (65536 // len(more) + 1) + b"\r\n")
