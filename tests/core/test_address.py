"""Addresses: what can be written, and what is said of the rest."""

from __future__ import annotations

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.address import FORMS, Address, format_sockaddr, part_families


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1935", Address(socket.AF_INET, host="127.0.0.1", port=1935)),
        ("localhost:0", Address(socket.AF_INET, host="localhost", port=0)),
        ("0.0.0.0:65535", Address(socket.AF_INET, host="0.0.0.0", port=65535)),
        ("[::1]:80", Address(socket.AF_INET6, host="::1", port=80)),
        ("[::]:80", Address(socket.AF_INET6, host="::", port=80)),
        (":8000", Address(socket.AF_INET6, port=8000)),
        ("[fe80::1%eth0]:80", Address(socket.AF_INET6, host="fe80::1%eth0", port=80)),
        ("unix:/run/app.sock", Address(socket.AF_UNIX, path="/run/app.sock")),
        ("unix:app:1.sock", Address(socket.AF_UNIX, path="app:1.sock")),
        ("fd://3", Address(socket.AF_UNSPEC, fd=3)),
    ],
)
def test_the_forms_of_an_address(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", FORMS),
        ("localhost", FORMS),
        ("/run/app.sock", FORMS),
        ("http://127.0.0.1:80", FORMS),
        ("[::1]", FORMS),
        ("localhost:", "'' is not a port (0 to 65535)"),
        ("localhost:http", "'http' is not a port (0 to 65535)"),
        ("localhost:65536", "'65536' is not a port (0 to 65535)"),
        ("localhost:-1", "'-1' is not a port"),
        ("localhost:+1", "'+1' is not a port"),
        ("localhost:1_0", "'1_0' is not a port"),
        ("localhost: 80", "' 80' is not a port"),
        ("localhost:\u0668\u0660", "is not a port"),
        ("localhost:80\n", "is not a port"),
        ("::1:80", "write an IPv6 address in brackets, [::1]:80"),
        (":", "'' is not a port (0 to 65535)"),
        ("65536", "'65536' is not a port (0 to 65535)"),
        ("unix:", "'unix:' has no path"),
        ("unix:s,mode=", "'' is not the mode of a file in octal, such as 660"),
        ("unix:s,mode=rw", "'rw' is not the mode"),
        ("unix:s,mode=888", "'888' is not the mode"),
        ("unix:s,mode=1777", "'1777' is not the mode"),
        ("unix:s,mode=660,mode=60", "'60' is not the mode"),
        ("unix:" + "x" * 108, "longer than the 107 bytes"),
        ("unix:" + "\u00e9" * 54, "longer than the 107 bytes"),
        ("fd://", "'' is not the number of a file descriptor"),
        ("fd://x", "'x' is not the number of a file descriptor"),
        ("fd://-1", "'-1' is not the number of a file descriptor"),
        ("fd://\u0663", "is not the number of a file descriptor"),
    ],
)
def test_what_is_no_address_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        Address.parse(text)
    assert text.isspace() or text.removeprefix("unix:")[:5].strip() in str(caught.value)


def test_a_port_alone_is_this_machine_only() -> None:
    assert Address.parse("8000") == Address.parse("127.0.0.1:8000")


def test_an_ipv6_address_leaves_ipv4_to_an_address_that_has_its_port() -> None:
    texts = ["[::]:80", "0.0.0.0:80", ":81", "[::]:0", "127.0.0.1:0", "unix:/x"]
    addresses = [Address.parse(text) for text in texts]
    assert [address.v6_only for address in part_families(addresses)] == [True, *[False] * 5]
    assert [str(address) for address in part_families(addresses)] == texts


def test_a_unix_address_may_say_the_mode_of_its_file() -> None:
    for text in ("unix:/run/app.sock,mode=660", "unix:/run/app.sock,mode=0660"):
        address = Address.parse(text)
        assert (address.path, address.mode) == ("/run/app.sock", 0o660)
        assert (str(address), address.written) == ("unix:/run/app.sock", "unix:/run/app.sock,mode=660")
    assert Address.parse("unix:a,mode=b,mode=600").path == "a,mode=b"


def test_the_longest_path_of_a_unix_socket() -> None:
    path = "x" * 107
    assert Address.parse(f"unix:{path}").path == path


@given(text=st.text(max_size=20) | st.from_regex(r"(unix:|fd://|\[)?[a-z0-9:.\[\]]{0,12}", fullmatch=True))
def test_an_address_is_read_and_written_back_or_refused(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert Address.parse(address.written) == address


@pytest.mark.parametrize(
    ("family", "sockaddr", "text"),
    [
        (socket.AF_INET, ("127.0.0.1", 80), "127.0.0.1:80"),
        (socket.AF_INET6, ("::1", 80, 0, 0), "[::1]:80"),
        (socket.AF_INET6, ("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1:80"),
        (socket.AF_INET6, ("::ffff:1", 80, 0, 0), "[::ffff:1]:80"),
        (socket.AF_UNIX, "/run/x.sock", "unix:/run/x.sock"),
        (socket.AF_UNIX, b"\0abstract", "unix:\0abstract"),
        (socket.AF_UNIX, "", "unix:"),
        (socket.AF_UNIX, None, "unix:"),
    ],
)
def test_addresses_of_the_kernel_as_text(family: int, sockaddr: object, text: str) -> None:
    assert format_sockaddr(family, sockaddr) == text
