"""WebSockets over the wire: handshakes, messages, closes, who is slow or gone, and what the application does wrong."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from prefork.engines.linger import LINGER_S
from tests.apps.routes import BLOCK, HELLO
from tests.engines.test_proxies import PROXIED, TRUSTED, V1
from tests.http.websocket_clients import frame
from tests.support.client import abort, exchange, read_to_end
from tests.support.control import Place
from tests.support.processes import rss_kib, wait_idle
from tests.support.sockets import Socket
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually, marked
from tests.support.ways import LEAVING, LOOPS, ONE, Leave
from tests.support.web import ASGI, WEB, Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve, Shared
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

SHAKE = {
    "connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13",
    "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


@pytest.fixture(params=LOOPS)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker."""
    return shared(*request.param, *ONE, "--ws-max-message", "1m")


@pytest.fixture(params=LOOPS)
def wronged(serve: Serve, request: pytest.FixtureRequest) -> RunningServer:
    """The same, whose log may have tracebacks."""
    return serve(*request.param, *ONE, expect_traceback=True)


# --- messages


@pytest.mark.smoke
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
def test_messages_of_every_kind_and_size_are_said_back(server: RunningServer, deflate: bool) -> None:
    with Socket(server, deflate=deflate) as ws:
        assert (b"permessage-deflate" in ws.head) is deflate
        for message in ("", "text", "\u20ac" * 1000, "x" * 300_000, b"", b"bytes", BLOCK * 15):
            for pieces in (1, 3):
                ws.send(message, pieces)
                assert ws.receive() == message
        ws.close_with(1000, "bye")
        assert ws.closed() == 1000


def test_messages_that_are_large_unpacked_are_taken_as_there_is_room(server: RunningServer) -> None:
    with Socket(server, deflate=True) as ws:
        for _ in range(12):
            ws.send(bytes(1 << 20))  # 1 KiB on its way
        ws.send("last")
        for _ in range(12):
            assert ws.receive() == bytes(1 << 20)
        assert ws.receive() == "last"


def test_messages_behind_the_handshake_in_one_packet(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request("/", **SHAKE) + frame(0x81, b"at once"))
        assert browser.head()[0] == 101
        assert browser.exactly(9) == b"\x81\x07at once"
        browser.send(frame(0x88, b"\x03\xe8"))
        assert browser.rest() == b"\x88\x02\x03\xe8"


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ("'text': None, 'bytes': b''", b"\x82\x00"),
        ("'text': '', 'bytes': None", b"\x81\x00"),
        ("'bytes': bytearray(b'a')", b"\x82\x01a"),
        ("'text': None", b"\x88\x02\x03\xf3"),
        ("", b"\x88\x02\x03\xf3"),
    ],
)
def test_keys_of_a_message_may_be_none_but_not_both(serve: Serve, app: AppWriter, message: str, sent: bytes) -> None:
    source = (
        "async def app(scope, receive, send):\n"
        "    assert scope['type'] == 'websocket'\n"
        "    await receive()\n"
        "    await send({'type': 'websocket.accept'})\n"
        f"    await send({{'type': 'websocket.send', {message}}})\n"
        "    await receive()\n"
    )
    server = serve(app(source, attribute="app"), *ONE, expect_traceback=True)
    with Browser(server) as browser:
        browser.send(request("/", **SHAKE))
        assert browser.head()[0] == 101
        assert browser.exactly(len(sent)) == sent
    if sent[0] == 0x88:
        server.wait_log("websocket.send has neither `text` nor `bytes`")


FIRST = b"\x81\x05first"


@pytest.mark.parametrize(
    ("behind", "close"),
    [
        (frame(0x83), b"\x88\x10\x03\xeaunknown opcode"),
        (frame(0xA1, b"x") + frame(0x89), b"\x88\x0e\x03\xeareserved bit"),
        (frame(0x01, b"ok\xff"), b"\x88\x0b\x03\xefnot UTF-8"),
        (frame(0x88, b"\x03\xe8"), b"\x88\x02\x03\xe8"),
        (frame(0x88), b"\x88\x00"),
    ],
    ids=["opcode", "bit", "text", "close", "close-without-a-code"],
)
@pytest.mark.parametrize("handshake", [True, False], ids=["with-the-handshake", "later"])
def test_what_came_before_the_end_is_answered(
    server: RunningServer, behind: bytes, close: bytes, handshake: bool
) -> None:
    end = frame(0x81, b"first") * 3 + behind + frame(0x81, b"never")
    with Browser(server) as browser:
        browser.send(request("/", **SHAKE) + (end if handshake else b""))
        assert browser.head()[0] == 101
        if not handshake:
            browser.send(end)
        assert browser.rest() == FIRST * 3 + close


def test_an_application_that_does_not_ask_for_what_came_has_two_seconds(serve: Serve, gate: Gate) -> None:
    with Browser(serve(ASGI, *ONE, env=gate.env)) as browser:
        browser.send(request("/sink", **SHAKE) + frame(0x81, b"first") + frame(0x83))
        assert browser.head()[0] == 101
        began_s = time.monotonic()
        assert browser.rest() == b"\x88\x10\x03\xeaunknown opcode"
        assert 1 < time.monotonic() - began_s < 10


def test_a_request_before_the_handshake(server: RunningServer) -> None:
    with Browser(server) as browser:
        assert browser.get().body == HELLO
        browser.send(request("/stream?3") + request("/", **SHAKE) + frame(0x81, b"hi"))
        assert browser.response().body == BLOCK * 3
        assert browser.head()[0] == 101
        assert browser.exactly(4) == b"\x81\x02hi"


def test_the_handshake_is_told_and_answered(server: RunningServer) -> None:
    with Socket(server, "/offer?a=%20b", subprotocols=["v2.chat", "v1.chat"], fields=(("Cookie", "c=1"),)) as ws:
        assert b"\r\nx-from: the application\r\nset-cookie: a=1\r\n" in ws.head
        assert ws.subprotocol == "v1.chat"
        said = json.loads(str(ws.receive()))
        assert ws.closed() == 1000
    assert {key: said[key] for key in said if key not in ("headers", "client", "server", "state")} == {
        "type": "websocket", "asgi": {"version": "3.0", "spec_version": "2.5"}, "http_version": "1.1", "scheme": "ws",
        "path": "/offer", "raw_path": "/offer", "query_string": "a=%20b", "root_path": "",
        "subprotocols": ["v2.chat", "v1.chat"], "extensions": {"websocket.http.response": {}},
    }  # fmt: skip
    assert ["cookie", "c=1"] in said["headers"]
    assert said["state"].keys() == {"shared"}


# --- the end


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 3000, 4999])
def test_the_application_closes(server: RunningServer, code: int) -> None:
    with Socket(server, f"/close?{code}") as ws:
        assert ws.receive() == ("close", code, "as you wish")
        assert ws.sock.recv(1) == b""
    server.wait_log("after close: websocket.disconnect ClientDisconnected")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (frame(0x88, b"\x0b\xb8bye"), "3000"),
        (frame(0x88), "1005"),
        (frame(0x81, b"\xff"), "1007"),
        (frame(0x83, b"what"), "1002"),
        (b"\x81\x04nope", "1002"),
        (frame(0x82, length=2 << 20), "1009"),
    ],
    ids=["code", "no-code", "not-utf8", "opcode", "no-mask", "too-big"],
)
def test_the_application_hears_why_it_ended(server: RunningServer, tmp_path: Path, sent: bytes, told: str) -> None:
    mark = tmp_path / "mark"
    with Socket(server, f"/?{mark}") as ws:
        ws.raw(sent)
        said = ws.closed()
        assert said == (int(told) if told != "1005" else 1005)
        marked(mark, [f"websocket.disconnect {told}"])


@LEAVING
def test_the_application_hears_that_its_client_is_gone(server: RunningServer, tmp_path: Path, leave: Leave) -> None:
    mark = tmp_path / "mark"
    with Socket(server, f"/?{mark}") as ws:
        ws.send("hi")
        assert ws.receive() == "hi"
        leave(ws.sock)
        marked(mark, ["websocket.disconnect 1006"])


@LEAVING
def test_the_application_hears_that_its_client_leaves_the_handshake(
    server: RunningServer, tmp_path: Path, leave: Leave
) -> None:
    mark = tmp_path / "mark"
    browser = Browser(server)
    browser.send(request(f"/hesitate?{mark}", **SHAKE))
    leave(browser.sock)
    marked(mark, ["websocket.disconnect 1006"])


@pytest.mark.timing
def test_a_client_that_does_not_answer_the_close_is_left(server: RunningServer) -> None:
    with Browser(server) as browser:
        browser.send(request("/close?1000", **SHAKE))
        began_s = time.monotonic()
        assert browser.rest().endswith(b"\x88\x0d\x03\xe8as you wish")
        assert 1.5 < time.monotonic() - began_s < 15


# --- handshakes that come to nothing


@pytest.mark.parametrize("path", ["/deny", "/nowhere"])
def test_denied(server: RunningServer, path: str) -> None:
    with Browser(server) as browser:
        browser.send(request(path, **SHAKE))
        denied = browser.response()
        assert (denied.status, denied.closes) == (403, True)
        assert browser.ended()


@pytest.mark.parametrize("pieces", [1, 300_000])
def test_denied_in_the_applications_words(server: RunningServer, pieces: int) -> None:
    with Browser(server) as browser:
        browser.send(request(f"/deny-with?{pieces}", **SHAKE))
        denied = browser.response()
        assert (denied.status, denied.fields["x-why"], denied.closes) == (401, "no ticket", True)
        assert denied.body == b"no ticket\n" * pieces
        assert browser.ended()


def test_a_denial_that_is_longer_than_the_kernel_takes_ends(server: RunningServer, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Browser(server) as browser:
        browser.send(request(f"/deny-at-length?{mark}", **SHAKE))
        assert browser.response().body == BLOCK * 320
        assert browser.ended()
        marked(mark, ["denied"])


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"sec_websocket_version": "8"}, 426),
        ({"sec_websocket_key": "short"}, 400),
        ({"sec_websocket_protocol": "a, a"}, 400),
    ],
)
def test_a_handshake_that_is_none(server: RunningServer, change: dict[str, str], status: int) -> None:
    answer = exchange(server.address, request("/", **{**SHAKE, **change}) + bytes(100_000))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nSec-WebSocket-Version: 13\r\n" in answer) is (status == 426)


@pytest.mark.parametrize(
    "raw",
    [
        request("/", method="POST", **SHAKE),
        request("/", **{**SHAKE, "connection": "keep-alive"}),
        request("/", minor=0, **SHAKE),
        request("/", **{**SHAKE, "upgrade": "h2c"}),
    ],
    ids=["post", "no-connection", "http-1.0", "h2c"],
)
def test_what_does_not_ask_for_a_websocket_is_a_request_like_others(server: RunningServer, raw: bytes) -> None:
    with Browser(server) as browser:
        browser.send(raw)
        assert browser.response().body == HELLO


def test_no_websocket_begins_behind_a_body(server: RunningServer) -> None:
    """What follows would be the body for one reader and frames for another."""
    with Browser(server) as browser:
        browser.send(request("/echo", body=request("/pid"), **SHAKE))
        answer = browser.response()
        assert (answer.status, answer.body) == (200, request("/pid"))
        assert browser.get().body == HELLO


def test_a_wsgi_application_has_none(shared: Shared) -> None:
    assert fetch(shared(WEB, *ONE), "/", **SHAKE).body == HELLO


# --- an application that does wrong


def test_exceptions_are_told_to_the_log_alone(wronged: RunningServer) -> None:
    with Socket(wronged, "/raise") as ws:
        assert ws.receive() == ("close", 1011, "")
    wronged.wait_log("a secret of the application")
    with Browser(wronged) as browser:
        browser.send(request("/raise?early", **SHAKE))
        failed = browser.response()
        assert (failed.status, b"secret" in failed.body, failed.closes) == (500, False, True)
    with Browser(wronged) as browser:
        browser.send(request("/deny-midway", **SHAKE))
        with pytest.raises((EOFError, ConnectionResetError)):
            browser.response()
    with Socket(wronged) as ws:
        ws.send("on")
        assert ws.receive() == "on"


def test_an_application_that_returns(wronged: RunningServer) -> None:
    with Socket(wronged, "/return") as ws:
        assert ws.closed() == 1000
    with Browser(wronged) as browser:
        browser.send(request("/return?early", **SHAKE))
        assert browser.response().status == 500
    wronged.wait_log(r'handler failed peer=\S+ request="GET /\S*" error=ResponseError')
    wronged.wait_log("without an answer to the handshake")


# --- who is slow, and who is gone


def test_a_reader_that_does_not_read_makes_the_application_wait(server: RunningServer, tmp_path: Path) -> None:
    (worker,) = server.worker_pids()
    mark = tmp_path / "count"
    fetch(server)
    before = rss_kib(worker)
    with Socket(server, f"/flood?{mark}", window=65536):
        eventually(lambda: mark.exists() and mark.read_text(), within_s=15)
        wait_idle(worker)
        assert int(mark.read_text()) < 500, "and the kernel holds some of these"
        assert rss_kib(worker) - before < 8 << 10
        assert fetch(server).body == HELLO
    eventually(lambda: "closed" in mark.read_text(), within_s=30)


def test_an_application_that_does_not_receive_makes_its_client_wait(serve: Serve, gate: Gate) -> None:
    server = serve(ASGI, *ONE, env=gate.env)
    (worker,) = server.worker_pids()
    with Socket(server, "/sink") as ws:
        gate.wait_entered(1)
        before = rss_kib(worker)
        message, whole, sent = frame(0x82, BLOCK), 0, 0
        ws.sock.setblocking(False)
        try:
            while whole < 2000:
                while sent < len(message):
                    sent += ws.sock.send(message[sent:])
                whole, sent = whole + 1, 0
        except BlockingIOError:
            pass
        wait_idle(worker)
        assert whole < 500, "the kernel's buffers took it all"
        assert rss_kib(worker) - before < 8 << 10
        gate.open()
        ws.sock.settimeout(15)
        ws.raw(message[sent:] + frame(0x82))
        assert ws.receive() == str((whole + 1) * len(BLOCK))


@pytest.mark.timing
def test_a_silent_client_is_pinged_and_cut_and_a_live_one_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve(ASGI, *ONE, "--ws-ping", "400ms")
    mark = tmp_path / "mark"
    with Socket(server) as live, Browser(server) as dead:
        dead.send(request(f"/?{mark}", **SHAKE))
        assert dead.head()[0] == 101
        began_s = time.monotonic()
        live.sock.settimeout(0.05)
        while not mark.exists() and time.monotonic() < began_s + 10:
            with pytest.raises(TimeoutError):
                live.receive()  # it answers pings meanwhile
        marked(mark, ["websocket.disconnect 1006"])
        assert 0.4 < time.monotonic() - began_s < 15
        live.sock.settimeout(10)
        live.send("still here")
        assert live.receive() == "still here"


def test_who_reads_none_of_its_messages_is_cut(serve: Serve, tmp_path: Path) -> None:
    server = serve(ASGI, *ONE, "--ws-ping", "400ms")
    mark = tmp_path / "count"
    with Socket(server, f"/flood?{mark}", window=65536):
        eventually(lambda: mark.exists() and "closed" in mark.read_text(), within_s=15)


@pytest.mark.timing
def test_who_reads_slowly_but_keeps_on_is_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve(ASGI, *ONE, "--ws-ping", "400ms")
    mark = tmp_path / "count"
    with Socket(server, f"/flood?{mark}") as ws:
        ends_s = time.monotonic() + 4
        while time.monotonic() < ends_s:
            assert ws.sock.recv(1024)
            fetch(server)  # it is read all the time, but never so much that the kernel takes more
        assert "closed" not in mark.read_text()


def test_who_has_to_wait_for_the_application_is_not_taken_for_silent(serve: Serve, gate: Gate) -> None:
    server = serve(ASGI, *ONE, "--ws-ping", "300ms", env=gate.env)
    with Socket(server, "/sink") as ws, Browser(server) as clock:
        gate.wait_entered(1)
        message = frame(0x82, BLOCK)
        for _ in range(8):  # more than waits for the application, less than fills the kernel
            ws.raw(message)
        clock.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):  # others are silent for five times as long as they may
            clock.sock.recv(1)
        gate.open()
        ws.raw(frame(0x82))
        assert ws.receive() == str(8 * len(BLOCK))


def test_no_ping_is_sent_if_none_is_wished(serve: Serve) -> None:
    server = serve(ASGI, *ONE, "--ws-ping", "0", "--idle-timeout", "300ms")
    with Browser(server) as browser:
        browser.send(request("/", **SHAKE))
        assert browser.head()[0] == 101
        browser.sock.settimeout(1.2)
        with pytest.raises(TimeoutError):
            browser.sock.recv(1)


def test_clients_that_leave_at_any_moment_harm_nobody(server: RunningServer) -> None:
    shake = request("/", **SHAKE)
    for path in (b"/", b"/offer", b"/deny", b"/close?1000", b"/deny-with?1000"):
        for more in (b"", b"\x81", frame(0x81, b"hi"), frame(0x82, BLOCK) * 4, frame(0x88)):
            for leave in (abort, socket.socket.close):
                browser = Browser(server)
                browser.send(shake.replace(b" / ", b" %b " % path) + more)
                leave(browser.sock)
    with Socket(server) as ws:
        ws.send("hi")
        assert ws.receive() == "hi"


# --- around it


def test_tls_and_proxies(serve: Serve) -> None:
    server = serve(ASGI, *ONE, *TLS, *TRUSTED)
    with Socket(server, "/offer", tls=trusting()) as ws:
        said = json.loads(str(ws.receive()))
        assert (said["scheme"], said["client"][0]) == ("wss", "127.0.0.1")
        assert said["extensions"]["tls"]["tls_version"] == 0x0304
        assert ws.closed() == 1000
    with Socket(server, tls=trusting()) as ws:
        ws.send(BLOCK * 20)
        assert ws.receive() == BLOCK * 20
        ws.close_with()
        assert ws.closed() == 1000


@pytest.mark.timing
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_under_tls_the_connection_ends_with_the_close(serve: Serve, loop: str) -> None:
    """Both ends wait for the other one's last word, so a server that lingers would keep its client waiting."""
    server = serve(ASGI, *ONE, *TLS, "--loop", loop)
    with Socket(server, tls=trusting()) as ws:
        began_s = time.monotonic()
        ws.close_with()
        assert ws.closed() == 1000
        assert time.monotonic() - began_s < LINGER_S / 2


def test_a_trusted_proxy_speaks_for_the_client(shared: Shared) -> None:
    server = shared(ASGI, *ONE, *TRUSTED)
    with Socket(server, "/offer", fields=(("X-Forwarded-For", "192.0.2.9"), ("X-Forwarded-Proto", "https"))) as ws:
        said = json.loads(str(ws.receive()))
    assert (said["scheme"], said["client"][0]) == ("wss", "192.0.2.9")


def test_behind_a_proxy_header(serve: Serve) -> None:
    server = serve(ASGI, *ONE, *PROXIED)
    with Browser(server) as browser:
        browser.send(V1 + request("/offer", **SHAKE))
        assert b'"client": ["192.0.2.7", 5555]' in browser.rest()


def test_its_line_in_the_access_log_and_its_count(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    with Place() as place:
        server = serve(ASGI, *ONE, "--access-log", str(log), env=place.env)
        with Socket(server, "/?") as ws:
            ws.send("12345")
            ws.receive()
            ws.close_with()
            assert ws.closed() == 1000
        exchange(server.address, request("/deny", **SHAKE))
        eventually(lambda: log.read_text().count("\n") == 2, within_s=15)
        opened, denied = log.read_text().splitlines()
        assert re.search(r'"GET /\? HTTP/1\.1" 101 7 ', opened), opened
        assert '"GET /deny HTTP/1.1" 403 ' in denied
        totals = eventually(lambda: (found := place.status()["totals"])["requests"] == 2 and found, within_s=15)
        assert totals["errors"] == 0


# --- the worker's end


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 1001), (signal.SIGHUP, 1012)], ids=["stop", "reload"])
def test_a_worker_that_leaves_says_why(serve: Serve, tmp_path: Path, signum: signal.Signals, code: int) -> None:
    mark = tmp_path / "mark"
    server = serve(ASGI, *ONE)
    with Socket(server, f"/?{mark}") as ws, Socket(server, f"/?{mark}", deflate=True) as other:
        for each in (ws, other):
            each.send("hi")
            assert each.receive() == "hi"
        server.signal(signum)
        assert (ws.closed(), other.closed()) == (code, code)
    marked(mark, [f"websocket.disconnect {code}"] * 2)
    if signum is signal.SIGTERM:
        assert server.wait_exit() == 0
    else:
        server.wait_log("reloaded")
        with Socket(server) as ws:
            ws.send("new")
            assert ws.receive() == "new"


def test_a_handshake_that_is_under_way_is_answered_and_then_closed(serve: Serve, gate: Gate) -> None:
    server = serve(ASGI, *ONE, env=gate.env)
    ws = Socket(server, "/gate")
    gate.wait_entered(1)
    server.signal(signal.SIGHUP)
    server.wait_log("reloading")
    server.wait_log("ready", count=1)
    server.wait_workers(2)
    gate.open()
    with ws:
        assert ws.status == 101
        assert ws.closed() == 1012
    server.wait_log("reloaded")


def test_a_client_that_does_not_answer_is_cut_with_the_worker(serve: Serve) -> None:
    server = serve(ASGI, *ONE)
    with Browser(server) as browser:
        browser.send(request("/", **SHAKE))
        assert browser.head()[0] == 101
        server.signal(signal.SIGTERM)
        assert read_to_end(browser.sock) == b"\x88\x02\x03\xe9"
    assert server.wait_exit() == 0
