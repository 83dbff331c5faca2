"""Behind a proxy: Forwarded, X-Forwarded-* and the PROXY header, from those who may and from those who may not."""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.apps.routes import HELLO
from tests.support.client import abort, dial, read_to_end
from tests.support.server import run
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.ways import ON_UVLOOP, ONE, WSGI, Way
from tests.support.web import WEB, Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

TRUSTED = ("--trusted-proxies", "127.0.0.0/8", "--trusted-proxies", "10.0.0.0/8")
PROXIED = ("--proxy-protocol", *TRUSTED)
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\n"


def v2(source: str, port: int, *, command: int = 1, extra: bytes = b"") -> bytes:
    """A header of the binary form."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    address = socket.inet_pton(family, source) + socket.inet_pton(family, "::1" if ":" in source else "127.0.0.1")
    block = address + struct.pack("!HH", port, 443) + extra
    kind = 0x21 if ":" in source else 0x11
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x20 | command, kind, len(block)) + block


@pytest.fixture(params=[WSGI, ON_UVLOOP])
def way(request: pytest.FixtureRequest) -> Way:
    """The same application over WSGI and over ASGI."""
    return request.param  # type: ignore[no-any-return]


def told(server: RunningServer | str, **fields: str) -> dict[str, Any]:
    """What the application is told of a request with these fields."""
    said: dict[str, Any] = json.loads(fetch(server, "/told", **fields).body)
    return said


# --- fields


def test_who_is_trusted_speaks_for_the_client(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *TRUSTED)
    said = told(server, x_forwarded_for="6.6.6.6, 192.0.2.9, 10.1.1.1", x_forwarded_proto="https",
                x_forwarded_host="shop.example")  # fmt: skip
    assert said["client"] == ["192.0.2.9", ""], "the rightmost that is no proxy of ours; what is left of it is hearsay"
    assert (said["scheme"], said["host"]) == ("https", "shop.example")
    said = told(server, forwarded='for="[2001:db8::5]:99";proto=https;host=a.example, for=10.2.3.4')
    assert (said["client"], said["scheme"], said["host"]) == (["2001:db8::5", "99"], "https", "a.example")


def test_without_fields_a_trusted_proxy_is_the_client(shared: Shared, way: Way) -> None:
    said = told(shared(*way, *ONE, *TRUSTED))
    assert (said["client"][0], said["scheme"], said["host"]) == ("127.0.0.1", "http", "localhost")


@pytest.mark.parametrize("trust", [(), ("--trusted-proxies", "10.0.0.0/8")], ids=["default", "others"])
def test_who_is_not_trusted_speaks_for_himself(shared: Shared, way: Way, trust: tuple[str, ...]) -> None:
    server = shared(*way, *ONE, *trust)
    said = told(server, x_forwarded_for="192.0.2.9", x_forwarded_proto="https", forwarded="for=192.0.2.9;host=evil",
                x_forwarded_host="evil")  # fmt: skip
    assert (said["client"][0], said["scheme"], said["host"]) == ("127.0.0.1", "http", "localhost")


@pytest.mark.parametrize("field", ["x_forwarded_for", "x_forwarded_proto", "forwarded"])
def test_a_proxy_that_is_not_believed_is_told_once(serve: Serve, way: Way, field: str) -> None:
    server = serve(*way, *ONE)
    fetch(server, "/")
    assert "not believed" not in server.log
    with Browser(server) as browser:
        for path in ("/", "/told", "/"):
            browser.get(path, **{field: "for=1.2.3.4"})
    fetch(server, "/", x_forwarded_for="1.2.3.4")
    server.wait_log(
        r"WARNING \[worker=0 .*\] forwarded fields are not believed peer=127\.0\.0\.1 "
        r'hint="--trusted-proxies 127\.0\.0\.1"$'
    )
    server.stop()
    assert server.log.count("not believed") == 1


def test_a_proxy_on_a_unix_socket_that_is_not_believed(serve: Serve, way: Way, tmp_path: Path) -> None:
    server = serve(*way, *ONE, "--trusted-proxies", "10.0.0.0/8", bind=f"unix:{tmp_path}/s")
    fetch(server, "/", x_forwarded_proto="https")
    server.wait_log('forwarded fields are not believed peer=unix: hint="--trusted-proxies unix:"')


@pytest.mark.parametrize("trust", ["none", "127.0.0.1"])
def test_nothing_is_told_of_proxies_that_are_believed_or_that_nobody_wants_to_believe(
    serve: Serve, way: Way, trust: str
) -> None:
    server = serve(*way, *ONE, "--trusted-proxies", trust)
    fetch(server, "/", x_forwarded_proto="https")
    server.stop()
    assert "not believed" not in server.log


def test_a_proxy_on_a_unix_socket(serve: Serve, way: Way, tmp_path: Path) -> None:
    server = serve(*way, *ONE, "--trusted-proxies", "unix:", bind=f"unix:{tmp_path}/s")
    assert told(server.address, x_forwarded_for="192.0.2.9")["client"] == ["192.0.2.9", ""]


# --- the PROXY header


@pytest.mark.parametrize(
    ("header", "address", "port"),
    [
        (V1, "192.0.2.7", "5555"),
        (b"PROXY TCP6 2001:db8::1 ::1 7 8\r\n", "2001:db8::1", "7"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 7 8\r\n", "192.0.2.7", "7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1", None),
        (v2("192.0.2.8", 1234), "192.0.2.8", "1234"),
        (v2("2001:db8::2", 99, extra=b"\x04\0\3abc"), "2001:db8::2", "99"),
        (v2("192.0.2.8", 1234, command=0), "127.0.0.1", None),
    ],
    ids=["v1", "v1-ipv6", "v1-ipv4-in-ipv6", "v1-unknown", "v2", "v2-ipv6-with-more", "v2-local"],
)
@pytest.mark.parametrize("pieces", [pytest.param(False, id="whole"), pytest.param(True, id="bytewise")])
def test_the_client_is_whom_the_header_says(
    shared: Shared, way: Way, header: bytes, address: str, port: str | None, pieces: bool
) -> None:
    server = shared(*way, *ONE, *PROXIED)
    with Browser(server) as browser:
        browser.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(header)) if pieces else ():
            browser.send(header[at : at + 1])
        browser.send(request("/told") if pieces else header + request("/told"))
        said = json.loads(browser.response().body)["client"]
        assert said == [address, port or str(browser.sock.getsockname()[1])]
        assert json.loads(browser.get("/told").body)["client"] == said, "it holds for the connection"


def test_a_header_is_taken_once(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *PROXIED)
    with Browser(server) as browser:
        browser.send(V1 + V1 + request())
        assert browser.response().status == 400


@pytest.mark.parametrize(
    "raw",
    [
        request(), b"PROXY TCP4 192.0.2.7 198.51.100.1 5555\r\n" + request(), b"PROXY TCP4 " + b"1" * 200,
        b"PROXY TCP4 999.0.2.7 198.51.100.1 5555 443\r\n", v2("1.2.3.4", 1)[:12] + b"\x31" + v2("1.2.3.4", 1)[13:],
        v2("1.2.3.4", 1)[:14] + b"\xff\xff" + bytes(70_000),
    ],
    ids=["none", "short", "endless", "no-address", "v2-version", "v2-huge"],
)  # fmt: skip
def test_a_connection_without_a_right_header_is_closed_unanswered(shared: Shared, way: Way, raw: bytes) -> None:
    server = shared(*way, *ONE, *PROXIED)
    with dial(server.address) as sock:
        try:
            sock.sendall(raw)
            assert read_to_end(sock) == b""
        except (ConnectionResetError, BrokenPipeError):
            pass
    with Browser(server) as browser:
        browser.send(V1 + request())
        assert browser.response().body == HELLO


def test_who_is_not_trusted_may_not_send_one(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, "--proxy-protocol", "--trusted-proxies", "10.0.0.0/8")
    with dial(server.address) as sock:
        try:
            sock.sendall(V1 + request())
            assert read_to_end(sock) == b""
        except ConnectionResetError:
            pass
    server.wait_log("may not send a PROXY header")


def test_clients_that_leave_within_the_header_harm_nobody(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *PROXIED)
    for data in (b"", V1[:10], V1, V1 + request()[:10]):
        for leave in (abort, socket.socket.close):
            sock = dial(server.address)
            sock.sendall(data)
            leave(sock)
    with Browser(server) as browser:
        browser.send(V1 + request())
        assert browser.response().body == HELLO


def test_the_header_has_a_deadline_which_ends_with_it(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *PROXIED, "--header-timeout", "300ms", "--keep-alive", "20")
    with dial(server.address) as silent, dial(server.address) as slow, Browser(server) as good:
        good.send(V1 + request())
        assert good.response().body == HELLO
        slow.sendall(V1[:20])
        assert read_to_end(slow) == read_to_end(silent) == b""
        assert good.get().body == HELLO


def test_the_header_comes_before_tls(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *PROXIED, *TLS)
    for header in (V1, v2("192.0.2.7", 5555)):
        with dial(server.address) as plain:
            plain.sendall(header)
            with trusting().wrap_socket(plain, server_hostname="localhost") as sock:
                sock.sendall(request("/told", connection="close"))
                said = read_to_end(sock)
        assert b'"client": ["192.0.2.7", "5555"]' in said
        assert b'"scheme": "https"' in said


def test_the_header_and_the_fields_together(shared: Shared, way: Way) -> None:
    """The header's source is believed if it is a proxy of ours itself."""
    server = shared(*way, *ONE, *PROXIED)
    for source, expected in (("10.0.0.1", "192.0.2.9"), ("203.0.113.1", "203.0.113.1")):
        with Browser(server) as browser:
            browser.send(v2(source, 1) + request("/told", x_forwarded_for="192.0.2.9"))
            assert json.loads(browser.response().body)["client"][0] == expected


@pytest.mark.parametrize(
    ("args", "said"),
    [
        pytest.param(["--trusted-proxies", "10.0.0.0/33"], "10.0.0.0/33"),
        pytest.param(["--trusted-proxies", "proxy.example"], "proxy.example"),
        (["--proxy-protocol"], "--trusted-proxies"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], said: str) -> None:
    done = run("serve", WEB, "--bind", "127.0.0.1:0", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_access_log_names_the_client_not_the_proxy(serve: Serve, way: Way, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve(*way, *ONE, *PROXIED, "--access-log", str(log))
    with Browser(server) as browser:
        browser.send(V1 + request())
        browser.response()
    eventually(lambda: log.read_text().startswith("192.0.2.7 - - ["), within_s=15)


def test_a_proxy_that_comes_by_ipv4_to_a_socket_of_both_families_is_trusted(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *PROXIED, bind=":0")
    with Browser(f"127.0.0.1:{server.address.rpartition(':')[2]}") as browser:
        browser.send(V1 + request("/told"))
        assert json.loads(browser.response().body)["client"] == ["192.0.2.7", "5555"]
