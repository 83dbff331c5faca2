"""What is under way when a worker leaves is finished, and what is known of a client goes with its connection."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.engines.test_proxies import PROXIED, TRUSTED, V1
from tests.master.test_handover import SOON_S, begin_reload, each_way, totals
from tests.support.client import TIMEOUT_S
from tests.support.kept import KeptClients, some
from tests.support.wait import eventually
from tests.support.web import ASGI, Browser, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.control import Place
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


def goes_on(server: RunningServer, browser: Browser, before: set[int]) -> None:
    """The connection is with the new worker once the old one has left."""
    server.wait_log("reloaded")
    server.wait_workers(1, without=before)
    assert int(browser.get("/pid").body) in server.worker_pids()


@each_way
def test_a_response_that_is_being_sent_is_finished(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "1", env=place.env)
    with Browser(server) as browser:
        browser.send(request("/stream?300"))  # more than the kernel holds
        code, fields = browser.head()
        before = begin_reload(server, place)
        assert (code, fields.get("connection")) == (200, None)
        assert browser._body(fields) == BLOCK * 300
        goes_on(server, browser, before)
        assert totals(place)["cut"] == 0


@each_way
def test_a_body_that_is_arriving_is_read_to_its_end(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "1", env=place.env)
    with Browser(server) as browser, Browser(server) as in_head:
        assert browser.get("/").status == in_head.get("/").status == 200
        body = BLOCK * 20
        whole = request("/echo", method="POST", body=body)
        browser.send(whole[:-600_000])
        in_head.send(b"GET / HT")
        browser.send(whole[-600_000:-500_000])
        before = begin_reload(server, place)
        browser.send(whole[-500_000:])
        in_head.send(b"TP/1.1\r\nHost: localhost\r\n\r\n")
        for each, expected in ((browser, body), (in_head, HELLO)):
            answer = each.response()
            assert (answer.status, answer.body, answer.closes) == (200, expected, False)
        goes_on(server, browser, before)
        assert int(in_head.get("/pid").body) in server.worker_pids()


@each_way
def test_requests_that_were_sent_together_are_all_answered(
    serve: Serve, place: Place, way: tuple[str, ...], gate: Gate
) -> None:
    server = serve(*way, "--workers", "1", env=place.env | gate.env)
    with Browser(server) as browser:
        browser.send(request("/gate") + request("/told") + b"".join(request("/") for _ in range(50)))
        gate.wait_entered(1)
        before = begin_reload(server, place)
        gate.open()
        answers = [browser.response() for _ in range(52)]
        assert {(answer.status, answer.closes) for answer in answers} == {(200, False)}
        goes_on(server, browser, before)


@each_way
def test_who_sends_at_the_very_moment_is_served(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "2", env=place.env)
    with KeptClients(server.address, 100, pause_s=some(0.0, 0.2)) as clients:
        for _ in range(20):
            place.ok("reload")
        clients.wait_more(100)
        found = totals(place)
        assert (found["accepted"], found["cut"], found["connections"]) == (100, 0, 100)
        clients.stop()
    assert clients.losses == []
    assert clients.told_to_close == 0


@each_way
def test_the_time_of_an_idle_client_goes_on(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "1", "--keep-alive", "8", "--header-timeout", "30", env=place.env)
    with Browser(server) as served, Browser(server) as new:
        served.get("/")
        began_s = time.monotonic()
        place.ok("reload")
        # The later the second, the more is between an end in time and one that is counted from there.
        eventually(lambda: time.monotonic() - began_s > 4, within_s=SOON_S)
        again_s = time.monotonic()
        place.ok("reload")
        assert totals(place)["given"] == 4
        assert served.ended()
        ended_s = time.monotonic()
        assert ended_s - began_s > 7.9
        assert ended_s < again_s + 8.0, "it would be later if its time had begun anew"
        assert new.get("/").status == 200, "until its first request it has --header-timeout"


@each_way
def test_over_a_unix_socket_connections_change_hands_as_well(
    serve: Serve, place: Place, way: tuple[str, ...], tmp_path: Path
) -> None:
    server = serve(*way, "--workers", "1", bind=f"unix:{tmp_path}/s", env=place.env)
    before = server.worker_pids()
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(40)]
        first = [json.loads(browser.get("/told").body) for browser in browsers]
        place.ok("reload")
        server.wait_workers(1, without=before)
        assert [json.loads(browser.get("/told").body) for browser in browsers] == first
        assert totals(place)["given"] == 40


def told(browser: Browser, **fields: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(browser.get("/told", **fields).body)
    return said


@each_way
def test_the_client_behind_a_proxy_is_known_to_the_next_worker(
    serve: Serve, place: Place, way: tuple[str, ...], tmp_path: Path
) -> None:
    log = tmp_path / "access"
    server = serve(*way, "--workers", "1", *PROXIED, "--access-log", str(log), env=place.env)
    before = server.worker_pids()
    with Browser(server) as asked, Browser(server) as has_only_said_who_it_is, Browser(server) as local:
        asked.send(V1)
        assert told(asked)["client"] == ["192.0.2.7", "5555"]
        has_only_said_who_it_is.send(V1.replace(b"5555", b"5556"))
        local.send(V1.replace(b"192.0.2.7", b"10.1.2.3"))
        assert told(local, x_forwarded_for="192.0.2.9")["client"][0] == "192.0.2.9"
        place.ok("reload")
        server.wait_workers(1, without=before)
        assert told(asked, x_forwarded_for="192.0.2.9")["client"] == ["192.0.2.7", "5555"], "it is not trusted"
        assert told(has_only_said_who_it_is)["client"] == ["192.0.2.7", "5556"]
        assert told(local, x_forwarded_for="192.0.2.9")["client"][0] == "192.0.2.9"
        assert totals(place)["given"] == 3
    seen = eventually(lambda: len(lines := log.read_text().splitlines()) == 5 and lines, within_s=SOON_S)
    clients = [line.split(" ")[0] for line in seen]
    assert clients == ["192.0.2.7", "192.0.2.9", "192.0.2.7", "192.0.2.7", "192.0.2.9"]


@each_way
def test_a_trusted_proxy_is_trusted_by_the_next_worker(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "1", *TRUSTED, env=place.env)
    before = server.worker_pids()
    with Browser(server) as browser:
        own = told(browser)["client"]
        assert own == [*map(str, browser.sock.getsockname())]
        place.ok("reload")
        server.wait_workers(1, without=before)
        assert told(browser, x_forwarded_for="192.0.2.9", x_forwarded_proto="https")["client"][0] == "192.0.2.9"
        assert told(browser)["client"] == own


# --- recycling under load


@pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed")
@each_way
def test_ab_notices_no_recycling(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "2", "--max-requests", "500", "--log-level", "debug", env=place.env)
    done = run_tool("ab", "-k", "-q", "-n", "60000", "-c", "16", f"http://{server.address}/")
    assert figure(done, r"Complete requests: +(\d+)") == 60000
    assert figure(done, r"Failed requests: +(\d+)") == 0
    assert figure(done, r"Keep-Alive requests: +(\d+)") == 60000, "nobody was told to leave"
    assert server.log.count("worker retired") >= 3
    found = totals(place)
    assert (found["accepted"], found["cut"]) == (16, 0)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@each_way
def test_wrk_notices_no_recycling(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "2", "--max-requests", "500", "--log-level", "debug", env=place.env)
    done = run_tool("wrk", "-t1", "-c16", "-d5s", f"http://{server.address}/")
    assert "Socket errors" not in done
    assert "Non-2xx" not in done
    assert figure(done, r"(\d+) requests in") > 500
    assert server.log.count("worker retired") >= 3
    found = totals(place)
    assert (found["accepted"], found["cut"]) == (17, 0), "wrk tries one before it begins"


def run_tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figure(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


@each_way
def test_a_client_of_any_name_goes_on_as_well(serve: Serve, place: Place, way: tuple[str, ...], tmp_path: Path) -> None:
    """A Unix socket may be bound to a name that begins with a NUL (unix(7), autobind)."""
    server = serve(*way, "--workers", "1", bind=f"unix:{tmp_path}/s", env=place.env)
    before = server.worker_pids()
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(5)]
        for browser in browsers[1:3]:
            browser.close()
            browser.sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            browser.sock.settimeout(TIMEOUT_S)
            browser.sock.bind(b"")
            browser.sock.connect(f"{tmp_path}/s")
        assert not any(browser.get("/pid").closes for browser in browsers)
        place.ok("reload")
        server.wait_workers(1, without=before)
        assert not any(browser.get("/pid").closes for browser in browsers)


INJECT = """
import asyncio, gc, os, socket, time
from prefork.runtime.transfer import TransferMessage, TransferQueue

def give_late():
    \"\"\"Put a connection into the queue that was idle for too long and has a request now; return its answer.\"\"\"
    (queue,) = [it for it in gc.get_objects() if type(it) is TransferQueue]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    now_ns = time.monotonic_ns()
    message = TransferMessage(
        server=("127.0.0.1", 1), client=("127.0.0.1:9", "127.0.0.1", 9), since_ns=now_ns - 75_100_000_000, served=True,
        queue_ms=None, evened=False, master=os.getppid(), sent_ns=now_ns - 2_000_000_000,
    )
    assert queue.give(served.fileno(), message.encode())
    served.close()
    client.settimeout(10)
    with client:
        return client.recv(1000)

def wsgi(environ, start_response):
    body = give_late() if environ["PATH_INFO"] == "/late" else b"answered"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    body = await asyncio.to_thread(give_late) if scope["path"] == "/late" else b"answered"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize("how", [("wsgi",), ("wsgi", "--threads", "2"), ("asgi",), ("asgi", "--loop", "asyncio")])
def test_a_request_that_came_while_its_connection_waited_for_too_long_is_answered(
    serve: Serve, app: AppWriter, how: tuple[str, ...]
) -> None:
    """Its --keep-alive is over when a worker takes it."""
    server = serve(app(INJECT, attribute=how[0]), *how[1:], "--workers", "2")
    with Browser(server) as browser:
        assert browser.get("/late").body.endswith(b"answered")


def test_a_client_that_reads_its_answer_during_a_reload_makes_no_noise(serve: Serve, place: Place) -> None:
    """asyncio still acts on a transport after its protocol was told that the client has read."""
    server = serve(ASGI, "--loop", "asyncio", "--workers", "1", env=place.env)
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(8)]
        for number, browser in enumerate(browsers):
            browser.send(request(f"/big?{100 + 10 * number}"))
            eventually(lambda browser=browser: browser.sock.recv(1, socket.MSG_PEEK), within_s=SOON_S)
        before = begin_reload(server, place)
        for browser in browsers:
            assert not browser.response().closes
        server.wait_log("reloaded")
        server.wait_workers(1, without=before)
        assert not any(browser.get("/pid").closes for browser in browsers)
    assert "callback failed" not in server.log
