"""The forms of --host."""

from __future__ import annotations

import socket

import pytest

from loadtest.plan.addresses import AddressError, parse


@pytest.mark.parametrize(
    ("text", "protocol", "expected"),
    [
        ("127.0.0.1:1935", "tcp", "127.0.0.1:1935"),
        ("127.0.0.1:1935", "http", "127.0.0.1:1935"),
        ("tcp://localhost:1", "tcp", "localhost:1"),
        ("tcp://[::1]:65535/", "tcp", "[::1]:65535"),
        ("unix:/run/a b.sock", "tcp", "unix:/run/a b.sock"),
        ("unix:///run/x", "tcp", "unix:/run/x"),
        ("http://example.org", "http", "example.org:80"),
        ("http://[::1]", "http", "[::1]:80"),
        ("http://h:8080/", "http", "h:8080"),
        ("unix:/run/x", "http", "unix:/run/x"),
        ("https://example.org", "http", "example.org:443"),
        ("https://[::1]:8443/", "http", "[::1]:8443"),
        ("ws://example.org", "websocket", "example.org:80"),
        ("wss://example.org", "websocket", "example.org:443"),
        ("unix:/run/x", "websocket", "unix:/run/x"),
    ],
)
def test_the_forms_of_an_address(text: str, protocol: str, expected: str) -> None:
    assert str(parse(text, protocol)) == expected


@pytest.mark.parametrize(
    ("text", "protocol", "why"),
    [
        ("http://h:1", "tcp", "speaks tcp, not http; write tcp://HOST:PORT, unix:PATH or HOST:PORT"),
        ("tcp://h:1", "http", "speaks http or https, not tcp; write http://HOST:PORT, https://HOST:PORT, unix:PATH or"),
        ("https://h:1", "tcp", "speaks tcp, not https"),
        ("ftp://h:1", "tcp", "not ftp"),
        (
            "https://h:1",
            "websocket",
            "speaks ws or wss, not https; write ws://HOST:PORT, wss://HOST:PORT, unix:PATH or",
        ),
        ("localhost", "tcp", "the port is missing"),
        ("localhost", "http", "the port is missing"),
        ("tcp://[::1]", "tcp", "the port is missing"),
        ("h:0", "tcp", "'0' is no port"),
        ("h:65536", "tcp", "no port"),
        ("h:\N{SUPERSCRIPT TWO}", "tcp", "no port"),
        (":1935", "tcp", "the host is missing"),
        ("::1:1935", "tcp", "in brackets"),
        ("http://h:1/path", "http", "has no path"),
        ("unix:", "tcp", "the path is missing"),
        ("unix:" + "x" * 108, "tcp", "the path of a socket has 107 bytes at most"),
        ("", "http", "the port is missing"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text: str, protocol: str, why: str) -> None:
    with pytest.raises(AddressError, match="--host") as caught:
        parse(text, protocol)
    assert why in str(caught.value)


@pytest.mark.parametrize("protocol", ["tcp", "http"])
def test_a_user_that_cannot_speak_over_unix_sockets_refuses_them(protocol: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse("unix:/run/x", protocol, unix=False)
    assert "this user cannot speak over Unix sockets; that of --engine fast can; write " in str(caught.value)
    assert "unix:PATH" not in str(caught.value)


def test_an_address_is_resolved_to_what_connect_takes() -> None:
    assert parse("127.0.0.1:7", "tcp").resolve() == (socket.AF_INET, ("127.0.0.1", 7))
    assert parse("[::1]:7", "tcp").resolve() == (socket.AF_INET6, ("::1", 7))
    assert parse("unix:/x", "tcp").resolve() == (socket.AF_UNIX, "/x")
