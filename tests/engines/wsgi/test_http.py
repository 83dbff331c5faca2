"""What HTTP has of its own under WSGI: the environ, write(), wsgi.errors, threads, and the rules of PEP 3333.

What a client sees of WSGI and ASGI alike is in the modules of the folder above.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import HELLO
from tests.support.client import read_exactly
from tests.support.server import APPS
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.ways import ONE, THREADS, WSGI
from tests.support.web import WEB, Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


@pytest.fixture(params=[WSGI, THREADS])
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker, with the application in the loop or on threads."""
    return shared(*request.param, *ONE)


def test_the_environ(server: RunningServer) -> None:
    with Browser(server) as browser:
        said = json.loads(browser.post("/environ?a=%20b", b"12345", content_type="text/x", x_many="1").body)
        host, port = browser.sock.getsockname()
    expected = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/environ", "QUERY_STRING": "a=%20b", "RAW_URI": "/environ?a=%20b",
        "CONTENT_LENGTH": "5", "CONTENT_TYPE": "text/x", "HTTP_HOST": "localhost", "HTTP_X_MANY": "1",
        "SCRIPT_NAME": "",
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "127.0.0.1", "REMOTE_ADDR": host, "REMOTE_PORT": str(port),
        "SERVER_PORT": server.address.rpartition(":")[2], "wsgi.url_scheme": "http", "wsgi.version": [1, 0],
        "wsgi.multiprocess": False, "wsgi.run_once": False,
    }  # fmt: skip
    assert {key: said.get(key) for key in expected} == expected


def test_the_environ_under_tls(shared: Shared) -> None:
    said = json.loads(fetch(shared(WEB, *ONE, *TLS), "/environ", tls=trusting()).body)
    assert (said["wsgi.url_scheme"], said["HTTPS"]) == ("https", "on")


def test_the_environ_behind_a_proxy(shared: Shared) -> None:
    server = shared(WEB, *ONE, "--trusted-proxies", "127.0.0.1")
    said = json.loads(fetch(server, "/environ", x_forwarded_for="192.0.2.9", x_forwarded_proto="https").body)
    assert (said["REMOTE_ADDR"], said["REMOTE_PORT"], said["HTTPS"]) == ("192.0.2.9", "", "on")


def test_the_environ_of_other_listeners(serve: Serve, tmp_path: Path) -> None:
    server = serve(WEB, *ONE, bind=["[::1]:0", f"unix:{tmp_path}/s"])
    told = [json.loads(fetch(address, "/environ").body) for address in server.addresses]
    assert [(one["REMOTE_ADDR"], one["SERVER_NAME"]) for one in told] == [("::1", "::1"), ("", "localhost")]
    assert all(one["SERVER_PORT"].isdigit() for one in told)


def test_multithread_and_multiprocess_are_true_to_the_configuration(shared: Shared) -> None:
    said = json.loads(fetch(shared(WEB, "--workers", "2", "--threads", "2"), "/environ").body)
    assert (said["wsgi.multithread"], said["wsgi.multiprocess"]) == (True, True)


def test_written_blocks_come_before_returned_ones(server: RunningServer) -> None:
    with Browser(server) as browser:
        assert browser.get("/write").body == b"written, twice, and returned\n"
        assert browser.get().body == HELLO


def test_what_is_written_to_wsgi_errors_is_in_the_log(server: RunningServer) -> None:
    fetch(server, "/errors?something%20is%20wrong")
    server.wait_log("^something is wrong$")


def test_threads_run_the_application_side_by_side_and_the_loop_inline(serve: Serve, gate: Gate) -> None:
    server = serve(WEB, *ONE, "--threads", "3", env=gate.env)
    held = [Browser(server) for _ in range(3)]
    for browser in held:
        browser.send(request("/gate"))
    gate.wait_entered(3)
    gate.open()
    assert [browser.response().body for browser in held] == [HELLO] * 3
    for browser in held:
        browser.close()
    inline = serve(WEB, *ONE, "--threads", "1")
    assert len({fetch(inline, "/thread").body for _ in range(5)}) == 1


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_validator_has_nothing_to_say(serve: Serve, tmp_path: Path, threads: str) -> None:
    """wsgiref's: it raises, and the client gets a 500, for what breaks PEP 3333; it prints a missing close()."""
    server = serve(f"{APPS / 'web.py'}:validated", *ONE, "--threads", threads, "--interface", "wsgi")
    with Browser(server) as browser:
        for path in ("/", "/stream?3", "/write", "/204", "/nowhere", f"/file?{APPS / 'web.py'}", "/environ?a=b"):
            assert browser.get(path).status in (200, 204, 404), path
        browser.send(request("/", method="HEAD"))
        assert browser.response(head=True).status == 200
        assert browser.post("/length", b"x" * 100_000).body == b"100000"
        browser.send(request("/length", method="POST", transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n")
        assert browser.response().body == b"3"
        browser.send(request(f"/endless?{tmp_path}/mark"))
        read_exactly(browser.sock, 1 << 20)
    eventually((tmp_path / "mark").exists, within_s=30)
    with Browser(server) as browser:
        browser.send(request("/stream?2", minor=0))
        assert len(browser.response().body) == 2 << 16
    assert "AssertionError" not in server.log
    assert "garbage collected" not in server.log
