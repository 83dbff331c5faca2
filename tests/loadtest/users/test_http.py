"""The http load as users start it: both engines say the same things to a server, and real servers understand them."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import textwrap
from email.message import Message
from http.client import parse_headers
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.loadtest import stand_in as behave
from tests.loadtest.records import rounds_in
from tests.support.server import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.loadtest.locust_process import Generator
    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]

pytestmark = pytest.mark.slow

SLOW = pytest.mark.slow


def brief(engine: str) -> tuple[str, ...]:
    """Two clients for a second."""
    clients = ("--connections", "2") if engine == "fast" else ("--users", "2", "--spawn-rate", "2")
    return ("--scenario", "http", "--engine", engine, "--run-time", "1s", *clients)


class Asked:
    """What clients sent, request by request."""

    def __init__(self, response: bytes) -> None:
        self.response = response
        self.lines: set[str] = set()
        self.heads: list[Message] = []
        self.bodies: set[bytes] = set()

    def __call__(self, peer: socket.socket) -> Iterator[None]:
        requests = peer.makefile("rb")
        while line := requests.readline():
            self.lines.add(line.decode().strip())
            head = parse_headers(requests)
            self.heads.append(head)
            self.bodies.add(requests.read(int(head.get("content-length", 0))))
            peer.sendall(self.response)
            yield


@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_both_engines_ask_what_the_options_say(
    engine: str, stand_in: StartServer, generate: Generate, tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(b"\0\xff\r\n")
    asked = Asked(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 3\r\n\r\nabc")
    server = stand_in(asked)
    options = ("--method", "PUT", "--path", "/a/b?c=d%20e", "--header", "X-One: 1", "--header", "Accept-Encoding: gzip")
    good = ("--body", "@body", "--status", "2xx,302", "--length", "3", "--exchanges", "4")
    run = generate("--host", f"http://{server.address}", *brief(engine), *options, *good).wait()
    result = run.result()
    assert result["failures"] == {}
    assert result["completed"] > 10
    assert asked.lines == {"PUT /a/b?c=d%20e HTTP/1.1"}
    assert asked.bodies == {b"\0\xff\r\n"}
    for head in asked.heads:
        assert head.get_all("x-one") == ["1"]
        assert head.get_all("accept-encoding") == ["gzip"]
        assert head.get_all("content-length") == ["4"]
        assert head.get_all("host") == [server.address]
        assert head.get("connection", "keep-alive") == "keep-alive"
        assert head.get("cookie") is None
    assert server.connections >= server.answered / 4
    assert "PUT      /a/b?c=d%20e" in run.log


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_without_keep_alive_no_connection_is_used_twice(engine: str, stand_in: StartServer, generate: Generate) -> None:
    asked = Asked(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")  # it would keep them
    server = stand_in(asked)
    options = ("--method", "POST", "--payload", "7", "--no-keep-alive", "--length", "1")
    result = generate("--host", server.address, *brief(engine), *options).wait().result()
    assert result["failures"] == {}
    assert result["completed"] > 10
    assert server.connections >= server.answered == len(asked.heads)
    assert all(head.get_all("connection") == ["close"] for head in asked.heads)
    assert {len(body) for body in asked.bodies} == {7}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_responses_of_another_status_or_length_are_failures(
    engine: str, stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(Asked(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"))
    run = generate("--host", server.address, *brief(engine), "--length", "4").wait(exit_code=1)
    assert set(run.result()["failures"]) == {"wrong length"}


@pytest.mark.parametrize("engine", ["fast", pytest.param("readable", marks=SLOW)])
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--ca", str(behave.CERTIFICATE)), ""),
        pytest.param(("--insecure",), "", marks=SLOW),
        pytest.param((), "bad certificate", marks=SLOW),
    ],
)
def test_https(options: tuple[str, ...], cause: str, engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(
        behave.secure(Asked(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000), goodbye=False)
    )
    run = generate("--host", f"https://{server.address}", *brief(engine), *options, "--length", "100000")
    result = run.wait(exit_code=1 if cause else 0).result()
    assert set(result["failures"]) == ({cause} if cause else set())
    assert (result["completed"] > 5) == (not cause)
    assert server.connections == 2 or cause


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--header", "A: b\r\nC: d"), "is not a header; write 'Name: value', in one line"),
        pytest.param(("--path", "/a HTTP/1.1\r\nA: b"), "is not a path", marks=SLOW),
        pytest.param(("--body", "@none"), "cannot read 'none': No such file or directory", marks=SLOW),
        pytest.param(("--host", "https://h", "--ca", "/none"), "'/none' is no file of certificates", marks=SLOW),
    ],
)
def test_what_cannot_be_sent_is_refused_with_one_line(
    options: tuple[str, ...], message: str, generate: Generate
) -> None:
    run = generate(*brief("fast"), *options).wait(exit_code=2)
    assert message in run.log
    assert not run.has_result


# The lab with real servers


def measure(folder: Path, *arguments: str, load: str = "http") -> tuple[list[dict[str, Any]], str]:
    """Run the lab for one short round of each server; its rounds, and what it printed."""
    times = ("--rounds", "1", "--connections", "4", "--duration", "0.5", "--warmup", "0.2")
    argv = [sys.executable, "-m", "loadtest", "run", "--scenario", load, *times, *arguments, "--out", "out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=90, check=False)
    rounds = rounds_in(folder / "out")
    return rounds, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"


def check_all_went_well(rounds: list[dict[str, Any]], said: str) -> None:
    assert "exit status 0" in said, said
    assert rounds, said
    for kept in rounds:
        assert kept["error"] == "", said
        assert kept["client"]["failures"] == {}
        assert kept["client"]["completed"] > 10


def test_a_server_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"x" * 1000)
    server = "one={python} -m http.server --bind {host} {port}"
    check_all_went_well(*measure(tmp_path, "--server", server, "--path", "/page", "--length", "1000"))


@pytest.mark.parametrize("scenario", ["echo", pytest.param("talkback", marks=SLOW)])
def test_a_command_may_serve_on_a_unix_socket(scenario: str, tmp_path: Path) -> None:
    server = f"one={{python}} -m prefork serve {scenario} --workers 1 --bind unix:{{unix}}"
    rounds, said = measure(tmp_path, "--server", server, load=scenario)
    check_all_went_well(rounds, said)
    assert rounds[0]["signals"]["queue"] is None


UNIX_HTTP = """
    import http.server, socketserver, sys

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def address_string(self):
            return "-"
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.wfile.write(b"HTTP/1.1 201 Created\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(body), body))

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    print("serving", flush=True)
    Server(sys.argv[1], Handler).serve_forever()
"""


@pytest.mark.slow
def test_http_on_a_unix_socket_and_one_that_is_attached(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(textwrap.dedent(UNIX_HTTP))
    asked = ("--method", "POST", "--body", "hello", "--length", "5", "--status", "201")
    check_all_went_well(*measure(tmp_path, "--server", "one={python} server.py {unix}", *asked))
    with subprocess.Popen([sys.executable, "server.py", "here"], cwd=tmp_path, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == b"serving\n"
            (tmp_path / "out").rename(tmp_path / "first")
            check_all_went_well(*measure(tmp_path, "--attach", "unix:here", *asked))
        finally:
            server.kill()


PLAN = f"""
scenario = "http"
method = "POST"
header = {{ Content-Type = "text/plain" }}
body = "@body"
tls = true
insecure = true
rounds = 1
connections = 2
duration = 0.5
warmup = 0.2
[[server]]
name = "one"
command = "{{python}} server.py {{port}} {behave.CERTIFICATE}"
[[load]]
name = "kept"
[[load]]
name = "not kept"
keep-alive = false
"""
SECURE_HTTP = """
    import http.server, ssl, sys

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            assert (body, self.headers["content-type"]) == (b"text\\0", "text/plain")
            self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
"""


@pytest.mark.slow
def test_a_plan_of_https_with_a_body_from_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "plan.toml").write_text(PLAN)
    (tmp_path / "plans" / "body").write_bytes(b"text\0")
    (tmp_path / "server.py").write_text(textwrap.dedent(SECURE_HTTP))
    rounds, said = measure(tmp_path, "plans/plan.toml")
    check_all_went_well(rounds, said)
    assert {kept["load"] for kept in rounds} == {"kept", "not kept"}, "in either order, which is drawn"


def test_a_server_that_answers_otherwise_is_said_so_before_any_load(tmp_path: Path) -> None:
    server = "one={python} -m http.server --bind {host} {port}"
    rounds, said = measure(tmp_path, "--server", server, "--path", "/none")
    assert "exit status 1" in said
    assert "answered GET /none with status 404, not with status 2xx" in rounds[0]["error"]


APP = """
    def wsgi(environ, start):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    async def asgi(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
"""
PEERS = {
    "gunicorn": "-m gunicorn -b {address} app:wsgi",
    "waitress": "-m waitress --listen={address} app:wsgi",
    "uvicorn": "-m uvicorn --port {port} app:asgi",
}


def peers_python(module: str) -> str | None:
    """A Python that has the module: this one, or that of `make peers`."""
    if importlib.util.find_spec(module):
        return sys.executable
    other = ROOT / ".venv-peers" / "bin" / "python"
    found = other.exists() and subprocess.run([other, "-c", f"import {module}"], check=False, capture_output=True)
    return str(other) if found and not found.returncode else None


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("kept", ["--keep-alive", "--no-keep-alive"])
def test_known_servers(peer: str, kept: str, tmp_path: Path) -> None:
    python = peers_python(peer)
    if python is None:
        pytest.skip(f"{peer} is installed neither here nor in .venv-peers")
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    asked = ("--method", "POST", "--payload", "5000", "--length", "5000", kept)
    check_all_went_well(*measure(tmp_path, "--server", f"one={python} {PEERS[peer]}", *asked))
