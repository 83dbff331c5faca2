"""What an application and its server write when nobody reads it: no request waits or fails, and the loss is told."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
import tty
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange
from tests.support.server import STOP_S
from tests.support.stuck import fill, read_all
from tests.support.web import Browser, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

SAYS = """
import os, sys

LINE = "x" * 99

def say():
    print(LINE)
    print(LINE, file=sys.stderr, flush=True)

def wsgi(environ, start_response):
    say()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    environ["wsgi.errors"].write(LINE + "\\n")
    return [b"ok"]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    say()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

def stream(conn):
    say()
    conn.sendall(b"ok")

async def streams(reader, writer):
    say()
    writer.write(b"ok")
    await writer.drain()
    writer.close()
"""
HTTP = [
    pytest.param("wsgi", (), id="wsgi", marks=pytest.mark.smoke),
    pytest.param("wsgi", ("--threads", "3"), id="wsgi-threads"),
    pytest.param("asgi", (), id="asgi"),
    pytest.param("asgi", ("--loop", "asyncio"), id="asgi-asyncio"),
    pytest.param("wsgi", ("--preload",), id="wsgi-preload"),
]
STREAMS = [
    pytest.param("stream", ("--threads", "2"), id="threads"),
    pytest.param("streams", (), id="coroutines"),
]
REQUESTS = 500
ONCE_S = 0.1  # as long as a writer waits, once
WHOLE = re.compile(r'x{99}|127\.0\.0\.1 - - \[.*\] "GET / HTTP/1\.1" 200 2 "-" "-" \d+')
LOST = re.compile(r"access log lines lost count=(\d+)")


class Output:
    """TEST. The reading end of a server's standard output: of a pipe, a socket, or a terminal."""

    def __init__(self, kind: str = "pipe") -> None:
        if kind == "pipe":
            self.fd, self.server_end = os.pipe()
        elif kind == "terminal":
            self.fd, self.server_end = os.openpty()
            tty.setraw(self.server_end)
        else:
            self.fd, self.server_end = (end.detach() for end in socket.socketpair())

    def fill(self) -> None:
        """Leave no room; the description that the server shares is blocking again afterwards."""
        fill(self.server_end)

    def read(self) -> str:
        """Read what there is."""
        return read_all(self.fd)


@pytest.fixture(params=["pipe", "socket", "terminal"])
def output(request: pytest.FixtureRequest) -> Iterator[Output]:
    """A standard output that nobody reads."""
    with ExitStack() as stack:
        made = Output(request.param)
        stack.callback(os.close, made.fd)
        stack.callback(os.close, made.server_end)
        yield made


ONTO_STDOUT = "import os, sys; os.dup2(int(sys.argv[1]), 1); os.execv(sys.argv[2], sys.argv[2:])"


def serve_into(serve: Serve, output: Output, *args: str) -> RunningServer:
    """Start a server with this standard output; its log is read as always."""
    return serve(
        *args,
        "--workers", "1",
        pass_fds=[output.server_end],
        wrapper=[sys.executable, "-c", ONTO_STDOUT, str(output.server_end)],
    )  # fmt: skip


def took_s(server: RunningServer, read: Callable[[], object] = lambda: None) -> float:
    """How long the requests take, one after the other, on one connection; `read` is called now and then."""
    began = time.monotonic()
    with Browser(server) as browser:
        for number in range(REQUESTS):
            assert browser.get().body == b"ok"
            if number % 50 == 0:
                read()
    return time.monotonic() - began


@pytest.mark.parametrize("output", ["pipe"], indirect=True)
@pytest.mark.parametrize(("attribute", "options"), HTTP)
def test_a_pipe_that_nobody_reads_holds_up_no_request(
    serve: Serve, app: AppWriter, output: Output, attribute: str, options: tuple[str, ...]
) -> None:
    """Neither the access log nor print(); when it is read again, lines are whole, and the loss is told to the line."""
    server = serve_into(serve, output, app(SAYS, attribute=attribute), *options, "--access-log", "-")
    before: list[str] = []
    usual_s = took_s(server, lambda: before.append(output.read()))
    before.append(output.read())
    output.fill()
    stuck_s = took_s(server)
    assert stuck_s < 2 * usual_s + 2 * ONCE_S + 0.3, "one wait of the access log, one of print()"
    output.read()
    fetch(server)
    server.wait_log(LOST.pattern)
    server.wait_log(r"output lost stream=stdout count=\d+ bytes=\d+")
    after = output.read()
    assert all(WHOLE.fullmatch(line) for line in after.splitlines() if line)
    lost = sum(map(int, LOST.findall(server.log)))
    said = sum(int(size) for size in re.findall(r"output lost stream=stdout count=\d+ bytes=(\d+)", server.log))
    assert "".join(before).count("GET") == REQUESTS
    assert lost == REQUESTS, "every line, and the count says so"
    assert said == REQUESTS * 100
    assert server.log.count("x" * 99) >= REQUESTS, "standard error was read all the time"


@pytest.mark.parametrize(("attribute", "options"), STREAMS)
def test_handlers_that_print_are_not_held_up(
    serve: Serve, app: AppWriter, output: Output, attribute: str, options: tuple[str, ...]
) -> None:
    server = serve_into(serve, output, app(SAYS, attribute=attribute), *options)
    output.fill()
    began = time.monotonic()
    for _ in range(100):
        assert exchange(server.address, b"") == b"ok"
    assert time.monotonic() - began < 100 * ONCE_S / 2
    output.read()
    assert exchange(server.address, b"") == b"ok"
    server.wait_log("output lost stream=stdout")
    sizes = re.findall(r"output lost stream=stdout count=\d+ bytes=(\d+)", server.log)
    lost = sum(map(int, sizes))
    assert 0 < lost <= 100 * 100
    # A terminal may still take some, as the kernel moves what it holds from one buffer to another.
    assert lost == 100 * 100 or os.isatty(output.fd)
    assert os.get_blocking(output.server_end), "it is not ours alone"


def test_a_loss_is_told_at_the_end_of_a_worker(serve: Serve, app: AppWriter) -> None:
    output = Output()
    server = serve_into(serve, output, app(SAYS, attribute="wsgi"), "--access-log", "-")
    output.fill()
    for _ in range(5):
        assert fetch(server).body == b"ok"
    assert server.stop(within_s=STOP_S) == 0
    assert LOST.findall(server.log) == ["5"]
    assert re.search("output lost stream=stdout .*bytes=500$", server.log, re.MULTILINE)
    os.close(output.fd)
    os.close(output.server_end)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", ">&- <&-"])
@pytest.mark.parametrize(("attribute", "options"), [*HTTP, *STREAMS])
def test_standard_output_that_takes_nothing_fails_no_request(
    serve: Serve, app: AppWriter, redirection: str, attribute: str, options: tuple[str, ...]
) -> None:
    wrapper = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    server = serve(app(SAYS, attribute=attribute), *options, "--workers", "1", wrapper=wrapper)
    for _ in range(5):
        if attribute in ("wsgi", "asgi"):
            assert fetch(server).body == b"ok"
        else:
            assert exchange(server.address, b"") == b"ok"
    assert server.stop(within_s=STOP_S) == 0
    assert ("cannot write output stream=stdout" in server.log) == (redirection == ">/dev/full")


def test_a_reader_that_is_gone_fails_no_request(serve: Serve, app: AppWriter) -> None:
    output = Output()
    server = serve_into(serve, output, app(SAYS, attribute="wsgi"))
    os.close(output.fd)
    os.close(output.server_end)
    for _ in range(5):
        assert fetch(server).body == b"ok"
    server.wait_log('cannot write output stream=stdout reason="Broken pipe"')


SHOWS = """
import sys

def app(environ, start_response):
    out = sys.stdout
    start_response("200 OK", [("Content-Type", "text/plain")])
    out.buffer.write(b"bytes\\n")
    out.write("\\u00e9\\n")
    print("flushed", flush=True)
    facts = (out.encoding, out.errors, out.fileno(), out.isatty(), out.line_buffering, out.name, out.mode,
             out is sys.__stdout__, sys.stderr.fileno(), sys.stderr.errors)
    return [repr(facts).encode()]
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_streams_are_as_python_made_them(serve: Serve, app: AppWriter, unbuffered: str) -> None:
    env = {"PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "latin1:replace"}
    server = serve(app(SHOWS, attribute="app"), "--workers", "1", env=env)
    facts = ("iso8859-1", "replace", 1, False, False, "<stdout>", "w", True, 2, "backslashreplace")
    assert fetch(server).body.decode() == repr(facts)
    server.wait_log(r"^\\xe9\nflushed$")
    assert "bytes\n" in server.log
