"""What an http load may ask, how it is written on the wire, and which responses are good."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.generator.http import Expectation
from loadtest.measure.server import check_files
from loadtest.plan import file as planfile
from loadtest.plan import request, values
from loadtest.plan.plan import Load, Plan, PlanError, Server
from loadtest.plan.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARSERS = [request.method, request.path, request.header, request.status]


def test_a_get_is_as_short_as_it_can_be() -> None:
    assert Request().encode("h:80") == b"GET / HTTP/1.1\r\nHost: h:80\r\nAccept-Encoding: identity\r\n\r\n"


def test_all_that_can_be_asked() -> None:
    asked = Request.made(
        method="POST",
        path="/a?b=%20c",
        headers=("X-One: 1", "host: other", "X-One: 2", "Empty:"),
        body=b"hello",
        payload=9,
        keep_alive=False,
    )
    head, _, body = asked.encode("h").partition(b"\r\n\r\n")
    assert body == b"hello"
    assert head.split(b"\r\n") == [
        b"POST /a?b=%20c HTTP/1.1",
        b"Accept-Encoding: identity",
        b"X-One: 1",
        b"host: other",  # instead of ours
        b"X-One: 2",
        b"Empty: ",
        b"Content-Length: 5",
        b"Connection: close",
    ]


@pytest.mark.parametrize(
    ("method", "payload", "length"), [("POST", 9, 9), ("PUT", 1, 1), ("PATCH", 0, 0), ("GET", 9, None)]
)
def test_the_payload_is_the_body_where_a_method_wants_one(method: str, payload: int, length: int | None) -> None:
    head, _, body = Request.made(method=method, payload=payload, body=b"").encode("h").partition(b"\r\n\r\n")
    assert len(body) == (length or 0)
    assert (f"Content-Length: {length}".encode() in head) == (length is not None)


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (request.method, "get", "write GET, HEAD, POST"),
        (request.method, "", "not a method"),
        (request.method, "CONNECT", "not a method"),
        (request.path, "index.html", "begins with one /"),
        (request.path, "//host/", "begins with one /"),
        (request.path, "/a b", "no # or space (write %20)"),
        (request.path, "/#part", "no # or space"),
        (request.path, "/\N{LATIN SMALL LETTER E WITH ACUTE}", "not a path"),
        (request.header, "no colon", "write 'Name: value'"),
        (request.header, ": x", "write 'Name: value'"),
        (request.header, "A B: x", "write 'Name: value'"),
        (request.header, "A: \N{SNOWMAN}", "in one line"),
        (request.header, "content-length: 3", "it is made from the body"),
        (request.header, "Transfer-Encoding: chunked", "in one piece"),
        (request.header, "Connection: close", "a connection per request instead"),
        (request.status, "600", "write 200, 2xx, or several"),
        (request.status, "200,", "is no status"),
        (request.status, "2x", "is no status"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(parse: Callable[[str], str], text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)
    assert why in str(caught.value)


@pytest.mark.parametrize("parse", PARSERS)
@given(before=st.text(max_size=8), end=st.sampled_from("\r\n\0\x0b\x85\u2028"), after=st.text(max_size=8))
def test_nothing_that_ends_a_line_gets_into_a_head(
    parse: Callable[[str], str], before: str, end: str, after: str
) -> None:
    for text in (f"/{before}{end}{after}", f"A: {before}{end}{after}", f"GET{end}", f"200{end}{after}"):
        try:
            taken = parse(text)
        except ValueError:
            continue
        # U+0085 is a byte like others on the wire, where only CR, LF and NUL have a meaning.
        assert not set(taken) & set("\r\n\0\u2028"), repr(taken)


@given(st.lists(st.from_regex(r"\A[A-Za-z-]{1,9}: [ -~\t]{0,20}\Z"), max_size=4), st.binary(max_size=40), st.booleans())
def test_the_head_of_a_request_has_no_line_that_was_not_asked_for(
    lines: list[str], body: bytes, keep_alive: bool
) -> None:
    try:
        headers = tuple(request.header(line) for line in lines)
    except ValueError:
        return  # a name that is ours
    asked = Request.made(method="POST", payload=3, body=body, headers=headers, keep_alive=keep_alive)
    head, _, sent = asked.encode("h").partition(b"\r\n\r\n")
    assert sent == (body or b"...")
    assert len(head.split(b"\r\n")) == 1 + len(asked.fields("h"))


def test_a_body_is_a_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "body.bin").write_bytes(b"\0\xff")
    assert request.body("caf\N{LATIN SMALL LETTER E WITH ACUTE}", tmp_path) == b"caf\xc3\xa9"
    assert request.body("@body.bin", tmp_path) == b"\0\xff"
    for name, why in (("none", "No such file"), ("", "directory"), ("a\0b", "null")):
        with pytest.raises(ValueError, match=why):
            request.body(f"@{name}", tmp_path)


def test_a_file_of_paths(tmp_path: Path) -> None:
    (tmp_path / "some").write_bytes(b"\n# all of them:\n/a\r\n  /b?c=d \n\n")
    assert list(request.paths("@some", tmp_path)) == ["/a", "/b?c=d"]
    assert list(request.paths("/x", tmp_path)) == ["/x"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"/a\n\xff\n", "some:2: '\xff' is not a path"),
        (b"/a\n/b c\n", "some:2: '/b c' is not a path"),
        (b"# none\n", "'some' has no path; write one in each line, such as /items/1"),
        (b"/a\n" * 100_001, "'some' has more than 100,000 paths"),
        (b"#" * (16 << 20) + b"\n", "'some' is longer than 16 MiB"),
        (None, "cannot read 'some': No such file or directory"),
    ],
)
def test_a_file_of_paths_that_cannot_be_used(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "some").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(why)):
        list(request.paths("@some", tmp_path))


def test_all_requests_together_are_bounded() -> None:
    long = Request(method="POST", body=b"x" * (1 << 20))
    assert [asked.path for asked in long.at(["/a", "/b"])] == ["/a", "/b"]
    with pytest.raises(ValueError, match="300 paths with 1,048,576 bytes of body each are more than 256 MiB"):
        long.at(["/a"] * 300)


@pytest.mark.parametrize(
    ("wanted", "status", "length", "flaw"),
    [
        (Expectation(), 204, 0, ""),
        (Expectation(), 302, 0, "status 302"),
        (Expectation(statuses=request.statuses("2xx,302")), 302, 0, ""),
        (Expectation(statuses=request.statuses("404")), 200, 0, "status 200"),
        (Expectation(length=0), 200, 0, ""),
        (Expectation(length=0), 200, 1, "wrong length"),
        (Expectation(length=5), 500, 1, "status 500"),
    ],
)
def test_which_responses_are_good(wanted: Expectation, status: int, length: int, flaw: str) -> None:
    assert wanted.flaw(status, length) == flaw


PLAN = """
scenario = "http"
method = "POST"
path = "/x?y"
header = { A = "1", "B-C" = "2" }
body = "@body"
keep-alive = false
status = 201
length = 0
tls = true
ca = "ca.pem"
[[server]]
name = "one"
command = "serve {port}"
[[load]]
name = "plain"
header = ["D: 3"]
"""


def test_a_plan_says_what_to_ask(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    (load,) = planfile.read(file, {"method": "PUT"}).loads
    assert load.headers == ("D: 3",)
    assert (load.method, load.path, load.body, load.keep_alive) == ("PUT", "/x?y", "@body", False)
    assert (load.status, load.length, load.tls, load.ca) == ("201", 0, True, "ca.pem")
    assert load.describe().startswith("http PUT /x?y, TLS, a connection per request, 64 connections")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tls": True, "scenario": "echo"}, "tls is for scenario http"),
        ({"insecure": True}, "add tls"),
        ({"ca": "x"}, "add tls"),
        ({"tls": True, "insecure": True, "ca": "x"}, "leave out ca, or insecure"),
    ],
)
def test_tls_that_makes_no_sense_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        Load(**({"name": "x", "scenario": "http"} | change))  # type: ignore[arg-type]


def test_there_is_no_tls_on_a_unix_socket() -> None:
    load = Load(name="x", scenario="http", tls=True)
    for server in (Server(name="one", command="serve {unix}"), Server(name="one", attach="unix:a")):
        with pytest.raises(PlanError, match="server 'one' is on a Unix socket, where there is no TLS"):
            Plan(name="p", servers=(server,), loads=(load,))


def test_files_are_looked_for_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("no certificate")
    server = Server(name="one", command="serve {port}")
    http = {"name": "x", "scenario": "http"}

    def plan(**change: object) -> Plan:
        return Plan(name="p", servers=(server,), loads=(Load(**(http | change)),))  # type: ignore[arg-type]

    check_files(plan(body="@there"), tmp_path)
    for change, why in (({"body": "@not"}, "cannot read 'not'"), ({"tls": True, "ca": "there"}, "no file of cert")):
        with pytest.raises(PlanError, match=f"load 'x': .*{why}"):
            check_files(plan(**change), tmp_path)


@pytest.mark.parametrize(
    ("parse", "value", "why"),
    [
        (values.headers, 3, "neither a table nor a list"),
        (values.headers, [3], "neither a table nor a list"),
        (values.headers, {"A": 3}, ""),
        (values.headers, {"A": "b\r\nC: d"}, "in one line"),
        (values.body, 3, "write it in quotes"),
        (values.whole, -1, "not a whole number from 0"),
        (values.whole, True, "not a whole number"),
        (values.endpoint, "unix:", "the path is missing"),
        (values.endpoint, "http://h:1", "http:// does not belong here"),
        (values.command, "serve {port} {unix}", "names a port and {unix}"),
        (values.command, "serve", "or {unix} for the path of a Unix socket"),
    ],
)
def test_values_that_are_none(parse: Callable[[object], object], value: object, why: str) -> None:
    if not why:
        assert parse(value) == ("A: 3",)
        return
    with pytest.raises(ValueError, match=r".") as caught:
        parse(value)
    assert why in str(caught.value)


def test_a_header_of_the_handshakes_own_is_refused_before_anything_runs(tmp_path: Path) -> None:
    load = Load(name="x", scenario="websocket", headers=("Sec-WebSocket-Key: x",))
    plan = Plan(name="p", servers=(Server(name="one", command="serve {port}"),), loads=(load,))
    with pytest.raises(PlanError, match="load 'x': header Sec-WebSocket-Key cannot be set for websocket"):
        check_files(plan, tmp_path)
