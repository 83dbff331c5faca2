"""Who the client is behind proxies: only what trusted ones say, and only as far as they know."""

from __future__ import annotations

import time
from typing import Any

import pytest

from prefork.http.fields import FieldTable
from prefork.http.forwarded import Origin, Trusted, find_origin

TRUSTED = Trusted(["10.0.0.0/8", "2001:db8:1::/48", "unix:"])
PROXY = "10.0.0.1"


def origin(*lines: str, peer: str = PROXY, trusted: Trusted = TRUSTED) -> Origin:
    table = FieldTable()
    return find_origin([table[line.encode("latin-1")] for line in lines], peer, 1234, trusted)


def is_peer(found: Origin, peer: str = PROXY) -> bool:
    return found == Origin(address=peer, port=1234)


@pytest.mark.parametrize(
    "line",
    ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: a", "Forwarded: for=192.0.2.1"],
)
@pytest.mark.parametrize("peer", ["203.0.113.1", "11.0.0.1", "2001:db8:2::1", "not an address"])
def test_nobody_else_is_believed(line: str, peer: str) -> None:
    assert is_peer(origin(line, peer=peer), peer)


def test_without_trusted_proxies_nobody_is() -> None:
    assert not Trusted([])
    assert is_peer(origin("X-Forwarded-For: 192.0.2.1", trusted=Trusted([])))
    assert is_peer(origin("X-Forwarded-For: 192.0.2.1", peer="unix:", trusted=Trusted(["10.0.0.0/8"])), "unix:")


@pytest.mark.parametrize("underscores", ["drop", "pass"])
def test_a_name_with_an_underscore_is_no_proxys(underscores: str) -> None:
    table = FieldTable(underscores)
    names = ("X_Forwarded_For", "X-Forwarded_For", "X_Forwarded_Proto", "X_Forwarded_Host", "Forwarded_")
    fields = [table[f"{name}: 192.0.2.1".encode()] for name in names]
    assert is_peer(find_origin(fields, PROXY, 1234, TRUSTED))


@pytest.mark.parametrize("peer", [PROXY, "10.255.255.255", "2001:db8:1::5", "::ffff:10.0.0.1", "unix:"])
def test_trusted_peers(peer: str) -> None:
    assert origin("X-Forwarded-For: 192.0.2.1", peer=peer).address == "192.0.2.1"


@pytest.mark.parametrize(
    ("value", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 0),
        ("192.0.2.1:40000", "192.0.2.1", 40000),
        ("2001:db8::1", "2001:db8::1", 0),
        ("[2001:db8::1]:40000", "2001:db8::1", 40000),
        ("::ffff:192.0.2.1", "192.0.2.1", 0),
        ("1.1.1.1, 192.0.2.1", "192.0.2.1", 0),  # what the client wrote itself, and what our proxy saw
        ("192.0.2.1, 10.0.0.2", "192.0.2.1", 0),
        ("1.1.1.1, 192.0.2.1 ,\t10.0.0.3,10.0.0.2", "192.0.2.1", 0),
        ("10.0.0.5, 10.0.0.4", "10.0.0.5", 0),  # a client among the proxies
        ("<script>, 192.0.2.1", "192.0.2.1", 0),
    ],
)
def test_the_rightmost_address_that_is_not_trusted_is_the_clients(value: str, address: str, port: int) -> None:
    found = origin(f"X-Forwarded-For: {value}")
    assert (found.address, found.port) == (address, port)


@pytest.mark.parametrize(
    "value",
    [
        "unknown",
        "_hidden",
        "<script>",
        "192.0.2.1:99999",
        "192.0.2.256",
        "192.0.2.01",
        "1.1.1.1, ",
        "fe80::1%eth0",
        "[::1",
        "",
    ],
)
def test_what_is_no_address_leaves_the_one_who_said_it(value: str) -> None:
    assert origin(f"X-Forwarded-For: {value}").address == PROXY
    assert origin(f"X-Forwarded-For: 192.0.2.1, {value}, 10.0.0.2").address == "10.0.0.2"


def test_several_lines_are_one_list() -> None:
    assert origin("X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 10.0.0.2").address == (
        "192.0.2.1"
    )


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [
        ("https", "https"),
        ("HTTP", "http"),
        ("wss", "https"),
        ("ws", "http"),
        ("gopher", ""),
        ("https\tx", ""),
        ("", ""),
    ],
)
def test_the_scheme(proto: str, scheme: str) -> None:
    assert origin("X-Forwarded-For: 192.0.2.1", f"X-Forwarded-Proto: {proto}").scheme == scheme
    assert origin(f"X-Forwarded-Proto: {proto}") == Origin(address=PROXY, port=1234, scheme=scheme)


def test_scheme_and_host_are_of_the_proxy_that_saw_the_client() -> None:
    found = origin(
        "X-Forwarded-For: 1.1.1.1, 192.0.2.1, 10.0.0.2",
        "X-Forwarded-Proto: http, https, http",
        "X-Forwarded-Host: evil.example, example.com, internal:8080",
    )
    assert found == Origin(address="192.0.2.1", scheme="https", host=b"example.com")


def test_a_shorter_list_is_used_to_its_end() -> None:
    found = origin("X-Forwarded-For: 192.0.2.1, 10.0.0.2", "X-Forwarded-Proto: https")
    assert (found.address, found.scheme) == ("192.0.2.1", "https")


@pytest.mark.parametrize("host", ["a b", "user@a", '"><x', "a/b", "[::1", ""])
def test_a_host_that_is_none_is_not_believed(host: str) -> None:
    assert origin(f"X-Forwarded-Host: {host}", "X-Forwarded-For: 192.0.2.1").host == b""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=192.0.2.1", {"address": "192.0.2.1"}),
        ("FOR=192.0.2.1;Proto=HTTPS;by=10.0.0.1;Host=example.com",
         {"address": "192.0.2.1", "scheme": "https", "host": b"example.com"}),
        ('for="192.0.2.1:40000"', {"address": "192.0.2.1", "port": 40000}),
        ('for="[2001:db8::1]:40000"', {"address": "2001:db8::1", "port": 40000}),
        (r'for="\1\92.0.2.1";ext="a,b;c=\"d\""', {"address": "192.0.2.1"}),
        ("for=1.1.1.1;proto=https , for=192.0.2.1;proto=http,\tfor=10.0.0.2;proto=https",
         {"address": "192.0.2.1", "scheme": "http"}),
        ("for=unknown;proto=https", {"address": PROXY, "port": 1234, "scheme": "https"}),
        ("for=_gazonk", {"address": PROXY, "port": 1234}),
        ("proto=https", {"address": PROXY, "port": 1234, "scheme": "https"}),
    ],
)  # fmt: skip
def test_rfc_7239(value: str, expected: dict[str, Any]) -> None:
    assert origin(f"Forwarded: {value}") == Origin(**{"host": b"", **expected})


@pytest.mark.parametrize(
    "value",
    ['for="192.0.2.1', "for=192.0.2.1,", ",for=192.0.2.1", "for=", "for", "for=192.0.2.1;", "for=192.0.2.1;for=1.1.1.1",
     "", "for=[::1]", "for =192.0.2.1", 'for="x", for="192.0.2.1', 'for=192.0.2.1" ', "for=192.0.2.1 proto=https"],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_not_believed_at_all(value: str) -> None:
    assert is_peer(origin(f"Forwarded: {value}"))
    assert is_peer(origin("Forwarded: for=192.0.2.1", f"Forwarded: {value}"))


def test_two_kinds_that_agree() -> None:
    found = origin("Forwarded: for=192.0.2.1;proto=https", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https")
    assert (found.address, found.scheme) == ("192.0.2.1", "https")


@pytest.mark.parametrize(
    "forged",
    ["Forwarded: for=1.1.1.1", "Forwarded: for=192.0.2.1;proto=https", "Forwarded: for=192.0.2.1;host=evil.example"],
)
def test_of_two_kinds_that_do_not_agree_one_is_forged_and_neither_is_believed(forged: str) -> None:
    assert is_peer(origin(forged, "X-Forwarded-For: 192.0.2.1"))


@pytest.mark.parametrize("item", ["10.0.0.1/8", "localhost", "", "10.0.0.0/33", "*", "unix"])
def test_what_is_no_trusted_proxy_is_said_so(item: str) -> None:
    with pytest.raises(ValueError, match=r"is no trusted proxy: .*; give an address, a network or unix:"):
        Trusted([item])


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-For: " + "10.0.0.1," * 7000,
        "X-Forwarded-For: " + "," * 65000,
        "Forwarded: " + "for=10.0.0.1," * 5000,
        'Forwarded: for="' + "\\" * 65000,
        "Forwarded: " + "a=b;" * 2000,
        "Forwarded: " + " " * 8000,
    ],
)
def test_long_lists_are_no_work(line: str) -> None:
    table = FieldTable()
    fields = [table[line.encode()]]
    began = time.thread_time()
    find_origin(fields, PROXY, 1, TRUSTED)
    assert time.thread_time() - began < 1  # quadratic work would take minutes
