"""What an ASGI application is told of a request: every key, whatever form the target has, and whoever stands before."""

from __future__ import annotations

import pytest

from prefork.http.forwarded import Origin
from prefork.http.head import Request
from prefork.http.limits import Limits
from prefork.http.parser import RequestParser
from prefork.http.scope import Scope, Scopes, apply_forwarded, for_listener, of_websocket

LISTENER = for_listener(server=("192.0.2.1", 8000), scheme="http", root_path="")
CLIENT = "192.0.2.2", 5000
HINTS: Scope = {"http.response.pathsend": {}, "http.response.early_hint": {}}


def parse(raw: bytes) -> Request:
    (request,) = RequestParser(Limits()).feed(raw)
    assert isinstance(request, Request)
    return request


def scope_of(
    target: str = "/",
    *,
    method: str = "GET",
    minor: int = 1,
    fields: str = "",
    state: Scope | None = None,
    root_path: str = "",
) -> Scope:
    request = parse(f"{method} {target} HTTP/1.{minor}\r\nHost: example.com\r\n{fields}\r\n".encode("latin-1"))
    scopes = Scopes({**LISTENER, "root_path": root_path}, CLIENT)
    return scopes.of(request, state or {})


def test_every_key() -> None:
    assert scope_of("/a%20b?c=%20d", method="POST", fields="X-Many: 1\r\nx-many: 2\r\n", state={"a": 1}) == {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.5"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/a b", "raw_path": b"/a%20b", "query_string": b"c=%20d", "root_path": "",
        "headers": [(b"host", b"example.com"), (b"x-many", b"1"), (b"x-many", b"2")], "client": CLIENT,
        "server": ("192.0.2.1", 8000), "state": {"a": 1}, "extensions": HINTS,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "path", "raw", "query"),
    [
        ("/", "/", b"/", b""),
        ("/?", "/", b"/", b""),
        ("/%e2%82%ac/%C3%A9", "\u20ac/\u00e9", b"", b""),
        ("/a%2Fb", "/a/b", b"/a%2Fb", b""),
        ("/%ff", "/\ufffd", b"/%ff", b""),
        ("/100%25", "/100%", b"/100%25", b""),
        ("/a//b/../c", "/a//b/../c", b"/a//b/../c", b""),
        ("/?a=b?c", "/", b"/", b"a=b?c"),
        ("http://example.com/x?y", "/x", b"/x", b"y"),
        ("http://example.com", "/", b"/", b""),
    ],
)
def test_targets(target: str, path: str, raw: bytes, query: bytes) -> None:
    scope = scope_of(target)
    assert scope["path"].removeprefix("/") == path.removeprefix("/")
    assert scope["query_string"] == query
    assert not raw or scope["raw_path"] == raw


def test_the_server_as_a_whole() -> None:
    scope = scope_of("*", method="OPTIONS")
    assert (scope["path"], scope["raw_path"]) == ("*", b"*")


@pytest.mark.parametrize(
    ("target", "path", "raw"),
    [
        ("/items", "/api/items", b"/api/items"),  # a proxy has taken the prefix away
        ("/", "/api/", b"/api/"),
        ("/a%20b", "/api/a b", b"/api/a%20b"),
        ("/apixy", "/api/apixy", b"/api/apixy"),
        ("/API/items", "/api/API/items", b"/api/API/items"),
        ("http://example.com/items", "/api/items", b"/api/items"),
        ("http://example.com", "/api/", b"/api/"),
        ("/api", "/api", b"/api"),  # it has not
        ("/api/", "/api/", b"/api/"),
        ("/api/items", "/api/items", b"/api/items"),
        ("/api?a", "/api", b"/api"),
        ("/%61pi/a%2fb", "/api/a/b", b"/%61pi/a%2fb"),
    ],
)
def test_the_path_begins_with_the_root_path_whatever_a_proxy_does(target: str, path: str, raw: bytes) -> None:
    scope = scope_of(target, root_path="/api")
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/api", path, raw)


def test_a_root_path_that_has_to_be_encoded() -> None:
    scope = scope_of("/x", root_path="/caf\u00e9 1")
    assert (scope["path"], scope["raw_path"]) == ("/caf\u00e9 1/x", b"/caf%C3%A9%201/x")
    scope = scope_of("/caf%c3%a9%201/x", root_path="/caf\u00e9 1")
    assert (scope["path"], scope["raw_path"]) == ("/caf\u00e9 1/x", b"/caf%c3%a9%201/x")


def test_the_server_as_a_whole_is_not_below_the_root_path() -> None:
    scope = scope_of("*", method="OPTIONS", root_path="/api")
    assert (scope["path"], scope["raw_path"], scope["root_path"]) == ("*", b"*", "/api")


def test_an_absolute_targets_host_is_the_host() -> None:
    assert (b"host", b"other.example") in scope_of("http://other.example/")["headers"]


def test_http_1_0() -> None:
    scope = scope_of(minor=0, fields="TE: trailers\r\n")
    assert (scope["http_version"], scope["extensions"]) == ("1.0", {"http.response.pathsend": {}})


@pytest.mark.parametrize(("te", "takes"), [("trailers", True), ("gzip;q=0.5, Trailers", True), ("gzip", False)])
def test_who_takes_trailers(te: str, takes: bool) -> None:
    assert ("http.response.trailers" in scope_of(fields=f"TE: {te}\r\n")["extensions"]) is takes


def test_requests_of_a_connection_share_nothing_that_an_application_may_change() -> None:
    request = parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    scopes, state = Scopes(LISTENER, CLIENT), {"pool": []}
    first, second = scopes.of(request, state), scopes.of(request, state)
    first["headers"].append((b"x", b"y"))
    first["extensions"]["mine"] = {}
    first["state"]["mine"] = 1
    first["path"] = "/else"
    assert second == scopes.of(request, state)
    assert second["state"]["pool"] is state["pool"]
    assert (len(second["headers"]), second["extensions"]) == (1, HINTS)


def test_a_unix_socket() -> None:
    listener = for_listener(server=("/run/a.sock", None), scheme="http", root_path="")
    scope = Scopes(listener, None).of(parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), {})
    assert (scope["server"], scope["client"]) == (("/run/a.sock", None), None)
    apply_forwarded(scope, Origin(address="unix:"))
    assert scope["client"] is None
    apply_forwarded(scope, Origin(address="2001:db8::1", port=9))
    assert scope["client"] == ("2001:db8::1", 9)


def test_a_proxys_word_for_it() -> None:
    scope = scope_of()
    apply_forwarded(scope, Origin(address="192.0.2.9", scheme="https", host=b"shop.example"))
    assert (scope["client"], scope["scheme"]) == (("192.0.2.9", 0), "https")
    assert scope["headers"] == [(b"host", b"shop.example")]
    scope = scope_of()
    apply_forwarded(scope, Origin(address=CLIENT[0]))
    assert (scope["client"], scope["scheme"]) == (CLIENT, "http")


@pytest.mark.parametrize(("scheme", "expected"), [("", "ws"), ("https", "wss")])
def test_a_websocket(scheme: str, expected: str) -> None:
    scope = scope_of("/chat?a")
    apply_forwarded(scope, Origin(address="192.0.2.9", scheme=scheme))
    scope = of_websocket(scope, ["v2", "v1"])
    assert "method" not in scope
    assert (scope["type"], scope["scheme"], scope["subprotocols"]) == ("websocket", expected, ["v2", "v1"])
    assert scope["extensions"] == {"websocket.http.response": {}}


def test_tls() -> None:
    scopes = Scopes(for_listener(server=("::1", 1), scheme="https", root_path=""), CLIENT)
    facts = {"tls_version": 0x0304}
    scopes.secure(facts)
    request = parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert scopes.of(request, {})["extensions"] == {**HINTS, "tls": facts}
    assert of_websocket(scopes.of(request, {}), [])["extensions"] == {"websocket.http.response": {}, "tls": facts}
