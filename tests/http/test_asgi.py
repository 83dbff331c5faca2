"""The messages of an ASGI response as bytes: framing, order, what is refused, what the client of a failure sees."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from prefork.http.asgi import AsgiResponse
from prefork.http.head import Request
from prefork.http.limits import Limits
from prefork.http.parser import RequestParser
from prefork.http.response import ResponseError

STAMP = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: prefork\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def respond(method: str = "GET", *, minor: int = 1, fields: str = "") -> AsgiResponse:
    """The response to a request that was parsed."""
    raw = f"{method} / HTTP/1.{minor}\r\nHost: a\r\n{fields}\r\n".encode()
    (request,) = RequestParser(Limits()).feed(raw)
    assert isinstance(request, Request)
    return AsgiResponse(request)


def start(response: AsgiResponse, status: object = 200, headers: object = (), **more: object) -> None:
    assert response.take({"type": "http.response.start", "status": status, "headers": headers, **more}, STAMP) == b""


def body(response: AsgiResponse, data: object = b"", *, more: bool = False) -> bytes:
    return response.take({"type": "http.response.body", "body": data, "more_body": more}, STAMP)


def length(size: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % size)]


# --- framing


def test_one_body_message_is_the_whole_response() -> None:
    response = respond()
    start(response, headers=[(b"content-type", b"text/plain")])
    assert not response.begun
    assert body(response, b"hello") == OK + b"content-type: text/plain\r\nContent-Length: 5\r\n" + STAMP + b"hello"
    assert (response.done, response.keep_alive, response.sent, response.error) == (True, True, 5, None)


def test_a_content_length_of_the_applications_own_is_kept() -> None:
    response = respond()
    start(response, headers=length(5))
    assert body(response, b"hello") == OK + b"content-length: 5\r\n" + STAMP + b"hello"


def test_pieces_are_chunks_and_empty_ones_are_none() -> None:
    response = respond()
    start(response)
    assert body(response, b"", more=True) == OK + b"Transfer-Encoding: chunked\r\n" + STAMP
    assert body(response, b"hello", more=True) == b"5\r\nhello\r\n"
    assert body(response, b"", more=True) == b""
    assert body(response, b"!") == b"1\r\n!\r\n0\r\n\r\n"
    assert (response.done, response.keep_alive, response.sent) == (True, True, 6)


def test_pieces_under_a_content_length_are_sent_as_they_are() -> None:
    response = respond()
    start(response, headers=length(6))
    assert body(response, b"hello", more=True).endswith(STAMP + b"hello")
    assert body(response, b"!") == b"!"
    assert (response.keep_alive, response.error) == (True, None)


@pytest.mark.parametrize("fields", ["", "Connection: keep-alive\r\n"])
def test_pieces_for_http_1_0_end_with_the_connection(fields: str) -> None:
    response = respond(minor=0, fields=fields)
    start(response)
    assert body(response, b"hello", more=True) == OK + b"Connection: close\r\n" + STAMP + b"hello"
    assert not response.framed
    assert body(response) == b""
    assert (response.done, response.keep_alive) == (True, False)


def test_http_1_0_is_kept_alive_if_it_asks_and_the_length_is_known() -> None:
    response = respond(minor=0, fields="Connection: keep-alive\r\n")
    start(response)
    assert body(response, b"a") == OK + b"Content-Length: 1\r\nConnection: keep-alive\r\n" + STAMP + b"a"
    assert response.keep_alive


@pytest.mark.parametrize("data", [b"hello", b""])
def test_head_has_the_fields_and_no_body(data: bytes) -> None:
    response = respond("HEAD")
    start(response, headers=length(5))
    assert body(response, data) == OK + b"content-length: 5\r\n" + STAMP
    assert (response.done, response.keep_alive, response.error) == (True, True, None)


def test_head_without_a_known_length_says_none() -> None:
    response = respond("HEAD")
    start(response)
    assert body(response) == OK + STAMP


@pytest.mark.parametrize(("status", "field"), [(204, b""), (304, b""), (205, b"Content-Length: 0\r\n")])
def test_statuses_without_a_body(status: int, field: bytes) -> None:
    response = respond()
    start(response, status)
    sent = body(response, b"left out", more=True) + body(response, b"as well")
    assert sent.partition(b"\r\n")[2] == field + STAMP
    assert (response.keep_alive, response.sent) == (True, 0)


def test_the_applications_framing_is_the_servers_affair() -> None:
    """ASGI: Transfer-Encoding may be given, and is ignored; Connection is heard."""
    response = respond()
    start(response, headers=[(b"Transfer-Encoding", b"chunked"), (b"connection", b"close")])
    assert body(response, b"a") == OK + b"Content-Length: 1\r\nConnection: close\r\n" + STAMP + b"a"
    assert not response.keep_alive


def test_date_and_server_of_the_applications_own() -> None:
    response = respond()
    start(response, headers=[(b"server", b"mine"), (b"date", b"today"), *length(0)])
    assert body(response) == OK + b"server: mine\r\ndate: today\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bodies_of_every_kind_of_bytes(data: object) -> None:
    response = respond()
    start(response)
    assert body(response, data).endswith(STAMP + b"abc")


# --- a wrong Content-Length


def test_what_is_beyond_the_content_length_is_cut_and_the_connection_ends() -> None:
    response = respond()
    start(response, headers=length(4))
    assert body(response, b"0123456789") == OK + b"content-length: 4\r\nConnection: close\r\n" + STAMP + b"0123"
    assert not response.keep_alive
    assert "the Content-Length is 4" in str(response.error)


def test_the_same_in_a_later_piece() -> None:
    response = respond()
    start(response, headers=length(4))
    assert body(response, b"01", more=True).endswith(b"01")
    assert body(response, b"23456", more=True) == b"23"
    assert body(response, b"7") == b""
    assert (response.done, response.keep_alive, response.sent) == (True, False, 4)


@pytest.mark.parametrize("pieces", [[b"01"], [b"0", b"1"]])
def test_a_body_that_is_too_short_ends_the_connection(pieces: list[bytes]) -> None:
    response = respond()
    start(response, headers=length(4))
    for piece in pieces[:-1]:
        body(response, piece, more=True)
    body(response, pieces[-1])
    assert (response.done, response.keep_alive) == (True, False)
    assert "only 2 bytes" in str(response.error)


# --- order


def test_a_body_before_its_start() -> None:
    with pytest.raises(ResponseError, match=r"before http\.response\.start"):
        body(respond())


def test_a_start_whose_keys_are_missing() -> None:
    with pytest.raises(ResponseError, match="needs a `status`"):
        respond().take({"type": "http.response.start"}, STAMP)
    with pytest.raises(ResponseError, match="iterable"):
        respond().take({"type": "http.response.start", "status": 200, "headers": None}, STAMP)
    response = respond()
    response.take({"type": "http.response.start", "status": HTTPStatus.CREATED}, STAMP)
    assert body(response).startswith(b"HTTP/1.1 201 Created\r\n")


def test_a_second_start() -> None:
    response = respond()
    start(response)
    with pytest.raises(ResponseError, match="a second time"):
        start(response)


def test_anything_behind_the_last() -> None:
    response = respond()
    start(response)
    body(response, b"a")
    with pytest.raises(ResponseError, match="after the last one"):
        body(response, b"b")


@pytest.mark.parametrize("what", ["http.disconnect", "websocket.send", "", "http.response.push"])
def test_a_message_that_is_none(what: str) -> None:
    with pytest.raises(ResponseError, match="cannot be sent here"):
        respond().take({"type": what}, STAMP)


def test_trailers_that_were_not_announced() -> None:
    response = respond(fields="TE: trailers\r\n")
    start(response)
    body(response, b"a", more=True)
    with pytest.raises(ResponseError, match="needs `trailers`"):
        response.take({"type": "http.response.trailers", "headers": []}, STAMP)


# --- trailers and hints


def test_trailers_wait_for_the_end_of_the_body_and_nothing_of_it_follows() -> None:
    response = respond(fields="TE: trailers\r\n")
    start(response, trailers=True)
    body(response, b"a", more=True)
    with pytest.raises(ResponseError, match="follows the body"):
        response.take({"type": "http.response.trailers", "headers": []}, STAMP)
    body(response, b"b")
    with pytest.raises(ResponseError, match="after the last one"):
        body(response, b"c")


def test_nothing_follows_a_complete_response() -> None:
    response = respond(fields="TE: trailers\r\n")
    start(response, trailers=True)
    body(response, b"a")
    trailers = {"type": "http.response.trailers", "headers": [(b"x-a", b"1")]}
    assert response.take(trailers, STAMP) == b"0\r\nx-a: 1\r\n\r\n"
    for message in (trailers, {"type": "http.response.early_hint", "links": []}):
        with pytest.raises(ResponseError, match="was sent after the response was complete"):
            response.take(message, STAMP)


def test_trailers_may_be_announced_by_name() -> None:
    response = respond(fields="TE: trailers\r\n")
    start(response, headers=[(b"Trailer", b"X-Sum, x-time")], trailers=True)
    assert body(response, b"a").startswith(OK + b"Trailer: X-Sum, x-time\r\nTransfer-Encoding: chunked\r\n")
    for value in (b"", b"a b", b"a,", b"a\r\nb: c"):
        with pytest.raises(ResponseError, match="no list of names"):
            start(respond(), headers=[(b"trailer", value)])


@pytest.mark.parametrize("fields", ["TE: trailers\r\n", "TE: gzip, Trailers\r\n", ""])
def test_trailers_are_for_who_takes_them(fields: str) -> None:
    response = respond(fields=fields)
    start(response, trailers=True)
    assert body(response, b"a") == OK + b"Transfer-Encoding: chunked\r\n" + STAMP + b"1\r\na\r\n"
    assert not response.done
    more = {"type": "http.response.trailers", "headers": [(b"x-a", b"1")], "more_trailers": True}
    assert response.take(more, STAMP) == b""
    last = response.take({"type": "http.response.trailers", "headers": [(b"x-b", b"2")]}, STAMP)
    assert last == (b"0\r\nx-a: 1\r\nx-b: 2\r\n\r\n" if fields else b"0\r\n\r\n")
    assert (response.done, response.keep_alive) == (True, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"a b", b"1"), (b"a", b"1\r\nb: 2"), (b"a", b"\0"), (b"a", "text"),
        (b"Content-Length", b"3"), (b"transfer-encoding", b"chunked"), (b"Host", b"a"), (b"connection", b"close"),
    ],
)  # fmt: skip
def test_trailers_cannot_split_a_response(name: bytes, value: object) -> None:
    response = respond(fields="TE: trailers\r\n")
    start(response, trailers=True)
    body(response, b"a")
    with pytest.raises(ResponseError):
        response.take({"type": "http.response.trailers", "headers": [(name, value)]}, STAMP)


def test_hints_come_before_the_head_and_not_to_http_1_0() -> None:
    hint = {"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]}
    response = respond()
    assert response.take(hint, STAMP) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"
    assert not response.begun
    start(response)
    body(response, b"a", more=True)
    assert response.take(hint, STAMP) == b""
    assert respond(minor=0).take(hint, STAMP) == b""
    with pytest.raises(ResponseError):
        respond().take({**hint, "links": [b"</a>\r\nX: y"]}, STAMP)


@pytest.mark.parametrize("value", [b"a\tb", b"\ta\t", b"caf\xe9 \x80\xff"])
def test_a_value_may_have_tabs_and_obs_text_wherever_it_stands(value: bytes) -> None:
    """RFC 9110 5.5."""
    response = respond(fields="TE: trailers\r\n")
    hint = response.take({"type": "http.response.early_hint", "links": [value]}, STAMP)
    assert hint == b"HTTP/1.1 103 Early Hints\r\nLink: %b\r\n\r\n" % value
    start(response, headers=[(b"x", value)], trailers=True)
    assert b"\r\nx: %b\r\n" % value in body(response)
    trailers = {"type": "http.response.trailers", "headers": [(b"y", value)]}
    assert response.take(trailers, STAMP) == b"0\r\ny: %b\r\n\r\n" % value


@pytest.mark.parametrize("control", [*range(9), *range(10, 32), 127])
def test_no_other_control_character_gets_out(control: int) -> None:
    value = b"a%cb" % control
    response = respond(fields="TE: trailers\r\n")
    with pytest.raises(ResponseError, match="control character"):
        response.take({"type": "http.response.early_hint", "links": [value]}, STAMP)
    with pytest.raises(ResponseError, match="control character"):
        start(response, headers=[(b"x", value)])
    start(response, trailers=True)
    body(response)
    with pytest.raises(ResponseError, match="control characters"):
        response.take({"type": "http.response.trailers", "headers": [(b"y", value)]}, STAMP)


@pytest.mark.parametrize(
    ("minor", "fields", "connection"),
    [(1, "", b"Upgrade"), (1, "Connection: close\r\n", b"close, Upgrade"), (0, "", b"close, Upgrade"),
     (0, "Connection: keep-alive\r\n", b"keep-alive, Upgrade")],
)  # fmt: skip
def test_426_names_what_to_upgrade_to(minor: int, fields: str, connection: bytes) -> None:
    """RFC 9110 15.5.22; 7.8: Connection names Upgrade. What the application says of Connection is not sent."""
    response = respond(minor=minor, fields=fields)
    start(response, 426, [(b"Upgrade", b"foo/1"), (b"Connection", b"Upgrade"), (b"content-length", b"1")])
    head = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo/1\r\ncontent-length: 1\r\n"
    assert body(response, b"x") == head + b"Connection: %b\r\n" % connection + STAMP + b"x"
    assert response.keep_alive is (b"close" not in connection)


def test_an_applications_close_is_obeyed_with_426_too() -> None:
    response = respond()
    start(response, 426, [(b"connection", b"Upgrade, Close"), (b"upgrade", b"foo/1")])
    assert b"\r\nConnection: close, Upgrade\r\n" in body(response)
    assert not response.keep_alive


# --- what is refused before a byte leaves


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, [(b"x", b"a\r\nb: c")]),
        (200, [(b"x", b"a\nb")]),
        (200, [(b"x", b"a\0b")]),
        (200, [(b"x\r\n", b"a")]),
        (200, [(b"x y", b"a")]),
        (200, [(b"", b"a")]),
        (200, [("x", "a")]),
        (200, [b"x"]),
        (200, [(b"content-length", b"five")]),
        (200, [(b"content-length", b"5"), (b"content-length", b"5")]),
        (200, [(b"x", b"a\x7f")]),
        (200, [(b"x", b"\x1b")]),
        ("200 OK", []),
        (None, []),
        (99, []),
        (1000, []),
        (101, []),
    ],
)
def test_a_head_that_is_refused(status: object, headers: object) -> None:
    response = respond()
    with pytest.raises(ResponseError):
        start(response, status, headers)
    assert not response.begun
    assert response.fail(STAMP).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


@pytest.mark.parametrize("data", ["text", None, 5, [b"a"]])
def test_a_body_that_is_no_bytes(data: object) -> None:
    response = respond()
    start(response)
    with pytest.raises(ResponseError, match="not bytes"):
        body(response, data)


@pytest.mark.parametrize("name", [list, tuple])
def test_pairs_may_be_lists_and_their_values_bytearrays(name: type) -> None:
    response = respond()
    start(response, headers=iter([name([b"x", b"1"]), name([bytearray(b"y"), bytearray(b"2")])]))
    assert b"\r\nx: 1\r\ny: 2\r\n" in body(response)


# --- failures


def test_a_failure_before_the_head_is_an_error_page() -> None:
    response = respond(fields="Accept: text/html\r\n")
    start(response, 200)
    page = response.fail(STAMP)
    assert page.startswith(b"HTTP/1.1 500 ")
    assert b"Connection: close\r\n" in page
    assert page.endswith(b"</html>\n")
    assert (response.status, response.done, response.aborted, response.keep_alive) == (500, True, False, False)
    assert response.sent == len(page.partition(b"\r\n\r\n")[2])
    assert respond("HEAD").fail(STAMP).endswith(STAMP)


@pytest.mark.parametrize(("minor", "framed"), [(1, True), (0, False)])
def test_a_failure_behind_the_head_has_no_fake_end(minor: int, framed: bool) -> None:
    response = respond(minor=minor)
    start(response)
    body(response, b"a part", more=True)
    assert response.fail(STAMP) == b""
    assert (response.aborted, response.framed, response.keep_alive) == (True, framed, False)


def test_a_size_that_is_known_before() -> None:
    response = respond()
    start(response)
    response.expect(6)
    assert body(response, b"abc", more=True) == OK + b"Content-Length: 6\r\n" + STAMP + b"abc"
    assert body(response, b"def") == b"def"


@pytest.mark.parametrize(("kind", "is_one"), [(b"text/event-stream; charset=utf-8", True), (b"text/plain", False)])
def test_what_is_a_stream_of_events(kind: bytes, is_one: bool) -> None:
    response = respond()
    assert not response.streams_events
    start(response, headers=[(b"Content-Type", kind)])
    assert response.streams_events is is_one
