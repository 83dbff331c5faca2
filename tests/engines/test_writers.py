"""What an application and its server write when nobody reads it: no request waits or fails, and the loss is told."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange
from tests.support.processes import session_members
from tests.support.server import ROOT, STOP_S, clean_environment
from tests.support.stuck import fill, read_all
from tests.support.users import as_root
from tests.support.wait import eventually
from tests.support.web import Browser, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


def serve_into(serve: Serve, output: Output, *args: str, env: dict[str, str] | None = None) -> RunningServer:
    """Start a server with this standard output; its log is read as always."""
    return serve(
        *args,
        "--workers", "1",
        pass_fds=[output.server_end],
        env=env,
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


ECHOES = """
import logging, sys

logging.getLogger("prefork").addHandler(logging.StreamHandler(sys.stdout))

def app(environ, start_response):
    print("x" * 9999, flush=True)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_loss_is_not_told_to_handlers_that_print_while_something_is_printed(
    serve: Serve, app: AppWriter, unbuffered: str
) -> None:
    output = Output()
    env = {"PYTHONUNBUFFERED": unbuffered}
    server = serve_into(serve, output, app(ECHOES, attribute="app"), env=env)
    output.fill()
    for _ in range(5):
        assert fetch(server).body == b"ok"
    output.read()
    assert fetch(server).body == b"ok"
    server.wait_log("output lost stream=stdout")
    assert "reentrant" not in server.log
    os.close(output.fd)
    os.close(output.server_end)


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


# --- readers of other kinds, and other writers

LONG = 900
ACCESS = re.compile(rf'127\.0\.0\.1 - - \[[^]]*\] "GET /(\w)\1{{{LONG - 1}}} HTTP/1\.1" 200 \d+ "-" "-" \d+')


@as_root
def test_lines_of_several_workers_are_whole_although_they_cannot_open_the_pipe(serve: Serve) -> None:
    """It is root's, so they write to what the master has opened."""
    output = Output()
    server = serve_into(serve, output, "hello", "--access-log", "-", "--user", "nobody", "--threads", "4")
    got: list[str] = []

    def ask(letter: str) -> None:
        with Browser(server) as browser:
            for _ in range(100):
                assert browser.get("/" + letter * LONG).status == 200

    clients = [threading.Thread(target=ask, args=(letter,)) for letter in "abcdef"]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        if select.select([output.fd], [], [], 0.1)[0]:
            got.append(output.read())
    assert server.stop() == 0
    lines = "".join([*got, output.read()]).splitlines()
    assert len(lines) == 600
    assert all(map(ACCESS.fullmatch, lines))
    os.close(output.fd)
    os.close(output.server_end)


CONFIGURES = """
import logging, sys
import prefork

logging.basicConfig(level="INFO", stream=sys.stdout)
log = logging.getLogger("shop")

def app(environ, start_response):
    log.info("x" * 999)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

if __name__ == "__main__":
    sys.exit(prefork.serve(app, bind="127.0.0.1:0", workers=1, log=sys.argv[1], control="none"))
"""


def test_logging_that_was_set_up_before_the_server_holds_up_no_request(tmp_path: Path) -> None:
    output, script, log = Output(), tmp_path / "shop.py", tmp_path / "log"
    script.write_text(CONFIGURES)
    command = [sys.executable, "-c", ONTO_STDOUT, str(output.server_end), sys.executable, str(script), str(log)]
    with started(command, output) as server:
        ready = re.compile(r"listening address=(\S+)(?s:.*)ready workers=1")
        found = eventually(lambda: ready.search(log.read_text()) if log.exists() else None, within_s=20, what="ready")
        output.fill()
        began = time.monotonic()
        with Browser(found[1]) as browser:
            for _ in range(20):
                assert browser.get().body == b"ok"
        assert time.monotonic() - began < 10 * ONCE_S
        server.terminate()
        assert server.wait(STOP_S) == 0
    assert "output lost stream=stdout count=20" in log.read_text()


@contextmanager
def started(command: list[str], output: Output) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own, to which it leaves nobody; then close the output."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[output.server_end],
        env=clean_environment({"PYTHONPATH": str(ROOT)}),
        start_new_session=True,
    ) as process:
        try:
            yield process
            eventually(lambda: not session_members(process.pid), within_s=10, what="nobody left")
        finally:
            process.kill()
            os.close(output.fd)
            os.close(output.server_end)


def test_a_reader_that_is_slow_holds_up_nobody_for_more_than_a_tenth_of_the_time(serve: Serve, app: AppWriter) -> None:
    output = Output()
    server = serve_into(serve, output, app(SAYS, attribute="asgi"), "--access-log", "-")
    output.fill()
    over = threading.Event()

    def read_slowly() -> None:
        while not over.wait(0.09):
            os.read(output.fd, 4096)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    waits = []
    try:
        began = time.monotonic()
        with Browser(server) as browser:
            while time.monotonic() - began < 3:
                before = time.monotonic()
                assert browser.get().body == b"ok"
                waits.append(time.monotonic() - before)
    finally:
        over.set()
        reader.join()
    held_up_s = sum(wait for wait in waits if wait > 0.05)
    assert held_up_s < 2 * (ONCE_S + 3 * ONCE_S) + 0.3, "two writers, each with its patience and what grew of it"
    server.wait_log("output lost stream=stdout|cannot write")
    os.close(output.fd)
    os.close(output.server_end)


ONTO_STDERR = ONTO_STDOUT.replace(", 1)", ", 2)")


@pytest.mark.parametrize("how", ["crash", "boot failure"])
def test_a_server_whose_last_words_nobody_reads_ends_all_the_same(app: AppWriter, how: str) -> None:
    output = Output()
    source = SAYS if how == "crash" else "raise RuntimeError('no')"
    command = [sys.executable, "-c", ONTO_STDERR, str(output.server_end), sys.executable, "-m", "prefork", "serve"]
    command += [app(source, attribute="wsgi"), "--workers", "1", "--bind", "127.0.0.1:0"]
    if how != "crash":
        output.fill()
    with started(command, output) as server:
        if how == "crash":
            eventually(lambda: "ready workers" in output.read(), within_s=20, what="ready")
            output.fill()
            os.kill(server.pid, signal.SIGSEGV)
        assert server.wait(20) == (-signal.SIGSEGV if how == "crash" else 4)
