"""What `prefork status` knows of the work in hand: requests, failures by kind, how long connections waited."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import dial, exchange, read_to_end
from tests.support.control import Place
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import WEB, Browser, request

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

WAITING = f"{APPS / 'waiting.py'}:app"
GATED = f"{APPS / 'gated.py'}:handle"
ONE = ("--workers", "1")


def work(place: Place) -> list[dict[str, Any]]:
    return [entry for worker in place.status()["workers"] for entry in worker["work"]]


def kinds(place: Place) -> dict[str, int]:
    totals = place.status()["totals"]["errors_by_kind"]
    return {kind: count for kind, count in totals.items() if count}


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_row_tells_the_request_that_it_serves(serve: Serve, gate: Gate, place: Place, threads: str) -> None:
    server = serve(WEB, *ONE, "--threads", threads, env=gate.env | place.env)
    target = "/gate?" + "x" * 300
    with Browser(server) as browser:
        host, port = browser.sock.getsockname()
        browser.get("/")
        assert work(place) == []
        browser.send(request(target, method="PROPFIND"))
        gate.wait_entered(1)
        (entry,) = work(place)
        assert entry["busy_s"] >= 0
        whole = f"{host}:{port} PROPFIND {target}"
        assert entry["serving"] == whole[:192]
        gate.open()
        assert browser.response().status == 200
        eventually(lambda: work(place) == [], within_s=15)


def test_an_event_loop_tells_its_oldest_request(serve: Serve, place: Place) -> None:
    server = serve(WAITING, *ONE, "--graceful-timeout", "100ms", env=place.env, expect_traceback=True)
    with Browser(server) as older, Browser(server) as younger:
        host, port = older.sock.getsockname()
        older.send(request("/wait?30"))
        (entry,) = eventually(lambda: work(place), within_s=30)
        assert entry["serving"] == f"{host}:{port} GET /wait?30"
        younger.send(request("/wait?29"))
        oldest = f"{host}:{port} GET /wait?30"
        eventually(lambda: work(place)[0]["serving"] == oldest, within_s=30, what="the older one")


def test_a_stream_handler_tells_whether_it_works_or_waits(serve: Serve, gate: Gate, place: Place) -> None:
    server = serve(GATED, *ONE, "--threads", "2", env=gate.env | place.env)
    silent_server = serve("echo", *ONE, env=place.env, bind=f"unix:{place.root}/echo")
    with dial(server.address) as client:
        client.sendall(b"in\n")
        gate.wait_entered(1)
        host, port = client.getsockname()
        (status,) = [s for s in map(_status_of(place), place.sockets) if s["server"]["pid"] == server.pid]
        (entry,) = [each for worker in status["workers"] for each in worker["work"]]
        assert entry["serving"] == f"{host}:{port}"
        assert entry["busy_s"] is not None
    with dial(silent_server.address):

        def waits() -> Any:
            (status,) = [s for s in map(_status_of(place), place.sockets) if s["server"]["pid"] == silent_server.pid]
            return [each for worker in status["workers"] for each in worker["work"]]

        (entry,) = eventually(waits, within_s=15)
        eventually(lambda: waits()[0]["busy_s"] is None, within_s=15, what="it waits for the client")
        assert entry["serving"] == "unix:"


def _status_of(place: Place) -> Any:
    return lambda path: json.loads(place.ok("status", "--json", "--control", str(path)))


@pytest.mark.parametrize("app", [WEB, WAITING])
def test_failures_are_counted_by_kind(serve: Serve, place: Place, app: str) -> None:
    server = serve(app, *ONE, "--header-timeout", "300ms", env=place.env, expect_traceback=True)
    exchange(server.address, request("/raise", connection="close"))
    assert kinds(place) == {"app": 1}
    with dial(server.address) as client:
        client.sendall(request("/raise-late", connection="close"))
        assert not read_to_end(client).endswith(b"0\r\n\r\n")
    assert kinds(place) == {"app": 1, "aborted": 1}
    exchange(server.address, b"nonsense\r\n\r\n")
    assert kinds(place) == {"app": 1, "aborted": 1, "refused": 1}
    with dial(server.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert read_to_end(client).startswith(b"HTTP/1.1 408 ")
    assert kinds(place) == {"app": 1, "aborted": 1, "refused": 1, "timeout": 1}
    assert place.status()["totals"]["errors"] == 2


@pytest.mark.parametrize("app", [f"{WEB} /big?4000", "asgi"])
def test_a_response_that_nobody_reads_is_a_timeout(serve: Serve, place: Place, tmp_path: Path, app: str) -> None:
    if app == "asgi":
        (tmp_path / "big.py").write_text(_BIG)
        app = f"{tmp_path / 'big.py'}:app /"
    name, path = app.split(" ")
    server = serve(name, *ONE, "--idle-timeout", "500ms", env=place.env)
    with Browser(server) as browser:
        browser.send(request(path))
        eventually(lambda: kinds(place), within_s=20, what="the end of a response")
        assert kinds(place) == {"timeout": 1}


_BIG = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(200_000_000)})
"""


def test_a_connection_that_waited_is_counted_and_its_first_request_says_so(
    serve: Serve, gate: Gate, place: Place, tmp_path: Path
) -> None:
    log = tmp_path / "access"
    server = serve(WEB, *ONE, "--access-log", str(log), "--log-format", "json", env=gate.env | place.env, ready=False)
    eventually(lambda: place.sockets and place.status()["server"]["ready"], within_s=20)
    address = place.status()["listeners"][0]["address"]
    with ExitStack() as stack:
        inside, outside = (stack.enter_context(Browser(address)) for _ in range(2))
        inside.get("/")
        inside.send(request("/gate"))
        gate.wait_entered(1)
        late = stack.enter_context(Browser(address))
        late.send(request("/?late"))
        began_s = work(place)[0]["busy_s"]
        eventually(lambda: work(place)[0]["busy_s"] > began_s + 0.05, within_s=30, what="50 ms have passed")
        gate.open()
        assert late.response().status == 200
        assert late.get("/?again").status == 200
        outside.close()
    lines = {entry["target"]: entry for entry in map(json.loads, log.read_text().splitlines())}
    assert lines["/?late"]["queue_ms"] >= 40
    assert lines["/"]["queue_ms"] is not None
    assert lines["/?again"]["queue_ms"] is None
    assert place.status()["totals"]["queue_wait"]["n"] >= 2
    assert server.running


@pytest.mark.parametrize("app", ["talkback", WEB, WAITING])
def test_waits_are_counted_in_every_engine_and_survive_their_worker(serve: Serve, place: Place, app: str) -> None:
    server = serve(app, *ONE, env=place.env)
    for _ in range(8):
        exchange(server.address, request("/", connection="close") if app != "talkback" else b"\n")
    waits = place.status()["totals"]["queue_wait"]
    assert waits["n"] == 8
    assert waits["p50_ms"] is not None
    place.ok("reload")
    assert place.status()["totals"]["queue_wait"]["n"] == 8
    (worker,) = place.status()["workers"]
    assert worker["queue_wait"]["n"] == 0
