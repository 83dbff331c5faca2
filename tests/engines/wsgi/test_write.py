"""What an application gives to write() is sent while it proceeds; one that yields b"" gives back control (PEP 3333)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.apps.writing import BLOCK, BLOCKS, STEPS
from tests.support.client import abort
from tests.support.server import APPS
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.control import Place
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

APP = f"{APPS / 'writing.py'}:app"
ONE_WORKER = "--workers", "1"
WAYS = [pytest.param("1", id="in the loop"), pytest.param("2", id="on threads")]


@pytest.fixture(params=WAYS)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    """One worker, with the application in the loop or on threads."""
    return shared(APP, *ONE_WORKER, "--threads", request.param)


@pytest.mark.parametrize("path", ["/gated", "/sized"])
@pytest.mark.parametrize("minor", [0, 1])
def test_the_client_has_it_while_the_application_proceeds(
    server: RunningServer, tmp_path: Path, path: str, minor: int
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Browser(server) as browser:
        browser.send(request(f"{path}?{fifo}", minor=minor))
        code, _fields = browser.head()
        first = b"5\r\nfirst\r\n" if path == "/gated" and minor else b"first"
        assert (code, browser.exactly(len(first))) == (200, first)
        fifo.write_bytes(b"go on")
        last = b"5\r\nlater\r\n0\r\n\r\n" if path == "/gated" and minor else b"later"
        assert browser.exactly(len(last)) == last
        if minor:
            assert browser.get("/").body == b"ok"


@pytest.mark.parametrize("tls", [(), TLS], ids=["plain", "tls"])
@pytest.mark.parametrize("threads", WAYS)
def test_a_client_that_reads_late_does_not_hold_the_application(
    shared: Shared, tmp_path: Path, threads: str, tls: tuple[str, ...]
) -> None:
    server = shared(APP, *ONE_WORKER, "--threads", threads, *tls)
    mark = tmp_path / "mark"
    with Browser(server, tls=trusting() if tls else None) as browser:
        browser.send(request(f"/much?{mark}"))
        eventually(mark.exists, within_s=20)
        assert fetch(server, "/", tls=trusting() if tls else None).body == b"ok"
        assert browser.response().body == BLOCK * BLOCKS
        assert browser.get("/").body == b"ok"


def test_requests_that_came_together_are_answered_in_order(server: RunningServer, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Browser(server) as browser:
        browser.send(request(f"/much?{mark}") + request("/") + request(f"/much?{mark}"))
        bodies = [browser.response().body for _ in range(3)]
    assert bodies == [BLOCK * BLOCKS, b"ok", BLOCK * BLOCKS]


@pytest.mark.parametrize("path", ["/endless", "/stubborn"])
@pytest.mark.parametrize("threads", WAYS)
def test_a_client_that_leaves_is_told_to_the_application(
    serve: Serve, place: Place, tmp_path: Path, path: str, threads: str
) -> None:
    server = serve(APP, *ONE_WORKER, "--threads", threads, env=place.env)
    mark = tmp_path / "mark"
    with Browser(server) as browser:
        browser.send(request(f"{path}?{mark}"))
        browser.exactly(1000)
        abort(browser.sock)
    said = "BrokenPipeError" if path == "/endless" else ""
    eventually(lambda: mark.exists() and mark.read_text() == said, within_s=20)
    assert fetch(server, "/").body == b"ok"
    totals = eventually(lambda: (found := place.status()["totals"])["client_gone"] and found, within_s=20)
    assert (totals["client_gone"], totals["errors"], totals["requests"]) == (1, 0, 1)
    assert "failed" not in server.log


@pytest.mark.parametrize("threads", WAYS)
def test_a_client_that_reads_nothing_is_left_when_its_time_is_over(
    serve: Serve, place: Place, tmp_path: Path, threads: str
) -> None:
    server = serve(APP, *ONE_WORKER, "--threads", threads, "--idle-timeout", "1", env=place.env)
    mark = tmp_path / "mark"
    with Browser(server) as browser:
        browser.send(request(f"/endless?{mark}"))
        eventually(lambda: mark.exists() and mark.read_text() == "BrokenPipeError", within_s=20)
    totals = eventually(lambda: (found := place.status()["totals"])["timed_out"] and found, within_s=20)
    assert (totals["timed_out"], totals["errors"], totals["client_gone"]) == (1, 0, 0)


@pytest.mark.parametrize("threads", WAYS)
def test_each_write_is_a_sign_of_life(serve: Serve, threads: str) -> None:
    server = serve(APP, *ONE_WORKER, "--threads", threads, "--timeout", "1.5")
    assert fetch(server, "/paced").body == b"x" * STEPS
    assert "killing" not in server.log


def test_others_are_served_while_a_generator_yields_nothing(server: RunningServer, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Browser(server) as browser:
        browser.send(request(f"/yielding?{flag}"))
        with Browser(server) as other:
            assert [other.get("/").body for _ in range(20)] == [b"ok"] * 20
        flag.touch()
        assert browser.response().body == b"end"
        assert browser.get("/").body == b"ok"


def test_a_generator_that_yields_nothing_is_closed_when_its_client_leaves(
    server: RunningServer, tmp_path: Path
) -> None:
    browser = Browser(server)
    browser.send(request(f"/yielding?{tmp_path / 'flag'}"))
    eventually((tmp_path / "flag.begun").exists, within_s=20)
    abort(browser.sock)
    eventually((tmp_path / "flag.closed").exists, within_s=20)
    assert fetch(server, "/").body == b"ok"
