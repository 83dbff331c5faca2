"""TLS: what a client must see, what a slow or foreign one may not do, and what workers share and renew."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.support.client import abort, dial, exchange, read_to_end
from tests.support.server import APPS, run
from tests.support.tls import CLIENTS, FIRST, LOCKED, PASSWORD, SECOND, TLS, trusting
from tests.support.wait import eventually
from tests.support.ways import BOTH, EACH_WAY, LOOPS, ONE, THREADS, WSGI, Way
from tests.support.web import WEB, Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


def name_shown(server: RunningServer) -> str:
    """Whose certificate a new connection is shown."""
    with Browser(server, tls=trusting(FIRST, SECOND)) as browser:
        shown = browser.sock.getpeercert()  # type: ignore[attr-defined] # of an SSLSocket
        return dict(pair for ((pair),) in shown["subject"])["commonName"]


def trickle(client: socket.socket) -> None:
    """Send now and then, until the server has closed the connection."""
    gate, until_s = threading.Event(), time.monotonic() + 60
    while time.monotonic() < until_s:
        client.sendall(b"x")
        gate.wait(0.05)


@EACH_WAY
def test_all_that_works_without_works_under_tls(shared: Shared, tmp_path: Path, way: Way) -> None:
    server = shared(*way, *ONE, *TLS, "--max-body", "4m")
    (tmp_path / "file").write_bytes(BLOCK * 20)
    with Browser(server, tls=trusting()) as browser:
        assert json.loads(browser.get("/told").body)["scheme"] == "https"
        assert browser.post("/echo", BLOCK * 33).body == BLOCK * 33
        assert browser.get("/stream?100").body == BLOCK * 100
        assert browser.get("/big?100").body == BLOCK * 100
        assert browser.get(f"/file?{tmp_path}/file").body == BLOCK * 20
        browser.send(request() * 500)
        assert all(browser.response().body == HELLO for _ in range(500))
        browser.send(request("/length", method="POST", body=BLOCK * 70))
        assert browser.response().status == 413


@pytest.mark.parametrize("way", [pytest.param(*WSGI.values, id="wsgi", marks=pytest.mark.smoke), THREADS, *LOOPS])
def test_the_end_is_said_so_that_no_client_takes_it_for_a_cut(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *TLS)
    context = trusting()
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    for minor, fields in ((1, {"connection": "close"}), (0, {})):
        with dial(server.address) as plain:
            sock = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
            sock.sendall(request("/stream?3", minor=minor, **fields))
            assert len(read_to_end(sock)) > 3 * len(BLOCK)
            sock.close()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@BOTH
def test_curl(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *TLS)
    port = server.address.rpartition(":")[2]
    curl = ["curl", "-sS", "--max-time", "10", "--cacert", FIRST, "-d", "a body", f"https://localhost:{port}/echo"]
    assert subprocess.run(curl, capture_output=True, check=True).stdout == b"a body"


@pytest.mark.parametrize("body", [b"", bytes(300_000)], ids=["get", "large-post"])
@EACH_WAY
def test_plain_http_is_told_what_is_spoken_here(shared: Shared, body: bytes, way: Way) -> None:
    server = shared(*way, *ONE, *TLS)
    for _ in range(20):
        answer = exchange(server.address, request(method="POST", body=body))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"https://" in answer
    assert fetch(server, tls=trusting()).body == HELLO


@BOTH
def test_who_was_told_and_left_has_no_deadline_any_more(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *TLS, "--header-timeout", "300ms")
    workers = server.worker_pids()
    exchange(server.address, request())
    for _ in range(2):  # silent clients, whose deadlines come after that of the one before
        with dial(server.address) as later:
            assert read_to_end(later) == b""
    assert fetch(server, tls=trusting()).body == HELLO
    assert server.worker_pids() == workers


@EACH_WAY
def test_who_speaks_plain_http_is_told_so_and_cut_soon(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *TLS, "--header-timeout", "200")
    with dial(server.address) as client:
        client.sendall(request())
        assert b"TLS" in client.recv(65536)
        assert client.recv(65536) == b""
        with pytest.raises(OSError, match=r"pipe|reset"):
            trickle(client)


@BOTH
def test_slow_and_foreign_handshakes_are_ended_and_harm_nobody(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *TLS, "--header-timeout", "400ms")
    began = time.monotonic()
    half = [dial(server.address) for _ in range(100)]
    for number, sock in enumerate(half):
        sock.sendall(b"\x16\x03\x01\x02\x00" if number % 2 else b"")
    foreign = [dial(server.address) for _ in range(20)]
    for sock in foreign:
        sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    assert fetch(server, tls=trusting()).body == HELLO
    with pytest.raises(ssl.SSLError):
        fetch(server, tls=ssl.create_default_context())
    for sock in half + foreign:
        try:
            read_to_end(sock)
        except ConnectionResetError:
            pass
        sock.close()
    assert 0.3 < time.monotonic() - began < 15
    assert fetch(server, tls=trusting()).body == HELLO


@BOTH
def test_clients_that_leave_before_they_are_taken_harm_nobody(serve: Serve, gate: Gate, way: Way) -> None:
    server = serve(*way, *ONE, *TLS, env=gate.env)
    workers = server.worker_pids()
    with Browser(server, tls=trusting()) as browser:
        browser.send(request("/hold"))
        gate.wait_entered(1)  # the loop is in the application
        for data in (b"", b"\x16\x03", request()):
            for leave in (abort, socket.socket.close):
                for _ in range(5):
                    sock = dial(server.address)
                    sock.sendall(data)
                    leave(sock)
        gate.open()
        assert browser.response().body == HELLO
    assert fetch(server, tls=trusting()).body == HELLO
    assert server.worker_pids() == workers


@pytest.mark.parametrize(
    "version",
    [pytest.param(ssl.TLSVersion.TLSv1_2, id="1.2"), pytest.param(ssl.TLSVersion.TLSv1_3, id="1.3")],
)
@BOTH
def test_what_one_worker_has_issued_another_resumes(serve: Serve, version: ssl.TLSVersion, way: Way) -> None:
    server = serve(*way, "--workers", "3", *TLS)
    context = trusting()
    context.minimum_version = context.maximum_version = version
    session, pairs = None, set[tuple[bytes, bytes]]()
    issuer = b""
    for _ in range(60):
        with dial(server.address) as plain:
            sock = context.wrap_socket(plain, server_hostname="localhost", session=session)
            with sock:
                sock.sendall(request("/pid", connection="close"))
                pid = read_to_end(sock).rpartition(b"\r\n")[2]
                assert sock.session_reused is (session is not None)
                if session is None:
                    session, issuer = sock.session, pid
                pairs.add((issuer, pid))
        if len(pairs) == 3:
            return
    raise AssertionError(f"never served by all workers: {pairs}")


@BOTH
def test_a_reload_renews_the_certificate_and_a_broken_one_changes_nothing(
    serve: Serve, tmp_path: Path, way: Way
) -> None:
    file = tmp_path / "site.pem"
    shutil.copy(FIRST, file)
    server = serve(*way, "--workers", "2", "--tls-cert", str(file), "--keep-alive", "1")
    assert name_shown(server) == "first"
    workers = server.worker_pids()
    file.write_text("no certificate")
    server.signal(signal.SIGHUP)
    complaint = server.wait_log(r"(reload abandoned .*)$")[1]
    assert str(file) in complaint
    assert server.worker_pids() == workers
    assert name_shown(server) == "first"
    shutil.copy(SECOND, file)
    server.signal(signal.SIGHUP)
    server.wait_workers(2, without=workers)
    eventually(lambda: name_shown(server) == "second", within_s=15)
    assert {name_shown(server) for _ in range(10)} == {"second"}


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--tls-key", FIRST], 2, "--tls-cert"),
        pytest.param(["--tls-cert", "/nowhere.pem"], 2, "/nowhere.pem"),
        pytest.param(["--tls-cert", str(APPS / "web.py")], 2, "web.py"),
        pytest.param(["--tls-cert", LOCKED], 2, "--tls-key-password-file"),
        (["--tls-cert", FIRST, "--tls-key", SECOND], 2, "is not the key of"),
        (["--tls-ca", CLIENTS], 2, "--tls-cert"),
        (["--tls-min-version", "1.3"], 2, "--tls-cert"),
        (["--tls-min-version", "1.1", *TLS], 2, "'1.1' is not one of 1.2, 1.3"),
        (["--tls-client-cert", "optional", *TLS], 2, "--tls-ca"),
        (["--tls-ca", "/nowhere.pem", *TLS], 2, "cannot read --tls-ca /nowhere.pem: No such file"),
        (["--tls-ca", str(APPS / "web.py"), *TLS], 2, "no certificate in it"),
        (["--tls-ciphers", "NONE-SUCH", *TLS], 2, "--tls-ciphers NONE-SUCH"),
        (["--tls-cert", LOCKED, "--tls-key-password-file", "/nowhere"], 2, "cannot read --tls-key-password-file"),
        (["--tls-cert", LOCKED, "--tls-key-password-file", FIRST], 2, "the password of --tls-key"),
        (["--tls-cert", LOCKED, "--tls-key-password-file", "/dev/null"], 2, "its first line is empty"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], code: int, said: str) -> None:
    done = run("serve", WEB, "--bind", "127.0.0.1:0", *args)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "ssl.c" not in done.stderr


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nanother line\n"])
def test_the_password_of_the_key_in_a_file(serve: Serve, tmp_path: Path, end: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(f"{PASSWORD}{end}".encode())
    server = serve(WEB, *ONE, "--tls-cert", LOCKED, "--tls-key-password-file", str(file))
    assert fetch(server, tls=trusting()).body == HELLO
    file.write_text("changed")
    server.signal(signal.SIGHUP)
    assert f"the password of --tls-key {LOCKED} is wrong" in server.wait_log(r"(reload abandoned .*)$")[1]
    assert fetch(server, tls=trusting()).body == HELLO


@pytest.mark.parametrize("how", [(), ("--preload",)], ids=["worker", "template"])
def test_the_password_of_the_key_in_the_environment_is_not_the_application_s(serve: Serve, how: Way) -> None:
    name = "PREFORK_TLS_KEY_PASSWORD"
    server = serve(WEB, *ONE, "--tls-cert", LOCKED, *how, env={name: PASSWORD})
    said = fetch(server, "/variables", tls=trusting()).body
    assert b"PATH" in said
    assert name.encode() not in said
    assert name not in server.log
    server.signal(signal.SIGHUP)  # the master has it yet
    server.wait_log("reloaded")
    assert name.encode() not in fetch(server, "/variables", tls=trusting()).body


def test_the_password_of_the_key_cannot_stand_in_an_environment_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"A=b\nPREFORK_TLS_KEY_PASSWORD={PASSWORD}\n")
    done = run("serve", WEB, "--bind", "127.0.0.1:0", "--tls-cert", LOCKED, "--env-file", str(file))
    assert done.returncode == 2
    assert f"{file}:2: PREFORK_TLS_KEY_PASSWORD is not for the application" in done.stderr
    assert PASSWORD not in done.stderr


def test_tls_with_a_stream_handler_is_an_error() -> None:
    done = run("serve", "talkback", "--bind", "127.0.0.1:0", "--workers", "1", *TLS)
    assert done.returncode == 3
    assert "--tls-cert is for HTTP" in done.stderr
