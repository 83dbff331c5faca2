"""Start, reload, stop and death of ASGI workers: the application's lifespan, WebSockets and streams of events.

What a client sees of WSGI and ASGI alike is in the modules of the folder above.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import socket
import ssl
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import HELLO
from tests.engines.asgi.test_websocket import SHAKE
from tests.engines.test_http_life import FAITHFUL, FRESH, TWO
from tests.support.client import abort
from tests.support.load import Load
from tests.support.sockets import Socket
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually, marked
from tests.support.ways import LOOPS, ONE, Way
from tests.support.web import ASGI, Browser, fetch, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

# --- the lifespan


@pytest.mark.smoke
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_application_shuts_down_after_its_last_response(
    serve: Serve, gate: Gate, tmp_path: Path, loop: str
) -> None:
    mark = tmp_path / "mark"
    server = serve(ASGI, *ONE, "--loop", loop, env={**gate.env, "LIFESPAN_MARK": str(mark)})
    with Browser(server) as browser:
        browser.get("/state")
        browser.send(request("/gate"))
        gate.wait_entered(1)
        server.signal(signal.SIGTERM)
        server.wait_log("stopping")
        assert not mark.exists()
        gate.open()
        assert browser.response().body == HELLO
    assert server.wait_exit() == 0
    assert mark.read_text() == "shut down after 1\n"


def test_an_application_that_cannot_start_is_one_message_and_an_exit_code(serve: Serve) -> None:
    server = serve(ASGI, "--workers", "2", env={"LIFESPAN": "fail"}, ready=False, expected_exit=3)
    assert server.wait_exit() == 3
    assert server.log.count("the database is not there") == 1, server.log
    assert "ready workers" not in server.log


def test_a_failure_that_tells_its_traceback_is_told_once(serve: Serve) -> None:
    env = {"LIFESPAN": "fail-and-raise"}
    server = serve(ASGI, *ONE, env=env, ready=False, expected_exit=3, expect_traceback=True)
    assert server.wait_exit() == 3
    assert server.log.count("Traceback") == 1, server.log


@pytest.mark.parametrize("how", ["raise", "raise-late"])
def test_an_exception_means_that_there_is_no_lifespan(serve: Serve, how: str) -> None:
    server = serve(ASGI, *ONE, env={"LIFESPAN": how}, expect_traceback=True)
    assert fetch(server).body == HELLO
    assert ("lifespan given up" in server.log) is (how == "raise-late"), "it had asked for its order"
    assert server.stop() == 0


@pytest.mark.parametrize(("how", "error"), [("raise", "no lifespan here"), ("raise-late", "began, and gave up")])
def test_a_lifespan_that_is_required(serve: Serve, how: str, error: str) -> None:
    options = {"env": {"LIFESPAN": how}, "ready": False, "expected_exit": 3, "expect_traceback": True}
    server = serve(ASGI, *ONE, "--lifespan", "on", **options)
    assert server.wait_exit() == 3
    assert "which --lifespan on requires" in server.log
    assert f"\nRuntimeError: {error}" in server.log
    assert server.log.count("Traceback") == 1, server.log
    assert "in _run" not in server.log, "the frames are the application's"


def test_a_lifespan_that_is_required_and_there(serve: Serve) -> None:
    server = serve(ASGI, *ONE, "--lifespan", "on")
    assert fetch(server).body == HELLO
    assert server.stop() == 0


@pytest.mark.parametrize("how", ["fail", "raise", "shutdown-fails"])
def test_a_lifespan_that_is_not_wanted(serve: Serve, how: str) -> None:
    server = serve(ASGI, *ONE, "--lifespan", "off", env={"LIFESPAN": how})
    assert fetch(server).body == HELLO
    assert server.stop() == 0
    assert "database" not in server.log


def test_a_start_that_hangs_is_ended(serve: Serve, gate: Gate) -> None:
    env = {**gate.env, "LIFESPAN": "gate"}
    server = serve(ASGI, *ONE, "--boot-timeout", "3", env=env, ready=False, expected_exit=3)
    gate.wait_entered(1)
    assert server.wait_exit() == 3


def test_a_stop_during_the_start(serve: Serve, gate: Gate) -> None:
    server = serve(ASGI, *ONE, env={**gate.env, "LIFESPAN": "gate"}, ready=False)
    gate.wait_entered(1)
    assert server.stop() == 0


def test_a_shutdown_that_fails_is_told(serve: Serve) -> None:
    server = serve(ASGI, *ONE, env={"LIFESPAN": "shutdown-fails"})
    assert server.stop() == 0
    assert "the database did not close" in server.log


def test_an_application_that_asks_for_more_after_its_shutdown_makes_no_noise(serve: Serve) -> None:
    """As many do, in a loop without an end."""
    server = serve(ASGI, *ONE, env={"LIFESPAN": "ask-again"})
    assert server.stop() == 0
    assert "lifespan" not in server.log


def test_what_is_wrapped_around_a_lifespan_can_close_its_own_things(serve: Serve) -> None:
    server = serve(ASGI, *ONE, env={"LIFESPAN": "close-behind"})
    assert server.stop() == 0
    assert "closed behind it" in server.log
    assert "lifespan" not in server.log


def test_an_application_that_does_not_return_from_its_shutdown_is_cut(serve: Serve) -> None:
    server = serve(ASGI, *ONE, "--graceful-timeout", "1", env={"LIFESPAN": "never-return"})
    assert server.stop() == 0
    assert server.log.count("lifespan cut") == 1, server.log
    assert "lifespan given up" not in server.log


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks are never eager before 3.12")
def test_an_applications_eager_tasks_are_its_own_affair(serve: Serve) -> None:
    server = serve(ASGI, *ONE, "--loop", "asyncio", env={"LIFESPAN": "eager"})
    with Browser(server) as browser:
        browser.send(request() * 500)  # no stack is deep enough for them
        for _ in range(500):
            assert browser.response().body == HELLO
    with Socket(server) as ws:
        ws.send("on")
        assert ws.receive() == "on"
    assert server.stop() == 0
    assert "connections cut" not in server.log, "calls that had returned were counted on"


def test_a_reload_whose_application_cannot_start_is_abandoned(serve: Serve, tmp_path: Path) -> None:
    source = (
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'lifespan':\n"
        "        await receive()\n"
        "        await send({'type': 'lifespan.startup.%s'})\n"
        "        await receive()\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'served'})\n"
    )
    file = tmp_path / "site.py"
    file.write_text(source % "complete")
    server = serve(f"{file}:app", *ONE, expect_traceback=True)
    before = server.worker_pids()
    file.write_text(source % "failed")
    server.signal(signal.SIGHUP)
    server.wait_log("reload abandoned")
    assert fetch(server).body == b"served"
    assert server.worker_pids() == before


# --- stop


def test_events_end_when_the_worker_does(serve: Serve) -> None:
    """Those that listen; and also those that begin only now."""
    server = serve(ASGI, *ONE, "--keep-alive", "500ms")
    with Browser(server) as browser, Browser(server) as later:
        browser.send(request("/tick"))
        assert browser.head()[1]["content-type"] == "text/event-stream"
        later.send(request("/tick")[:-2])
        fetch(server)
        server.signal(signal.SIGTERM)
        assert browser.rest().endswith(b"\r\nb\r\ndata: end\n\n\r\n0\r\n\r\n") or browser.rest() == b""
        later.send(b"\r\n")
        assert b"data: end\n\n" in later.response().body
    assert server.wait_exit(within_s=15) == 0
    assert "connections cut" not in server.log


def test_who_does_not_listen_is_cut_and_counted(serve: Serve) -> None:
    server = serve(ASGI, *ONE, "--graceful-timeout", "500ms")
    with Browser(server) as browser, Browser(server) as other:
        for each in (browser, other):
            each.send(request("/tick?deaf"))
            assert each.head()[0] == 200
        server.signal(signal.SIGTERM)
        for each in (browser, other):
            with contextlib.suppress(ConnectionResetError):
                assert b"data: end" not in each.rest()
    assert server.wait_exit() == 0
    server.wait_log(r"connections cut count=2 after=0\.5s")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_who_has_left_a_handshake_that_nobody_answers_is_cut_as_well(
    serve: Serve, gate: Gate, tmp_path: Path, loop: str
) -> None:
    mark = tmp_path / "mark"
    env = {**gate.env, "LIFESPAN_MARK": str(mark)}
    server = serve(ASGI, *ONE, "--loop", loop, "--graceful-timeout", "300ms", env=env)
    with Browser(server) as browser:
        browser.send(request("/gate", **SHAKE) + b"\x81")  # so nothing is read any more
        gate.wait_entered(1)
    assert server.stop() == 0
    assert "worker died" not in server.log
    assert mark.read_text() == "shut down after 0\n"


def test_a_handshake_that_waits_is_refused_in_the_end(serve: Serve, gate: Gate) -> None:
    server = serve(ASGI, *ONE, "--graceful-timeout", "300ms", env=gate.env)
    with Browser(server) as browser:
        browser.send(request("/gate", **SHAKE))
        gate.wait_entered(1)
        server.signal(signal.SIGTERM)
        assert browser.response().status == 503
    assert server.wait_exit(within_s=15) == 0


# --- reload


class Sockets:
    """Clients of WebSockets and of events, a thread each: they stay until they are told to go, and come again.

    `ends` counts how their connections ended; `served` counts messages.
    """

    def __init__(self, server: RunningServer, *, sockets: int = 3, listeners: int = 2) -> None:
        self._server = server
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self.ends = Counter[object]()
        self.served = 0
        self._threads = [threading.Thread(target=self._loop, args=(self._talk,)) for _ in range(sockets)]
        self._threads += [threading.Thread(target=self._loop, args=(self._listen,)) for _ in range(listeners)]

    def __enter__(self) -> Sockets:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _loop(self, act: object) -> None:
        while not self._enough.is_set():
            try:
                how = act()  # type: ignore[operator] # one of the two below
            except (OSError, EOFError, AssertionError) as error:
                how = repr(error)
            with self._lock:
                self.ends[how] += 1

    def _talk(self) -> object:
        with Socket(self._server) as ws:
            if ws.status != 101:
                return ws.status
            while not self._enough.is_set():
                if not ws.heard:  # the Close may have come with the handshake's answer
                    ws.send("message")
                heard = ws.receive()
                if isinstance(heard, tuple):
                    return heard[1]
                assert heard == "message"
                self.served += 1
                self._enough.wait(0.01)
            ws.close_with(1000)
            return ws.closed()

    def _listen(self) -> object:
        with Browser(self._server) as browser:
            browser.send(request("/tick"))
            assert browser.head()[0] == 200
            heard = b""
            while not heard.endswith(b"0\r\n\r\n"):
                heard += browser.exactly(1)
                if self._enough.is_set():
                    return "left"
            return "events ended" if b"data: end\n\n" in heard else "events broke off"


def reload_times(server: RunningServer, times: int) -> Counter[object]:
    """Reload so often under all kinds of clients at once; return how the long ones ended."""
    with Load(server.address, FAITHFUL, FRESH) as load, Sockets(server) as long:
        for turn in range(1, times + 1):
            served = long.served
            load.wait_more(20)
            eventually(lambda served=served: long.served > served + 5, within_s=20)
            server.signal(signal.SIGHUP)
            server.wait_log("reloaded", count=turn, within_s=30)
        load.wait_more(20)
    assert not load.failed, load.failures
    print(f"{times} reloads: {load.counts.total()} requests; long ones: {dict(long.ends)}, {long.served} messages")
    assert set(long.ends) <= {1012, 1000, "events ended", "left"}, long.ends
    return long.ends


@pytest.mark.parametrize(
    ("how", "times"),
    [
        ((), 1),
        pytest.param(("--loop", "asyncio"), 2),
        pytest.param(("--preload",), 2),
    ],
)
def test_a_reload_under_all_kinds_of_clients_loses_nothing(serve: Serve, how: tuple[str, ...], times: int) -> None:
    ends = reload_times(serve(ASGI, "--workers", "2", "--keep-alive", "500ms", *how), times)
    assert ends[1012] >= 3
    assert ends["events ended"] >= 2


def test_twenty_reloads_under_all_kinds_of_clients_lose_nothing(serve: Serve) -> None:
    reload_times(serve(ASGI, *TWO), 20)


@pytest.mark.soak
@pytest.mark.timeout(1_200)
def test_a_hundred_reloads_under_all_kinds_of_clients_lose_nothing(serve: Serve) -> None:
    faulthandler.cancel_dump_traceback_later()  # it is no hang, and to dump threads that run can crash
    reload_times(serve(ASGI, *TWO), 100)


# --- around HTTP


# --- a client that leaves


@pytest.mark.parametrize("way", LOOPS)
@pytest.mark.parametrize("leave", [abort, socket.socket.close, ssl.SSLSocket.unwrap], ids=["reset", "close", "bye"])
def test_a_client_that_leaves_under_tls_makes_no_noise(
    shared: Shared, tmp_path: Path, way: Way, leave: Callable[[socket.socket], object]
) -> None:
    secure, mark = shared(*way, *ONE, *TLS), tmp_path / "mark"
    with Browser(secure, tls=trusting()) as browser:
        browser.send(request(f"/too-late?{mark}"))
        marked(mark, ["begun"])
        with contextlib.suppress(ssl.SSLError):
            leave(browser.sock)
        marked(mark, ["begun", "answered"])
    assert fetch(secure, tls=trusting()).body == HELLO
    assert "eof_received" not in secure.log
    assert "handler failed" not in secure.log
