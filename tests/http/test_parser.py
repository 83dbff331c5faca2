"""The parser beyond the corpus: when it judges, what it says of itself, and that nothing in it can grow."""

from __future__ import annotations

import pytest

from prefork.http.fields import USUAL, FieldTable
from prefork.http.head import Request
from prefork.http.limits import Limits, Refusal
from prefork.http.parser import END, RequestParser
from tests.http.outcome import cut, outcome

GET = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n"
WEBSOCKET = b"GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def parser(**limits: int) -> RequestParser:
    return RequestParser(Limits(**limits))


def status(events: list[object]) -> int:
    """The status of the refusal that is the last event; 0 if it is none."""
    return events[-1].status if events and isinstance(events[-1], Refusal) else 0


# --- when it judges


@pytest.mark.parametrize(
    ("start", "fault"),
    [
        (b"", b"GET / HTTP/3.0\r\n"),
        (b"", b"nonsense\r\n"),
        (b"", b"GET / HTTP/1.1\n"),
        (b"GET / HTTP/1.1\r\n", b"Host : example.com\r\n"),
        (b"GET / HTTP/1.1\r\n", b"Host: a b\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b" folded\r\n"),
        (b"POST / HTTP/1.1\r\n", b"Content-Length: x\r\n"),
        (b"POST / HTTP/1.1\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
        (CHUNKED, b"5 \r\n"),
        (CHUNKED + b"5\r\nhello", b"X"),
        (CHUNKED + b"0\r\n", b"X : y\r\n"),
    ],
)
def test_a_line_is_judged_at_its_end_and_not_before(start: bytes, fault: bytes) -> None:
    """Not at the end of the head, and not when the client has been waited for long enough."""
    one = parser()
    assert not status(one.feed(start + fault[:-1]))
    assert status(one.feed(fault[-1:])) >= 400


@pytest.mark.parametrize(
    ("limit", "start", "endless", "expected"),
    [
        ({"request_line_bytes": 100}, b"", b"GET /" + b"a" * 95, 414),
        ({"header_bytes": 100}, b"GET / HTTP/1.1\r\n", b"X: " + b"a" * 97, 431),
        ({"header_bytes": 100}, b"GET / HTTP/1.1\r\nHost: example.com\r\n", b"X: " + b"a" * 78, 431),
        ({"chunk_line_bytes": 100}, CHUNKED, b"5;" + b"a" * 98, 400),
        ({"header_bytes": 100}, CHUNKED + b"0\r\n", b"X: " + b"a" * 97, 431),
    ],
)
def test_a_line_without_end_is_refused_at_its_limit(
    limit: dict[str, int], start: bytes, endless: bytes, expected: int
) -> None:
    one = parser(**limit)
    assert not status(one.feed(start + endless))
    assert status(one.feed(b"a")) == expected


def test_limits_hold_to_the_byte() -> None:
    line = b"GET /12345 HTTP/1.1\r\n"
    fields = b"Host: example.com\r\n\r\n"
    assert outcome([line + fields], limits=Limits(request_line_bytes=len(line), header_bytes=len(fields))).status == 0
    assert outcome([line + fields], limits=Limits(request_line_bytes=len(line) - 1)).status == 414
    assert outcome([line + fields], limits=Limits(header_bytes=len(fields) - 1)).status == 431
    assert outcome([GET], limits=Limits(fields=1)).status == 0
    assert outcome([GET], limits=Limits(fields=0)).status == 431
    assert outcome([POST + b"hello"], limits=Limits(body_bytes=5)).status == 0
    assert outcome([POST + b"hello"], limits=Limits(body_bytes=4)).status == 413
    chunks = CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert outcome([chunks], limits=Limits(body_bytes=5)).status == 0
    assert outcome([chunks], limits=Limits(body_bytes=4)).status == 413
    extended = CHUNKED + b"1;a\r\nx\r\n1;b\r\ny\r\n0\r\n\r\n"
    assert outcome([extended], limits=Limits(chunk_line_bytes=5, extension_bytes=4)).status == 0
    assert outcome([extended], limits=Limits(chunk_line_bytes=4)).status == 400
    assert outcome([extended], limits=Limits(extension_bytes=3)).status == 400


def test_a_body_that_is_too_large_is_refused_before_it_comes() -> None:
    assert status(parser(body_bytes=4).feed(POST)) == 413
    events = parser(body_bytes=4).feed(CHUNKED + b"5\r\n")
    assert isinstance(events[0], Request)
    assert status(events) == 413


# --- what comes out


def test_the_usual_request_is_one_event() -> None:
    (request,) = parser().feed(GET)
    assert isinstance(request, Request)
    assert (request.method, request.path, request.authority) == ("GET", b"/", b"example.com")
    assert [(name.lower, name.cgi, value) for name, value in request.fields] == [
        (b"host", "HTTP_HOST", b"example.com"),
    ]


def test_a_body_comes_as_it_is_received() -> None:
    one = parser()
    (request, first) = one.feed(POST + b"he")
    assert isinstance(request, Request)
    assert (request.complete, first) == (False, b"he")
    assert one.feed(b"ll") == [b"ll"]
    assert one.feed(b"o") == [b"o", END]


def test_the_chunks_of_one_packet_are_one_piece_of_the_body() -> None:
    one = parser()
    events = one.feed(CHUNKED + b"1\r\na\r\n1\r\nb\r\n3\r\ncd")
    assert events[1:] == [b"abcd"]
    assert one.feed(b"e\r\n0\r\n\r\n") == [b"e", END]


def test_pipelined_requests_come_in_order() -> None:
    events = parser().feed(GET * 3 + POST + b"hello" + GET)
    assert [type(event) for event in events] == [Request, Request, Request, Request, bytes, type(END), Request]


def test_nothing_is_understood_after_the_last_request() -> None:
    one = parser()
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert len(one.feed(last + GET)) == 1
    assert one.feed(GET) == []
    assert one.backlog_bytes == 0
    assert one.idle
    assert one.eof() == []


def test_after_a_refusal_the_parser_is_deaf() -> None:
    one = parser()
    assert status(one.feed(b"nonsense\r\n" + GET)) == 400
    assert one.idle
    assert one.feed(GET) == []
    assert one.eof() == []
    assert one.backlog_bytes == 0


def test_a_reason_shows_what_came_without_harm_to_the_log() -> None:
    (refusal,) = parser().feed(b"GET /\x1b[31m\xff" + b"a" * 500 + b" HTTP/1.1\r\n")
    assert isinstance(refusal, Refusal)
    assert r"/\x1b[31m\xffaaa" in refusal.reason
    assert len(refusal.reason) < 200


# --- what it says of itself


def test_idle_means_that_nothing_of_a_next_request_has_arrived() -> None:
    one = parser()
    assert one.idle
    one.feed(GET)
    assert one.idle
    one.feed(b"\r\n")  # of the body before, rather
    assert one.idle
    one.feed(b"G")
    assert not one.idle
    assert one.backlog_bytes == 1
    one.feed(b"ET / HTTP/1.1\r\n")
    assert not one.idle
    assert one.backlog_bytes == 0
    one.feed(b"Host: example.com\r\n\r\n")
    assert one.idle
    one.feed(POST)
    assert not one.idle
    one.feed(b"hello")
    assert one.idle


@pytest.mark.parametrize("data", [b"", GET, GET + b"\r\n", POST + b"hello", CHUNKED + b"0\r\n\r\n"])
def test_a_client_may_end_between_requests(data: bytes) -> None:
    one = parser()
    one.feed(data)
    assert one.eof() == []


@pytest.mark.parametrize("data", [b"\r", b"G", GET[:-1], GET[:-2], POST, POST + b"hell", CHUNKED, CHUNKED + b"0\r\n\r"])
def test_a_client_may_not_end_within_one(data: bytes) -> None:
    one = parser()
    one.feed(data)
    assert status(one.eof()) == 400
    assert one.eof() == []
    assert one.feed(GET) == []


# --- another protocol


def test_what_follows_an_upgrade_is_the_other_protocols() -> None:
    one = RequestParser(Limits(), upgrades=True)
    (request,) = one.feed(WEBSOCKET + b"\x81\x85")
    assert isinstance(request, Request)
    assert request.upgrade == b"websocket"
    assert one.feed(b"\x00\n\r\n") == []
    assert one.backlog_bytes == 6
    assert one.detach() == b"\x81\x85\x00\n\r\n"
    assert one.feed(GET) == []
    assert one.eof() == []


def test_an_upgrade_that_nobody_is_ready_for_is_a_request_like_others() -> None:
    events = parser().feed(WEBSOCKET + GET)
    assert [type(event) for event in events] == [Request, Request]


def test_a_body_is_read_before_anything_else_is_spoken() -> None:
    with_body = WEBSOCKET.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n")
    one = RequestParser(Limits(), upgrades=True)
    events = one.feed(with_body + b"hello" + GET)
    assert [type(event) for event in events] == [Request, bytes, type(END), Request]


# --- what a client cannot do


def test_names_and_lines_that_clients_make_up_do_not_pile_up() -> None:
    table = FieldTable()
    one = RequestParser(Limits(), table)
    usual = len(USUAL)
    for number in range(3000):
        one.feed(b"GET / HTTP/1.1\r\nHost: h%d\r\nX-Name-%d: 1\r\nUser-Agent: n%d\r\n\r\n" % ((number,) * 3))
    assert len(table) <= 1024
    assert len(table._names) <= 1024
    assert len(USUAL) == usual
    (request,) = one.feed(b"GET / HTTP/1.1\r\nHost: example.com\r\nX-Never-Seen: 1\r\n\r\n")
    assert isinstance(request, Request)
    assert request.fields[1][0].cgi == "HTTP_X_NEVER_SEEN"


def test_secrets_are_not_remembered() -> None:
    table = FieldTable()
    secrets = [
        b"Cookie: a=b",
        b"Authorization: Basic YTpi",
        b"Proxy-Authorization: c",
        b"X-Api-Key: d",
        b"Referer: /?e",
    ]
    RequestParser(Limits(), table).feed(b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *secrets, b"", b""]))
    assert list(table) == [b"Host: a"]


def test_long_lines_are_not_remembered() -> None:
    table = FieldTable()
    RequestParser(Limits(), table).feed(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\n\r\n" % (b"x" * 1000))
    assert list(table) == [b"Host: a"]


@pytest.mark.parametrize(
    ("field", "cgi"),
    [
        (b"Content-Type: a", "CONTENT_TYPE"),
        (b"Content-Length: 0", "CONTENT_LENGTH"),
        (b"Proxy: http://evil.example", ""),
        (b"pROXY: http://evil.example", ""),
        (b"Script-Name: /x", "HTTP_SCRIPT_NAME"),
        (b"X-A.b: 1", "HTTP_X_A.B"),
    ],
)
def test_what_an_environment_calls_a_field(field: bytes, cgi: str) -> None:
    (request,) = parser().feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n")
    assert isinstance(request, Request)
    assert request.fields[1][0].cgi == cgi


@pytest.mark.parametrize("name", [b"Script_Name", b"Path_Info", b"Content_Length", b"X_Forwarded_For", b"_"])
def test_a_name_with_an_underscore_is_nobodys(name: bytes) -> None:
    (request,) = parser().feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": 1\r\n\r\n")
    assert isinstance(request, Request)
    (_, (field, value)) = request.fields
    assert (field.lower, field.role, field.cgi, field.ambiguous, value) == (name.lower(), 0, "", "", b"1")
    assert (request.complete, request.plain) == (True, True)


def test_the_first_name_that_an_environment_will_not_have_is_told() -> None:
    told: list[bytes] = []
    one = RequestParser(Limits(), FieldTable("drop", told.append))
    for name in (b"x-y", b"Proxy", b"api_key", b"api_key", b"x_y"):
        one.feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": 1\r\n\r\n")
    assert told == [b"api_key"]


@pytest.mark.parametrize("size", [1, 1000])
def test_names_with_an_underscore_can_be_refused(size: int) -> None:
    one = RequestParser(Limits(), FieldTable("refuse"))
    for name in (b"x-y", b"X_Y", b"X_Y"):
        raw = b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": 1\r\n\r\n"
        (event,) = (event for piece in cut(raw, size) for event in one.feed(piece))
        if name == b"x-y":
            assert isinstance(event, Request)
            continue
        assert isinstance(event, Refusal)
        assert (event.status, event.reason) == (400, "field name with an underscore: 'X_Y'")
        one = RequestParser(Limits(), FieldTable("refuse"))


HOST = b" / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b" /a b HTTP/1.1\r\n", 400),
        (b" / HTTP/2.0\r\n", 505),
        (b" / HTTP/1.1\r\n\r\n", 400),
        (b" /" + b"a" * 9000, 414),
        (b" /" + b"a" * 9000 + b" HTTP/1.1\r\n", 414),
        (HOST + b"Expect: x\r\n\r\n", 417),
        (HOST + b"X: " + b"a" * 70_000, 431),
        (HOST + b"X: a\r\n" * 101, 431),
        (HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (HOST + b"Content-Length: 99999999999\r\n\r\n", 413),
        (HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nffffffff\r\n", 413),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_what_is_refused_of_a_head_request_is_known_to_be_one(rest: bytes, status: int, size: int) -> None:
    """RFC 9110 9.3.2: no content answers it. It is known as soon as the method was read, and forgotten with it."""
    for method, before in (
        (b"HEAD", b""),
        (b"GET", b""),
        (b"HEAD", b"GET" + HOST + b"\r\n"),
        (b"GET", b"HEAD" + HOST + b"\r\n"),
    ):
        one = parser()
        events = [event for piece in cut(before + method + rest, size) for event in one.feed(piece)]
        refusal = events[-1]
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.head) == (status, method == b"HEAD"), refusal


def test_what_ends_too_early_or_comes_too_late_is_known_as_well() -> None:
    for method in (b"HEAD", b"GET", b"HEADS"):
        for rest in (b" ", HOST, HOST + b"Content-Length: 5\r\n\r\nabc"):
            one = parser()
            one.feed(method + rest)
            assert one.refusal(408, "late").head is (method == b"HEAD")
            (refusal,) = one.eof()
            assert isinstance(refusal, Refusal)
            assert refusal.head is (method == b"HEAD")
