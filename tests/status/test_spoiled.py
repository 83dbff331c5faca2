"""A worker that writes over the whole scoreboard: figures are wrong, and nobody stumbles over them."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from prefork.status.histogram import Histogram
from prefork.status.scoreboard import CELLS, Scoreboard
from tests.support.admin import ADMIN, address_of, admin_pid, status, workers_of
from tests.support.client import dial, exchange, read_to_end
from tests.support.processes import alive
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve
    from tests.support.control import Place

pytestmark = pytest.mark.slow

SPOILER = """
import gc, os, threading, time
from prefork.status.scoreboard import Scoreboard

def spoil(pattern):
    (board,) = [each for each in gc.get_objects() if isinstance(each, Scoreboard)]
    start = 0
    until = time.monotonic() + 3
    while time.monotonic() < until:
        size = len(board.memory) - start
        board.memory[start:] = os.urandom(size) if pattern == b"random" else bytes([int(pattern)]) * size
        time.sleep(0.01)
    os._exit(7)

def handle(conn):
    word = conn.readline().strip()
    if word:
        threading.Thread(target=spoil, args=(word,)).start()
    conn.sendall(b"%d\\n" % os.getpid())
"""


@pytest.mark.parametrize("pattern", ["255", "127", "128", "1", "random"])
def test_nobody_stumbles_over_a_spoiled_scoreboard(serve: Serve, app: AppWriter, place: Place, pattern: str) -> None:
    server = serve(app(SPOILER), "--workers", "2", "--slow", "100ms", *ADMIN, env=place.env)
    address, admin = address_of(server), admin_pid(server)
    for _ in range(20):
        exchange(server.address, b"\n")
    before = status(address)["totals"]
    liar = int(exchange(server.address, pattern.encode() + b"\n"))
    while alive(liar):
        now = status(address)["totals"]
        assert all(now[key] >= before[key] for key in ("accepted", "requests", "errors", "bytes_in", "bytes_out"))
        before = now
        assert fetch(address, "/metrics").status == 200
        for command in (("status",), ("status", "--json"), ("deaths",), ("stack",)):
            done = place.run(*command)
            assert done.returncode in (0, 1), done.stderr
            assert "Traceback" not in done.stderr
            assert "\x1b" not in done.stdout
    eventually(lambda: len(workers_of(server) - {liar}) == 2, within_s=60, what="two workers")
    assert exchange(server.address, b"\n")
    now = status(address)
    assert all(now["totals"][key] >= before[key] for key in ("accepted", "requests"))
    assert json.loads(place.run("status", "--json").stdout)["server"]["workers"] == 2
    assert alive(admin)
    assert "Traceback" not in server.log
    assert len(server.log) < 100_000
    assert server.stop() == 0


SPOIL_ONCE = """
import gc, struct
from prefork.status.scoreboard import Scoreboard

def spoil(path):
    value = path.rpartition("/")[2]
    if value:
        (board,) = [each for each in gc.get_objects() if isinstance(each, Scoreboard)]
        board.memory[:] = struct.pack("q", int(value)) * (len(board.memory) // 8)
    return b"ok"

def wsgi(environ, start_response):
    body = spoil(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    body = spoil(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, 1])
@pytest.mark.parametrize("way", [("wsgi",), ("wsgi", "--threads", "2"), ("asgi",), ("asgi", "--loop", "asyncio")])
def test_workers_serve_again_after_a_scoreboard_was_spoiled(
    serve: Serve, app: AppWriter, way: tuple[str, ...], value: int
) -> None:
    name, *options = way
    spec = app(SPOIL_ONCE, attribute=name)
    server = serve(spec, *options, "--workers", "2", "--timeout", "3", expect_traceback=True)

    def answered(path: str = "/") -> bool:
        try:
            with dial(server.address, timeout_s=2) as sock:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                return read_to_end(sock).endswith(b"ok")
        except OSError:
            return False

    answered(f"/{value}")
    eventually(lambda: all(answered() for _ in range(8)), within_s=30, what="answers again")
    assert server.running
    server.signal(signal.SIGQUIT)  # a request that met a spoiled row may have been left half done
    assert server.wait_exit() == 0


@pytest.mark.parametrize("value", [-1, -(2**63), 2**63 - 1])
def test_what_cannot_be_counts_as_nothing(value: int) -> None:
    board = Scoreboard(groups=1, threads=2)
    for thread in range(2):
        board.row(0, thread).cells[:] = memoryview((value).to_bytes(8, "little", signed=True) * CELLS).cast("q")
    reading = board.read(0)
    assert set(reading.counters.values()) == {0}
    assert (reading.since_ns, reading.unit_ns, reading.moved_ns, reading.held) == (0, 0, 0, 0)
    assert not any(board.queue_waits(0))
    assert board.histogram(0) == Histogram(2)
    assert board.begun(0)[0] == 0
