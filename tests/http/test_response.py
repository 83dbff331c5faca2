"""Heads: what is refused before a byte leaves, and how a body's end is marked."""

from __future__ import annotations

import enum
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http import response
from prefork.http.response import (
    ASGI_HEADS,
    CHUNKED,
    CLOSE,
    DATE,
    LENGTH,
    NO_BODY,
    OF_STAMP,
    SERVER,
    SIZED,
    TO_THE_END,
    WSGI_HEADS,
    ResponseError,
    add_fields,
    check_field,
    check_head,
    error_response,
    frame,
    is_servers_own,
    stamp,
    without,
)

STAMP = b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\nServer: prefork\r\n\r\n"
CONTROLS = [chr(code) for code in (*range(0x20), 0x7F) if code != 0x09]


def test_a_head_is_written_as_it_was_given() -> None:
    headers = [("Content-Type", "text/plain"), ("content-length", "13"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    code, raw, length, given = check_head("200 OK", headers)
    assert (code, length, given) == (200, 13, LENGTH)
    lines = [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/plain",
        b"content-length: 13",
        b"Set-Cookie: a=1",
        b"Set-Cookie: b=2",
    ]
    assert raw == b"\r\n".join([*lines, b""])


def test_a_head_without_fields() -> None:
    assert check_head("404 Not Found", []) == (404, b"HTTP/1.1 404 Not Found\r\n", None, 0)


def test_bytes_that_are_not_ascii_pass_as_latin1() -> None:
    assert (
        check_head("200 Tr\xe8s bien", [("X", "caf\xe9 \xa0\x80")])[1]
        == b"HTTP/1.1 200 Tr\xe8s bien\r\nX: caf\xe9 \xa0\x80\r\n"
    )


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_no_control_character_gets_into_a_head(control: str) -> None:
    for text in (f"a{control}b", f"{control}", f"a{control}", f"a\r{control}\nb"):
        with pytest.raises(ResponseError, match="the status "):
            check_head(f"200 {text}", [])
        with pytest.raises(ResponseError, match="the header name"):
            check_head("200 OK", [(text, "value")])
        with pytest.raises(ResponseError, match=r"the value .* of the header 'X' has a control character"):
            check_head("200 OK", [("A", "b"), ("X", text), ("Y", "z")])


@given(
    st.text(st.characters(max_codepoint=0x100), max_size=20), st.text(st.characters(max_codepoint=0x100), max_size=20)
)
def test_whatever_the_name_and_value_a_head_has_one_line_for_each(name: str, value: str) -> None:
    try:
        _, raw, _, _ = check_head("200 OK", [("A", "b"), (name, value)])
    except ResponseError:
        return
    lines = raw.split(b"\r\n")
    assert lines[2].decode("latin1") == f"{name}: {value}"
    assert len(lines) == 4
    assert not set(raw.replace(b"\r\n", b"")) & ({*range(0x20), 0x7F} - {0x09})


@pytest.mark.parametrize(
    "status",
    ["200OK", "200\n", " 200 OK", "2000 OK", "99 Low", "1000 High", "600 Odd", "000 Nothing", "20\xb2 OK",
     "\uff12\uff10\uff10 OK", "OK", "", "-20 OK", "200 OK\n", "200 \u2713", "200\tOK"],
)  # fmt: skip
def test_a_status_that_is_none(status: str) -> None:
    with pytest.raises(ResponseError, match="is not of the form '200 OK'"):
        check_head(status, [])


@pytest.mark.parametrize("status", ["100 Continue", "101 Switching Protocols", "103 Early Hints", "199 "])
def test_an_interim_status_is_no_answer(status: str) -> None:
    with pytest.raises(ResponseError, match="interim"):
        check_head(status, [])


def test_a_status_without_a_phrase_gets_its_own() -> None:
    assert check_head("200", [])[:2] == (200, b"HTTP/1.1 200 OK\r\n")
    assert check_head("499", [])[:2] == (499, b"HTTP/1.1 499 Bad Request\r\n")


def test_an_empty_phrase_is_one() -> None:
    assert check_head("299 ", [])[:2] == (299, b"HTTP/1.1 299 \r\n")


@pytest.mark.parametrize(
    "name", ["", "a b", "a:", "a: b", "Content-Length: 5, X", "caf\xe9", "a(b)", "\u2713", "X-A ", "a/b", "{}"]
)
def test_a_name_that_is_no_token(name: str) -> None:
    with pytest.raises(ResponseError, match="is not a token"):
        check_head("200 OK", [(name, "value")])


@pytest.mark.parametrize("value", ["a\tb", "\ta\t", "\t"])
def test_a_tab_stands_in_values_and_nowhere_else(value: str) -> None:
    assert check_head("200 OK", [("X", value)])[1] == f"HTTP/1.1 200 OK\r\nX: {value}\r\n".encode()
    with pytest.raises(ResponseError, match="is not a token"):
        check_head("200 OK", [(value, "x")])
    with pytest.raises(ResponseError, match="is not of the form"):
        check_head(f"200 {value}", [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("Transfer-Encoding", "chunked"), ("TE", "trailers"), ("Trailer", "X-Sum"), ("Trailers", "x"),
     ("Keep-Alive", "timeout=5, max=100"), ("Proxy-Authorization", "Basic eDp5"), ("Proxy-Connection", "keep-alive"),
     ("Connection", "Upgrade, Keep-Alive"), ("Upgrade", "h2,h2c")],
)  # fmt: skip
def test_what_is_another_connections_is_left_out(name: str, value: str) -> None:
    """Applications that pass on the answer of another server pass on these."""
    for spelling in (name, name.lower(), name.upper()):
        for status in ("200 OK", "404 Not Found" if name == "Upgrade" else "426 Upgrade Required"):
            _, head, _, given = check_head(status, [("A", "1"), (spelling, value), ("B", "2")])
            assert head == f"HTTP/1.1 {status}\r\nA: 1\r\nB: 2\r\n".encode()
            assert given == 0
    with pytest.raises(ResponseError, match="is an int, not a str"):
        check_head("200 OK", [(name, 5)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("status", "name", "value"),
    [("407 Proxy Authentication Required", "Proxy-Authenticate", "Basic"), ("426 Upgrade Required", "upgrade", "x/1")],
)  # fmt: skip
def test_what_a_status_must_have_is_sent(status: str, name: str, value: str) -> None:
    """RFC 9110 15.5.8, 15.5.22."""
    assert check_head(status, [(name, value)])[1] == f"HTTP/1.1 {status}\r\n{name}: {value}\r\n".encode()
    with pytest.raises(ResponseError, match="has a control character"):
        check_head(status, [(name, "a\r\nb: c")])


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (200, [], "the status 200 is an int, not a str"),
        (b"200 OK", [], "the status b'200 OK' is a bytes, not a str"),
        (None, [], "the status None is a NoneType"),
        (["200 OK"], [], "the status ['200 OK'] is a list"),
        ("200 OK", None, "the headers are a NoneType, not a list"),
        ("200 OK", {"A": "b"}, "the headers are a dict, not a list"),
        ("200 OK", (("A", "b"),), "the headers are a tuple, not a list"),
        ("200 OK", iter([("A", "b")]), "the headers are a list_iterator, not a list"),
        ("200 OK", ["A: b"], "the header 'A: b' is not a (name, value) tuple"),
        ("200 OK", [("A", "b", "c")], "the header ('A', 'b', 'c') is not a (name, value) tuple"),
        ("200 OK", [None], "the header None is not a (name, value) tuple"),
        ("200 OK", [("A", "b"), (b"C", "d")], "the header name b'C' is a bytes, not a str"),
        ("200 OK", [(1, "d")], "the header name 1 is an int, not a str"),
        ("200 OK", [(["A"], "d")], "the header name ['A'] is a list, not a str"),
        ("200 OK", [("C", b"d")], "the value b'd' of the header 'C' is a bytes, not a str"),
        ("200 OK", [("C", 5)], "the value 5 of the header 'C' is an int, not a str"),
        ("200 OK", [("C", None)], "the value None of the header 'C' is a NoneType, not a str"),
        ("200 OK", [("Content-Length", 5)], "the value 5 of the header 'Content-Length' is an int, not a str"),
        ("200 OK", [("C", "\u20ac")], "the value '€' of the header 'C' has a control character, or one that is not"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named(status: object, headers: object, said: str) -> None:
    with pytest.raises(ResponseError) as caught:
        check_head(status, headers)  # type: ignore[arg-type]
    assert said in str(caught.value)


class Kind(str, enum.Enum):  # noqa: UP042 - just not StrEnum, which prints its value
    """In an f-string, a member of such a class is its name or its value, as the version of Python likes."""

    NAME = "X-Kind"
    VALUE = "text"
    STATUS = "200 OK"


def test_subclasses_of_str_are_their_text() -> None:
    for _ in range(2):
        assert check_head(Kind.STATUS, [(Kind.NAME, Kind.VALUE)])[1] == b"HTTP/1.1 200 OK\r\nX-Kind: text\r\n"


@pytest.mark.parametrize(
    "value", ["", " 5", "5 ", "+5", "-1", "0x5", "1_0", "5.0", "\xb2", "1" * 20, "1" * 5000, "5, 5", "five"]
)
def test_a_content_length_that_is_no_number(value: str) -> None:
    with pytest.raises(ResponseError, match=r"the Content-Length .* is not a number of bytes"):
        check_head("200 OK", [("Content-Length", value)])


@pytest.mark.parametrize("second", ["5", "6"])
def test_two_content_lengths(second: str) -> None:
    with pytest.raises(ResponseError, match="more than one Content-Length"):
        check_head("200 OK", [("Content-Length", "5"), ("content-length", second)])


@pytest.mark.parametrize(
    ("status", "length", "kept"),
    [("204 No Content", 5, False), ("205 Reset Content", 5, False), ("304 Not Modified", 5, True)],
)
def test_where_a_content_length_stands(status: str, length: int, kept: bool) -> None:
    _, raw, found, given = check_head(status, [("A", "b"), ("Content-Length", str(length)), ("C", "d")])
    assert found == length
    assert (b"Content-Length: 5\r\n" in raw, bool(given & LENGTH)) == (kept, kept)
    assert raw.endswith(b"\r\nC: d\r\n")


def test_what_is_remembered_is_bounded() -> None:
    for number in range(3000):
        raw = b"HTTP/1.1 299 %d\r\nX-%d: a\r\n" % (number, number)
        assert check_head(f"299 {number}", [(f"X-{number}", "a")])[1] == raw
    assert len(response._names) <= 1024
    assert len(response._statuses) <= 1024


def test_heads_are_remembered_within_a_bound() -> None:
    for number in range(600):
        key = (f"299 {number}", ("X", "a"))
        assert WSGI_HEADS[key] == WSGI_HEADS[key] == check_head(f"299 {number}", [("X", "a")])
        assert len(WSGI_HEADS) <= 256
    with pytest.raises(ResponseError, match="is not a token"):
        WSGI_HEADS["200 OK", ("a b", "c")]
    assert ("200 OK", ("a b", "c")) not in WSGI_HEADS


# --- framing


@pytest.mark.parametrize(
    ("code", "given", "length", "head", "minor", "mode", "field"),
    [
        (200, LENGTH, 5, False, 1, SIZED, b""),
        (200, LENGTH, 5, False, 0, SIZED, b""),
        (200, LENGTH, 0, False, 1, SIZED, b""),
        (200, 0, 5, False, 1, SIZED, b"Content-Length: 5\r\n"),
        (200, 0, 0, False, 1, SIZED, b"Content-Length: 0\r\n"),
        (200, 0, None, False, 1, CHUNKED, b"Transfer-Encoding: chunked\r\n"),
        (200, 0, None, False, 0, TO_THE_END, b""),
        (200, LENGTH, 5, True, 1, NO_BODY, b""),
        (200, 0, 5, True, 0, NO_BODY, b"Content-Length: 5\r\n"),
        (200, 0, None, True, 1, NO_BODY, b""),
        (204, 0, None, False, 1, NO_BODY, b""),
        (204, 0, 5, False, 1, NO_BODY, b""),
        (205, 0, 5, False, 1, NO_BODY, b"Content-Length: 0\r\n"),
        (304, LENGTH, 5, False, 1, NO_BODY, b""),
        (304, 0, 5, False, 0, NO_BODY, b""),
        (500, 0, None, False, 1, CHUNKED, b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_how_a_body_ends(
    code: int, given: int, length: int | None, head: bool, minor: int, mode: int, field: bytes
) -> None:
    assert frame(code, given, length, head=head, minor=minor) == (mode, field)


# --- the end of every head


def test_the_stamp() -> None:
    assert stamp(1_700_000_000.9) == STAMP
    assert stamp(1_700_000_000, b"") == STAMP.replace(b"Server: prefork\r\n", b"")


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (DATE, b"Server: prefork\r\n\r\n"),
        (SERVER, b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n\r\n"),
        (DATE | SERVER, b"\r\n"),
        (LENGTH, STAMP),
    ],
)
def test_the_stamp_without_what_the_application_gave(given: int, left: bytes) -> None:
    assert without(STAMP, given) == left


@pytest.fixture
def added() -> Iterator[bytes]:
    """The stamp with fields of --header."""
    yield stamp(1_700_000_000, add_fields(["X-Frame-Options: DENY", "Link: <a>", "link: <b>", "Content-Type: a/b"]))
    add_fields([])


DATED = b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"


def test_fields_that_are_added_stand_in_the_stamp(added: bytes) -> None:
    fields = b"X-Frame-Options: DENY\r\nLink: <a>\r\nlink: <b>\r\nContent-Type: a/b\r\n\r\n"
    assert added == DATED + b"Server: prefork\r\n" + fields


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("x-frame-options", b"Link: <a>\r\nlink: <b>\r\nContent-Type: a/b\r\n"),
        ("LINK", b"X-Frame-Options: DENY\r\nContent-Type: a/b\r\n"),
        ("X-Other", b"X-Frame-Options: DENY\r\nLink: <a>\r\nlink: <b>\r\nContent-Type: a/b\r\n"),
    ],
)
def test_an_applications_field_replaces_those_that_are_added(added: bytes, name: str, left: bytes) -> None:
    for check, headers in (
        (WSGI_HEADS.__getitem__, [(name, "1"), (name, "2"), ("Content-Length", "1")]),
        (ASGI_HEADS.__getitem__, [(name.encode(), b"1"), (name.encode(), b"2"), (b"Content-Length", b"1")]),
    ):
        for _ in range(2):
            _, head, _, given = check(("200 OK" if check == WSGI_HEADS.__getitem__ else 200, *headers))
            assert head.decode().count(f"{name}: ") == 2
            assert without(added, given) == DATED + b"Server: prefork\r\n" + left + b"\r\n"
            assert bool(given & OF_STAMP) is (name != "X-Other")


def test_the_server_need_not_say_what_it_is() -> None:
    assert add_fields([], server=False) == b""
    assert add_fields(["SERVER: else"]) == add_fields(["SERVER: else"], server=False) == b"SERVER: else\r\n"
    assert without(stamp(1_700_000_000, add_fields(["SERVER: else"])), SERVER) == DATED + b"\r\n"
    assert add_fields([]) == b"Server: prefork\r\n"


def test_what_was_added_is_forgotten_when_other_fields_are(added: bytes) -> None:
    assert check_head("200 OK", [("Link", "x")])[3]
    assert add_fields(["X-A: \xe9"]) == b"Server: prefork\r\nX-A: \xe9\r\n"
    assert check_head("200 OK", [("Link", "x")])[3] == 0
    assert check_head("200 OK", [("x-a", "x")])[3] & OF_STAMP


def test_a_page_of_the_servers_has_its_own_type(added: bytes) -> None:
    head = error_response(400, added).partition(b"\r\n\r\n")[0]
    assert head.count(b"Content-Type: ") == 1
    assert b"\r\nX-Frame-Options: DENY\r\n" in head


@pytest.mark.parametrize("name", ["Connection", "transfer-encoding", "TE", "Content-Length", "Upgrade", "Keep-Alive"])
def test_what_only_the_server_says_cannot_be_added(name: str) -> None:
    assert is_servers_own(name)
    with pytest.raises(ValueError, match="so the server sets it"):
        check_field(f"{name}: x")


# --- error pages


@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize("status", [400, 408, 413, 414, 431, 500, 501, 503, 505])
def test_an_error_response_is_whole_and_closes(status: int, html: bool) -> None:
    raw = error_response(status, STAMP, html=html)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert head.endswith(STAMP[:-4])
    assert (b"text/html" in head) == (b"<h1>" in body) == html
    assert error_response(status, STAMP, html=html, head=True) == head + b"\r\n\r\n"


@pytest.mark.parametrize(("name", "value", "close"), [
    ("Connection", "close", True), ("connection", "Close", True), ("Connection", "keep-alive", False),
    ("Keep-Alive", "timeout=5", False), ("Connection", "x-y, CLOSE", True), ("Connection", "closed", False),
    ("Keep-Alive", "close", False),
])  # fmt: skip
def test_what_an_application_says_of_the_connection_is_not_sent_but_heard(name: str, value: str, close: bool) -> None:
    _, head, _, given = check_head("200 OK", [("A", "1"), (name, value), ("B", "2")])
    assert head == b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\n"
    assert bool(given & CLOSE) is close
