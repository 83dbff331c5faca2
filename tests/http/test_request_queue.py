"""Whole requests of one connection, in order, each with its body, however the bytes come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.fields import FieldTable
from prefork.http.head import Request
from prefork.http.limits import Limits, Refusal
from prefork.http.parser import RequestQueue

if TYPE_CHECKING:
    from prefork.http.parser import CompleteRequest

GET = b"GET /%d HTTP/1.1\r\nHost: example.org\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: example.org\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
)


def incoming() -> RequestQueue:
    return RequestQueue(Limits(), FieldTable())


def drain(found: RequestQueue, first: CompleteRequest | None) -> list[CompleteRequest]:
    all_ = [first] if first else []
    while found.waiting:
        all_.append(found.take())
    return all_


def test_a_usual_request_comes_straight_through() -> None:
    found = incoming()
    for number in range(3):
        whole = found.feed(GET % number)
        assert whole is not None
        request, body = whole
        assert isinstance(request, Request)
        assert (request.target, body) == (b"/%d" % number, None)
        assert found.quiet
        assert not found.waiting


@given(st.lists(st.integers(1, 200), max_size=12))
def test_the_same_requests_however_they_are_cut(cuts: list[int]) -> None:
    data = GET % 1 + POST + CHUNKED + GET % 2
    found, position, wholes = incoming(), 0, []
    for size in (*cuts, len(data)):
        piece = data[position : position + size]
        position += len(piece)
        if piece:
            wholes += drain(found, found.feed(piece))
    assert [request.target for request, _ in wholes if isinstance(request, Request)] == [b"/1", b"/p", b"/c", b"/2"]
    assert [body.input().read() for _, body in wholes if body is not None] == [b"hello world"] * 2
    assert found.quiet


def test_what_has_begun_is_not_quiet() -> None:
    found = incoming()
    assert found.feed(b"GET / HT") is None
    assert (found.quiet, found.in_head) == (False, True)
    found = incoming()
    assert found.feed(POST[:-3]) is None
    assert (found.quiet, found.in_head, found.received) == (False, False, 8)


def test_a_client_that_waits_is_told_apart_until_it_sends() -> None:
    found = incoming()
    head, _, body = POST.replace(b"Content-Length", b"Expect: 100-continue\r\nContent-Length").partition(b"\r\n\r\n")
    assert found.feed(head + b"\r\n\r\n") is None
    assert found.continues
    assert found.feed(body) is not None
    assert not found.continues


@pytest.mark.parametrize("data", [b"", POST[:-1]])
def test_the_end(data: bytes) -> None:
    found = incoming()
    assert not data or found.feed(data) is None
    whole = found.feed(b"")
    assert found.ended
    assert not found.quiet
    if data:
        assert whole is not None
        assert isinstance(whole[0], Refusal)
    else:
        assert whole is None


def test_requests_before_a_fault_are_answered_first() -> None:
    found = incoming()
    wholes = drain(found, found.feed(GET % 1 + GET % 2 + b"nonsense\r\n\r\n"))
    assert [type(request) for request, _ in wholes] == [Request, Request, Refusal]


def test_closing_lets_go_of_large_bodies() -> None:
    found = incoming()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n"
    assert found.feed(head + b"x" * 200_000) is None
    assert found._body is not None
    assert found._body._file is not None
    file = found._body._file
    found.close()
    assert file.closed


def test_a_refusal_knows_whose_body_is_arriving() -> None:
    for method in (b"HEAD", b"POST"):
        found = incoming()
        found.feed(method + b" / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc")
        assert found.refusal(408, "late").head is (method == b"HEAD")


def test_a_refusal_knows_the_method_of_a_head_that_is_arriving() -> None:
    found = incoming()
    found.feed(b"HEAD / HTTP")
    assert found.refusal(408, "late").head
