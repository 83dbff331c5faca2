"""--slow: who is slow is logged with a stack while it is slow, comes to no harm, and is remembered."""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, read_to_end
from tests.support.control import Place
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import WEB, Browser, request

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
GATED = f"{APPS / 'gated.py'}:handle"
WAITING = f"{APPS / 'waiting.py'}:app"
ONE = ("--workers", "1")
SLOW = ("--slow", "200ms")


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_stack_of_a_slow_request_is_logged_while_it_runs(
    serve: Serve, gate: Gate, place: Place, threads: str
) -> None:
    server = serve(WEB, *ONE, *SLOW, "--threads", threads, env=gate.env | place.env)
    before = server.worker_pids()
    with Browser(server) as browser:
        host, port = browser.sock.getsockname()
        browser.get("/")
        browser.send(request("/gate?12"))
        line = server.wait_log(rf'slow request worker=0 .*serving="{host}:{port} GET /gate\?12" elapsed=0\.\d\ds')
        server.wait_log(r"routes\.py.* in pass_gate", after=line.end())
        assert "wsgi/loop.py" not in server.log, "what is ours is left out"
        gate.open()
        assert browser.response().status == 200
        assert browser.get("/").status == 200
    assert server.log.count("slow request") == 1
    assert server.worker_pids() == before
    (slow,) = eventually(lambda: place.status()["workers"][0]["slow"], within_s=15)
    assert slow["request"] == f"{host}:{port} GET /gate?12"
    assert slow["took_s"] >= 0.2


def test_a_stream_handler_is_slow_while_it_works_and_not_while_its_client_is(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, *ONE, *SLOW, "--threads", "2", env=gate.env)
    with dial(server.address) as silent, dial(server.address) as client:
        client.sendall(b"in\n")
        host, port = client.getsockname()
        server.wait_log(rf"slow request .*serving={host}:{port} ")
        server.wait_log(r"gated\.py.* in pass_gate")
        gate.open()
        assert read_to_end(client).endswith(b"you said: in\n")
        silent.sendall(b"now\n")
        assert read_to_end(silent).endswith(b"you said: now\n")
    assert server.log.count("slow request") == 1


def test_who_holds_the_gil_is_named_without_a_stack(serve: Serve) -> None:
    server = serve(OBEY, *ONE, *SLOW)
    before = server.worker_pids()
    assert exchange(server.address, b"hold_gil 1\n") == b"done\n"
    server.wait_log(r'slow request .*reason="no answer in 250 ms: C code holds the GIL, or the worker is stopped"')
    assert exchange(server.address, b"pid\n") == b"%d\n" % before.pop()


def test_what_a_slow_coroutine_awaits_is_logged(serve: Serve, place: Place) -> None:
    server = serve(WAITING, *ONE, *SLOW, env=place.env)
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(3)]
        for number, browser in enumerate(browsers):
            browser.send(request(f"/wait?0.6{number}"))
        server.wait_log(r"slow request worker=0 .*GET /wait\?0\.6\d")
        server.wait_log(r"waiting\.py.* in _wait_deeper")
        assert all(browser.response().status == 200 for browser in browsers)
        assert place.status()["workers"][0]["slow"][-1]["took_s"] >= 0.6
        assert browsers[0].get("/wait?1").status == 200
        assert browsers[0].get("/wait?0.5").status == 200  # its line tells of those that had none
    lines = re.findall(r"slow request .*", server.log)
    also = sum(int(found) for found in re.findall(r"also=(\d+)", server.log))
    assert len(lines) + also == 5, "each once"


_DAWDLER = """
import asyncio

async def dawdle(seconds):
    await asyncio.sleep(seconds)

async def handle(reader, writer):
    while line := await reader.readline():
        await dawdle(float(line))
        writer.write(b"done\\n")
"""


def test_a_coroutine_handler_is_slow_while_it_works_and_not_while_its_client_is(serve: Serve, app: AppWriter) -> None:
    server = serve(app(_DAWDLER), *ONE, *SLOW)
    with dial(server.address) as silent, dial(server.address) as client:
        host, port = client.getsockname()
        for count in (1, 2):
            client.sendall(b"1.2\n")
            server.wait_log(rf"slow request worker=0 .*serving={host}:{port} elapsed=\d\.\d\ds", count=count)
            assert client.recv(100) == b"done\n"
            for _ in range(20):  # no one of them takes long
                client.sendall(b"0.03\n")
                assert client.recv(100) == b"done\n"
        silent.close()
    server.wait_log(r"app\.py.* in dawdle")
    assert server.log.count("slow request") == 2


def test_a_loop_that_is_blocked_shows_where_and_for_whom(serve: Serve) -> None:
    server = serve(WAITING, *ONE, *SLOW)
    with Browser(server) as waiting, Browser(server) as browser:
        host, port = browser.sock.getsockname()
        waiting.get("/")
        browser.send(request("/block?1"))
        server.wait_log(rf'event loop blocked worker=0 .*serving="{host}:{port} GET /block\?1"')
        server.wait_log(r"waiting\.py.* in block")
        assert browser.response().status == 200


@pytest.mark.timing
def test_lines_are_one_a_second_for_the_whole_server(serve: Serve) -> None:
    server = serve(WEB, "--workers", "2", "--threads", "4", *SLOW)
    began_s = time.monotonic()
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(8)]
        for _ in range(4):
            for browser in browsers:
                browser.send(request("/work?0.6"))  # 0.5 divides the second of a line: which is in time would be chance
            assert all(browser.response().status == 200 for browser in browsers)
        browsers[0].get("/work?1.5")  # its line tells of the others
    lines = server.log.count("slow request")
    also = sum(int(found) for found in re.findall(r"also=(\d+)", server.log))
    assert 2 <= lines <= time.monotonic() - began_s + 1
    assert 25 <= lines + also <= 33, "a master without a processor may come when a request has ended"


def test_a_hung_worker_is_still_killed(serve: Serve) -> None:
    server = serve(WEB, *ONE, *SLOW, "--timeout", "1s")
    before = server.worker_pids()
    with Browser(server) as browser:
        browser.send(request("/spin"))
        server.wait_log("slow request")
        server.wait_log(r"worker hung .*GET /spin")
        server.wait_log("SIGKILL")
    server.wait_workers(1, without=before)


def test_idle_servers_stay_idle(serve: Serve) -> None:
    """A look in --slow, and no more: the master is not to work for nothing."""
    server = serve(WEB, *ONE, "--slow", "1s")
    with Browser(server) as browser:
        browser.get("/")

        def switches() -> int:
            with open(f"/proc/{server.pid}/status") as file:
                return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.MULTILINE)[1])  # type: ignore[index]

        first = switches()
        browser.get("/work?4")
        assert switches() - first <= 12
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
