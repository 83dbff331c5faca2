"""What holds for a response of either kind: the Connection field, the error page, and where both begin."""

from __future__ import annotations

import itertools

import pytest

from prefork.http.asgi import AsgiResponse
from prefork.http.framer import ResponseFramer
from prefork.http.head import Request
from prefork.http.response import LENGTH, ResponseError, add_fields, stamp
from prefork.http.wsgi import WsgiCall
from tests.http.calls import parse

STAMP = stamp(0)
HTML = "Accept: text/html\r\n"


def request_of(method: str = "GET", *, minor: int = 1, fields: str = "") -> Request:
    request, body = parse(f"{method} / HTTP/1.{minor}\r\nHost: a\r\n{fields}\r\n".encode())
    assert body is None
    return request


def both(request: Request) -> list[ResponseFramer]:
    """A response of either kind, with a head."""
    wsgi = WsgiCall(lambda _environ, _start: [], {}, request, STAMP)
    wsgi.start_response("200 OK", [("A", "b")])
    asgi = AsgiResponse(request)
    asgi.start({"type": "http.response.start", "status": 200, "headers": [(b"A", b"b")]})
    return [wsgi, asgi]


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("minor", [0, 1])
def test_all_begin_in_the_same_state(keep_alive: bool, minor: int) -> None:
    """WsgiCall sets the attributes itself, and must not forget one."""
    request = request_of(minor=minor, fields=f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n")
    plain, *others = ResponseFramer(request), WsgiCall(lambda *_: [], {}, request, STAMP), AsgiResponse(request)
    for other, name in itertools.product(others, ResponseFramer.__slots__):
        assert getattr(other, name) == getattr(plain, name), name


@pytest.mark.parametrize(
    ("keep_alive", "minor", "field"),
    [
        (True, 1, b""),
        (True, 0, b"Connection: keep-alive\r\n"),
        (False, 1, b"Connection: close\r\n"),
        (False, 0, b"Connection: close\r\n"),
    ],
)
def test_the_connection_field_stands_where_the_version_does_not_say_it(
    keep_alive: bool, minor: int, field: bytes
) -> None:
    for response in both(request_of(minor=minor)):
        response.keep_alive = keep_alive
        head = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n"
        assert response.last(b"hello", STAMP) == head + field + STAMP + b"hello"


def test_pieces_are_framed_the_same() -> None:
    for minor, method in itertools.product((0, 1), ("GET", "HEAD")):
        wsgi, asgi = both(request_of(method, minor=minor))
        for response in (wsgi, asgi):
            response.piece(b"one", STAMP)
        assert wsgi.piece(b"two", STAMP) == asgi.piece(b"two", STAMP)
        assert wsgi.last(b"", STAMP) == asgi.last(b"", STAMP)
        assert (wsgi.sent, wsgi.framed, wsgi.keep_alive) == (asgi.sent, asgi.framed, asgi.keep_alive)


@pytest.mark.parametrize("size", [4, 6])
def test_a_wrong_length_that_is_known_before_the_head_is_told_in_it(size: int) -> None:
    for response in both(request_of()):
        response._length = 5
        response._given = LENGTH
        assert b"\r\nConnection: close\r\n" in response.last(bytes(size), STAMP)
        assert isinstance(response.error, ResponseError)
        assert response.sent == min(size, 5)


def test_a_first_piece_beyond_the_length_is_told_in_the_head() -> None:
    for response in both(request_of()):
        response._length = 5
        response._given = LENGTH
        assert b"\r\nConnection: close\r\n" in response.piece(bytes(6), STAMP)
        assert (response.sent, response.keep_alive) == (5, False)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("fields", ["", HTML])
def test_both_fail_with_the_same_page(method: str, fields: str) -> None:
    wsgi, asgi = both(request_of(method, fields=fields))
    page = wsgi.fail(STAMP)
    assert page == asgi.fail(STAMP)
    assert page.startswith(b"HTTP/1.1 500 ")
    assert (b"text/html" in page) == bool(fields)
    for response in (wsgi, asgi):
        assert (response.status, response.done, response.aborted, response.keep_alive) == (500, True, False, False)
        assert response.sent == len(page.partition(b"\r\n\r\n")[2])


def test_both_fail_without_a_page_behind_the_head() -> None:
    for response in both(request_of()):
        response.piece(b"begun", STAMP)
        assert response.fail(STAMP) == b""
        assert (response.status, response.done, response.aborted, response.keep_alive) == (200, True, True, False)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("minor", [0, 1])
def test_a_request_that_is_turned_away_gets_a_whole_response(method: str, minor: int) -> None:
    """The fields of --header stay, but for those that it has itself."""
    stamped = stamp(0, add_fields(["Retry-After: 9", "X: y"]))
    try:
        for response in both(request_of(method, minor=minor)):
            response.keep_alive = bool(minor)
            data = response.turn_away(stamped)
            head, _, body = data.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert [
                line for line in head.split(b"\r\n") if line.startswith((b"Retry", b"X", b"Content-L", b"Conn"))
            ] == [
                b"Content-Length: 24",
                b"Retry-After: 1",
                *([] if minor else [b"Connection: close"]),
                b"X: y",
            ]
            assert body == (b"" if method == "HEAD" else b"503 Service Unavailable\n")
            assert (response.status, response.sent, response.done, response.aborted) == (503, len(body), True, False)
            assert response.keep_alive == bool(minor)
    finally:
        add_fields([])
