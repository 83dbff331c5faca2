"""WebSockets of WSGI applications that look for the client's socket in the environ, as flask-sock does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.server import APPS
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.control import Place

pytestmark = pytest.mark.slow

APP = f"{APPS / 'site_flask_sock.py'}:app"
ONE = "--workers", "1"
UPGRADE = {"connection": "Upgrade", "upgrade": "websocket"}


def test_messages_go_both_ways_and_others_are_served_beside(serve: Serve) -> None:
    server = serve(APP, *ONE, "--threads", "3")
    with connect(f"ws://{server.address}/echo") as one, connect(f"ws://{server.address}/echo") as other:
        for n in range(50):
            one.send(f"one {n}")
            other.send(b"x" * n * 1000)
            assert (one.recv(timeout=10), other.recv(timeout=10)) == (f"one {n}", b"x" * n * 1000)
            assert fetch(server, "/").body == b"ok"
    assert fetch(server, "/").body == b"ok"


def test_what_the_application_returns_is_not_sent(serve: Serve, place: Place, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve(APP, *ONE, "--threads", "2", "--access-log", str(log), env=place.env)
    for _ in range(5):
        with connect(f"ws://{server.address}/once") as client:
            assert str(client.recv(timeout=10)).startswith("from ")
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1000
    totals = eventually(lambda: (found := place.status()["totals"])["closed"] == 5 and found, within_s=20)
    assert (totals["requests"], totals["errors"], totals["client_gone"]) == (5, 0, 0)
    assert [line.split()[8] for line in log.read_text().splitlines()] == ["101"] * 5
    assert "Traceback" not in server.log


def test_a_request_for_a_websocket_that_is_answered_over_http(serve: Serve) -> None:
    server = serve(APP, *ONE, "--threads", "2")
    with Browser(server) as browser:
        for path, status in (("/", 400), ("/nowhere", 404)):  # so says werkzeug
            assert browser.get(path, **UPGRADE).status == status
        with pytest.raises(InvalidStatus):
            connect(f"ws://{server.address}/nowhere")
        assert browser.get("/").body == b"ok"


def test_its_time_is_not_that_of_a_request(serve: Serve) -> None:
    server = serve(APP, *ONE, "--threads", "2", "--timeout", "1")
    with connect(f"ws://{server.address}/echo") as client:
        with pytest.raises(TimeoutError):
            client.recv(timeout=3)
        client.send("still there")
        assert client.recv(timeout=10) == "still there"
    assert "killing" not in server.log


@pytest.mark.parametrize("cause", ["stop", "reload"])
def test_it_ends_with_the_graceful_timeout(serve: Serve, place: Place, cause: str) -> None:
    server = serve(APP, *ONE, "--threads", "2", "--graceful-timeout", "1", env=place.env)
    with connect(f"ws://{server.address}/echo") as client:
        client.send("a")
        assert client.recv(timeout=10) == "a"
        if cause == "stop":
            server.ask_to_stop()
        else:
            place.ok("reload")
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=15)
    if cause == "reload":
        assert fetch(server, "/").body == b"ok"


@pytest.mark.parametrize("flags", [("--threads", "1"), ("--threads", "2", *TLS)], ids=["in the loop", "tls"])
def test_where_it_cannot_be_a_line_says_what_to_do(serve: Serve, flags: tuple[str, ...]) -> None:
    server = serve(APP, *ONE, *flags, expect_traceback=True)
    with Browser(server, tls=trusting() if "--tls-cert" in flags else None) as browser:
        for _ in range(2):
            fields = {"sec_websocket_version": "13", "sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA=="}
            browser.send(request("/echo", **UPGRADE, **fields))
            assert browser.response().status == 500
    server.wait_log('WARNING .*no WebSocket for a WSGI application hint="a WSGI application speaks WebSocket only with')
    assert server.log.count("no WebSocket for a WSGI application") == 1
