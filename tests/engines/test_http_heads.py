"""The heads of requests and responses over the wire: what is sent, left out and refused, by the options for it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.server import APPS
from tests.support.sockets import Socket
from tests.support.tls import TLS, trusting
from tests.support.ways import ONE
from tests.support.web import Browser, request

if TYPE_CHECKING:
    from tests.conftest import Serve, Shared

pytestmark = pytest.mark.slow

HEADS = APPS / "heads.py"
WSGI = (f"{HEADS}:wsgi",)
ASGI = (f"{HEADS}:asgi",)
EACH = pytest.mark.parametrize(
    "way",
    [
        pytest.param(WSGI, id="wsgi"),
        pytest.param((*WSGI, "--threads", "2"), id="wsgi-threads"),
        pytest.param(ASGI, id="asgi"),
        pytest.param((*ASGI, "--loop", "asyncio"), id="asgi-asyncio"),
    ],
)
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
Way = tuple[str, ...]


def asking(status: int, *headers: tuple[str, str]) -> str:
    """The path that asks for such a head."""
    return "/?" + quote(json.dumps([status, *headers]))


def raw(method: str, *lines: str, target: str = "/", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: a", *lines, "", ""]).encode("latin1")


# --- responses


@pytest.mark.smoke
@EACH
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_head_is_sent_as_it_may_be(shared: Shared, way: Way, tls: bool) -> None:
    server = shared(*way, *ONE, *(TLS if tls else ()))
    with Browser(server, tls=trusting() if tls else None) as browser:
        policy = "default-src 'self';\timg-src *\t"
        found = browser.get(asking(200, ("Content-Security-Policy", policy), ("X", "caf\xe9")))
        assert (found.status, found.fields["content-security-policy"], found.fields["x"]) == (200, policy, "caf\xe9")
        found = browser.get(asking(426, ("Upgrade", "foo/1"), ("Connection", "Upgrade")))
        assert (found.status, found.fields["upgrade"], found.fields["connection"]) == (426, "foo/1", "Upgrade")
        found = browser.get(asking(407, ("Proxy-Authenticate", "Basic")))
        assert (found.status, found.fields["proxy-authenticate"]) == (407, "Basic")
        copied = [
            ("Upgrade", "h2,h2c"), ("Connection", "Upgrade, Keep-Alive"), ("Keep-Alive", "timeout=5"), ("TE", "x"),
            ("Transfer-Encoding", "chunked"), ("Proxy-Authorization", "x"), ("Trailers", "x"), ("X-Own", "1"),
        ]  # fmt: skip
        found = browser.get(asking(200, *copied))
        assert found.status == 200
        assert found.fields.keys() == {"x-own", "content-length", "date", "server"}


@LOOPS
def test_the_heads_of_websockets_are_sent_as_they_may_be(shared: Shared, loop: str) -> None:
    server = shared(*ASGI, *ONE, "--loop", loop)
    copied = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", "x"), ("X", "a\tb")]
    with Socket(server, asking(101, *copied)) as ws:
        assert b"\r\nX: a\tb\r\n" in ws.head
        assert ws.head.lower().count(b"\r\nupgrade: ") == ws.head.lower().count(b"\r\nconnection: ") == 1
        assert isinstance(ws.receive(), bytes)
    with Browser(server) as browser:
        shake = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        browser.send(request(asking(426, ("Upgrade", "foo/1"), ("X", "\ta")), **shake, sec_websocket_key=key))
        denied = browser.response()
    assert (denied.status, denied.fields["upgrade"], denied.fields["x"]) == (426, "foo/1", "\ta")
    assert denied.fields["connection"] == "close, Upgrade"


@EACH
def test_headers_are_added_unless_the_application_gives_them(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, "--header", "X-Frame-Options: DENY", "--header", "X-A: b  c", "--no-server-header")
    with Browser(server) as browser:
        for _ in range(2):
            found = browser.get(asking(200))
            assert (found.fields["x-frame-options"], found.fields["x-a"]) == ("DENY", "b  c")
            assert "server" not in found.fields
            found = browser.get(asking(200, ("x-frame-options", "SAMEORIGIN")))
            assert (found.fields["x-frame-options"], found.fields["x-a"]) == ("SAMEORIGIN", "b  c")
            assert browser.get(asking(200, ("Server", "own"))).fields["server"] == "own"
        browser.send(request("/ "))
        found = browser.response()
        assert (found.status, found.fields["x-frame-options"], "server" in found.fields) == (400, "DENY", False)
    if way[0].endswith(":asgi"):
        with Socket(server, asking(101, ("X-A", "own"))) as ws:
            assert b"\r\nX-Frame-Options: DENY\r\n" in ws.head
            assert re.findall(rb"\r\nX-A: ([^\r]*)", ws.head) == [b"own"]
            assert b"\r\nServer:" not in ws.head


def test_headers_come_from_the_environment_a_line_each(serve: Serve) -> None:
    lines = "X-Frame-Options: DENY\nServer: some one\n"
    server = serve(*WSGI, *ONE, env={"PREFORK_HEADER": lines, "PREFORK_SERVER_HEADER": "no"})
    with Browser(server) as browser:
        found = browser.get(asking(200))
    assert (found.fields["x-frame-options"], found.fields["server"]) == ("DENY", "some one")


# --- requests


REFUSED = [
    (400, raw("HEAD", "a b: c")),
    (400, b"HEAD /a b HTTP/1.1\r\n\r\n"),
    (400, raw("HEAD", "Transfer-Encoding: chunked") + b"x\r\n"),
    (413, raw("HEAD", "Content-Length: 9999999")),
    (414, raw("HEAD", target="/" + "a" * 9000)),
    (417, raw("HEAD", "Expect: x")),
    (431, raw("HEAD", *["X: a"] * 101)),
    (501, raw("HEAD", "Transfer-Encoding: gzip, chunked")),
    (505, raw("HEAD", version="2.0")),
]


@EACH
def test_a_refused_head_has_no_content(shared: Shared, way: Way) -> None:
    """RFC 9110 9.3.2, whatever is refused; the same with GET has a page."""
    server = shared(*way, *ONE, "--max-body", "1m")
    for status, data in REFUSED:
        for method, before in ((b"HEAD", b""), (b"GET", b""), (b"HEAD", raw("GET"))):
            with Browser(server) as browser:
                browser.send(before + method + data.removeprefix(b"HEAD"))
                if before:
                    assert browser.response().status == 200
                found = browser.response(head=method == b"HEAD")
                assert (found.status, found.closes, found.fields["content-type"].partition(";")[0]) == (
                    status, True, "text/plain",
                )  # fmt: skip
                assert int(found.fields["content-length"]) > 0
                assert browser.rest() == b""


@EACH
@pytest.mark.parametrize("data", [b"HEAD / HT", raw("HEAD")[:-2], raw("HEAD", "Content-Length: 5") + b"abc"])
def test_a_head_request_that_comes_too_late_gets_no_content(shared: Shared, way: Way, data: bytes) -> None:
    server = shared(*way, *ONE, "--header-timeout", "0.3", "--idle-timeout", "0.3")
    with Browser(server) as browser:
        browser.send(data)
        assert browser.response(head=True).status == 408
        assert browser.rest() == b""


@EACH
def test_a_higher_minor_version_is_read_as_ours(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE)
    with Browser(server) as browser:
        for version in ("1.2", "1.9"):
            browser.send(raw("GET", version=version))
            found = browser.response()
            assert (found.status, found.closes) == (200, False)


FIELDS = ("api_key: secret", "X_Forwarded_For: 192.0.2.1", "content_length: 5", "X-Y: dash", "X_Y: underscore")


@LOOPS
def test_names_with_an_underscore_are_kept_for_asgi(shared: Shared, loop: str) -> None:
    server = shared(*ASGI, *ONE, "--loop", loop, "--trusted-proxies", "127.0.0.0/8")
    with Browser(server) as browser:
        for _ in range(2):
            browser.send(raw("GET", *FIELDS))
            assert json.loads(browser.response().body) == {
                "host": "a", "api_key": "secret", "x_forwarded_for": "192.0.2.1", "content_length": "5",
                "x-y": "dash", "x_y": "underscore",
            }  # fmt: skip
    with Socket(server, asking(101), fields=(("api_key", "secret"),)) as ws:
        body = ws.receive()
        assert json.loads(body)["api_key"] == "secret"


@pytest.mark.parametrize("threads", ["1", "2"])
def test_names_with_an_underscore_are_as_asked_for_wsgi(serve: Serve, threads: str) -> None:
    found = {}
    for how in ("drop", "pass", "refuse"):
        server = serve(*WSGI, *ONE, "--threads", threads, "--underscores", how, "--log-level", "debug")
        with Browser(server) as browser:
            browser.send(raw("GET", "X-Y: dash"))
            assert browser.response().status == 200
            browser.send(raw("GET", *FIELDS))
            response = browser.response()
            found[how] = json.loads(response.body) if response.status == 200 else response.status
        if how == "drop":
            server.wait_log(r"request field dropped name=api_key why=.*--underscores")
    assert found["drop"] == {"HTTP_HOST": "a", "HTTP_X_Y": "dash"}
    assert found["pass"] == {
        "HTTP_HOST": "a", "HTTP_X_Y": "dash", "HTTP_API_KEY": "secret", "HTTP_X_FORWARDED_FOR": "192.0.2.1",
        "HTTP_CONTENT_LENGTH": "5",
    }  # fmt: skip
    assert found["refuse"] == 400


@EACH
def test_the_limits_of_a_head_can_be_set(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, "--max-request-line", "1m", "--max-fields", "1000", "--max-header", "1m")
    target = "/" + "a" * (1_048_576 - len("GET / HTTP/1.1\r\n"))
    field = "X: " + "b" * (1_048_576 - len("Host: a\r\nX: \r\n\r\n"))
    for good in (raw("GET", target=target), raw("GET", field), raw("GET", *["Y: z"] * 999)):
        with Browser(server) as browser:
            for _ in range(2):
                browser.send(good)
                assert browser.response().status == 200
    bad = [
        (414, raw("GET", target=target + "a")), (431, raw("GET", field + "b")), (431, raw("GET", *["Y: z"] * 1000))
    ]  # fmt: skip
    for status, data in bad:
        with Browser(server) as browser:
            browser.send(data)
            found = browser.response()
            assert (found.status, found.closes) == (status, True)


@EACH
def test_the_limits_of_a_head_can_be_small(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, "--max-request-line", "1k", "--max-fields", "3", "--max-header", "1k")
    for status, data in [
        (200, raw("GET", "A: b", "C: d")),
        (431, raw("GET", "A: b", "C: d", "E: f")),
        (431, raw("GET", "A: " + "b" * 1009)),
        (200, raw("GET", "A: " + "b" * 1008)),
        (414, raw("GET", target="/" + "a" * 1020)),
    ]:
        with Browser(server) as browser:
            browser.send(data)
            assert browser.response().status == status


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_validator_of_the_standard_library_has_no_objection(shared: Shared, threads: str) -> None:
    server = shared(f"{HEADS}:validated", *ONE, "--threads", threads)
    with Browser(server) as browser:
        assert browser.get("/a%20b?c").body == b"nothing"
        assert browser.post("/", b"a body").body == b"a body"
        browser.send(request("/", method="POST", transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n")
        assert browser.response().body == b"abc"
        browser.send(request("/", method="HEAD"))
        assert browser.response(head=True).status == 200
        browser.send(request("/x?y", method="OPTIONS"))
        assert browser.response().body == b"nothing"
