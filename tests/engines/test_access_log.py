"""--access-log: a line for each request, whole, in its format, also through a rotation."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.apps.routes import BLOCK, HELLO
from tests.support.client import exchange, read_exactly
from tests.support.load import ClientGroup, Load
from tests.support.processes import open_fds
from tests.support.server import run
from tests.support.wait import eventually
from tests.support.ways import BOTH, EACH_WAY, ONE, Way
from tests.support.web import ASGI, WEB, Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

COMBINED = re.compile(
    r'(\S+) - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\] "([^"]*)" (\d{3}) (\d+) "([^"]*)" "([^"]*)" (\d+)'
)


def lines_of(path: Path, count: int) -> list[str]:
    """Wait for so many lines."""
    eventually(lambda: path.read_text().count("\n") >= count, within_s=15, what=f"{count} lines")
    lines = path.read_text().splitlines()
    assert len(lines) == count, lines
    return lines


@EACH_WAY
def test_the_combined_format(serve: Serve, tmp_path: Path, way: Way) -> None:
    log = tmp_path / "access"
    server = serve(*way, *ONE, "--access-log", str(log), expect_traceback=True)
    with Browser(server) as browser:
        browser.get("/?q=1", referer="http://x/", user_agent="test/1")
        browser.get("/stream?2")
        browser.send(request(method="HEAD"))
        browser.response(head=True)
        browser.get("/work?0.02")
        browser.get("/raise")
    fields = [COMBINED.fullmatch(line) for line in lines_of(log, 5)]
    assert all(fields)
    told = [match.groups()[:6] for match in fields if match]
    host = "127.0.0.1"
    assert told == [
        (host, "GET /?q=1 HTTP/1.1", "200", str(len(HELLO)), "http://x/", "test/1"),
        (host, "GET /stream?2 HTTP/1.1", "200", str(2 * len(BLOCK)), "-", "-"),
        (host, "HEAD / HTTP/1.1", "200", "0", "-", "-"),
        (host, "GET /work?0.02 HTTP/1.1", "200", str(len(HELLO)), "-", "-"),
        (host, "GET /raise HTTP/1.1", "500", "26", "-", "-"),
    ]
    assert 20_000 <= int(fields[3][7]) < 5_000_000, "microseconds in the application"


@BOTH
def test_refused_requests_have_a_line_too(serve: Serve, tmp_path: Path, way: Way) -> None:
    log = tmp_path / "access"
    server = serve(*way, *ONE, "--access-log", str(log), "--max-body", "1k")
    answer = exchange(server.address, b"nonsense\r\n\r\n")
    exchange(server.address, request("/length", method="POST", body=bytes(2000)))
    bad, big = (COMBINED.fullmatch(line) for line in lines_of(log, 2))
    assert bad
    assert big
    assert bad.group(2, 3, 4) == ("-", "400", str(len(answer.partition(b"\r\n\r\n")[2])))
    assert big[3] == "413"


@BOTH
def test_json(serve: Serve, tmp_path: Path, way: Way) -> None:
    log = tmp_path / "access"
    server = serve(*way, *ONE, "--access-log", str(log), "--log-format", "json", ready=False)
    server.wait_log('"listening"')
    address = re.search(r'"address": "([^"]+)"', server.log)
    assert address
    server.wait_log('"event": "ready"')
    fetch(address[1], "/?a", user_agent='a "quoted" \\ \u00e9')
    told = json.loads(lines_of(log, 1)[0])
    assert (told["method"], told["target"], told["status"], told["bytes"]) == ("GET", "/?a", 200, len(HELLO))
    assert told["agent"] == 'a "quoted" \\ \u00e9'
    assert told["client"] == "127.0.0.1"
    assert told["referer"] is None


@EACH_WAY
def test_a_format_of_ones_own(serve: Serve, tmp_path: Path, way: Way) -> None:
    log = tmp_path / "access"
    style = '%(h)s %(u)s "%(r)s" %(m)s %(U)s %(q)s %(H)s %(s)s %(B)s %({X-None}i)s %({Host}i)s '
    style += "%({content-type}o)s %(p)s %(L)s"
    server = serve(
        *way, *ONE, "--access-log", str(log), "--access-log-format", style, "--max-body", "1k", expect_traceback=True
    )
    (pid,) = server.worker_pids()
    with Browser(server) as browser:
        browser.get("/?q=1", authorization="Basic YW5uOng=")
        browser.get("/raise")
    exchange(server.address, b"nonsense\r\n\r\n")
    served, failed, refused = lines_of(log, 3)
    told = (
        rf'127\.0\.0\.1 ann "GET /\?q=1 HTTP/1\.1" GET / q=1 HTTP/1\.1 200 {len(HELLO)} - localhost \S*text/plain\S* '
    )
    assert re.fullmatch(rf"{told}<{pid}> 0\.\d{{6}}", served), served
    assert " 500 26 - localhost - <" in failed
    assert refused.startswith('127.0.0.1 - "-" - - - - 400 ')


@pytest.mark.parametrize(("way", "told"), [((WEB,), '"GET /variable" - ann'), ((ASGI,), '"GET /variable" - -')])
def test_a_variable_that_the_application_has_set(serve: Serve, tmp_path: Path, way: Way, told: str) -> None:
    log = tmp_path / "access"
    (tmp_path / "setting.py").write_text(
        "from web import app as web\n"
        "def app(environ, start_response):\n"
        "    environ['shop.user'] = 'ann'\n"
        "    return web(environ, start_response)\n"
    )
    if way == (WEB,):
        way = (f"{tmp_path}/setting.py:app",)
    style = '"%(m)s %(U)s" %({shop.other}e)s %({SHOP.USER}e)s'
    server = serve(
        *way, *ONE, "--access-log", str(log), "--access-log-format", style, env={"PYTHONPATH": str(Path(WEB).parent)}
    )
    fetch(server, "/variable")
    assert lines_of(log, 1) == [told]


@BOTH
def test_standard_output(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, "--access-log", "-")
    fetch(server, "/pid")
    server.wait_log(r'"GET /pid HTTP/1\.1" 200 ')


@BOTH
def test_nothing_that_a_client_sends_can_begin_a_line_or_colour_a_terminal(
    serve: Serve, tmp_path: Path, way: Way
) -> None:
    log = tmp_path / "access"
    server = serve(*way, *ONE, "--access-log", str(log))
    with Browser(server) as browser:
        browser.send(b'GET /"%0a?" HTTP/1.1\r\nHost: a\r\nUser-Agent: x" "\xff\\\r\nReferer: "\t\r\n\r\n')
        browser.response()
        browser.send(b"GET /\x1b[31m\x07 HTTP/1.1\r\nHost: a\r\n\r\n")
        browser.response()
    for line in lines_of(log, 2):
        assert re.fullmatch(r"[ -~]+", line)
        assert COMBINED.fullmatch(line), line
    assert r'"x\x22 \x22\xff\x5c"' in log.read_text()


def holders(server: RunningServer, path: Path) -> set[int]:
    return {pid for pid in {server.pid, *server.worker_pids()} if str(path) in open_fds(pid).values()}


@pytest.mark.parametrize(
    "how",
    [(WEB,), (WEB, "--preload"), (WEB, "--threads", "3"), (ASGI,)],
    ids=["wsgi", "wsgi-preload", "wsgi-threads", "asgi"],
)
def test_a_rotation_under_load_loses_no_line(serve: Serve, tmp_path: Path, how: Way) -> None:
    log = tmp_path / "access"
    server = serve(*how, "--workers", "2", "--access-log", str(log))
    everyone = holders(server, log)
    assert server.worker_pids() < everyone | server.worker_pids()
    with Load(server.address, ClientGroup(clients=3, posts=20)) as load:
        for turn in range(4):
            old = log.rename(tmp_path / f"access.{turn}")
            server.signal(signal.SIGUSR1)
            eventually(lambda: holders(server, log) == everyone, within_s=30)
            assert not holders(server, old)
            load.wait_more(50)
    assert not load.failed
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == load.counts.total()
    assert all(COMBINED.fullmatch(line) for line in lines)


@BOTH
def test_a_full_disk_or_a_stuck_reader_of_the_log_fails_no_request(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, "--access-log", "/dev/full")
    with Browser(server) as browser:
        for _ in range(100):
            assert browser.get().body == HELLO
    server.wait_log('cannot write access log lines reason="No space left on device"')


@EACH_WAY
def test_a_client_that_leaves_a_stream_has_its_line(serve: Serve, tmp_path: Path, way: Way) -> None:
    log = tmp_path / "access"
    server = serve(*way, *ONE, "--access-log", str(log))
    with Browser(server) as browser:
        browser.send(request(f"/endless?{tmp_path}/mark"))
        read_exactly(browser.sock, 1 << 20)
    line = COMBINED.fullmatch(lines_of(log, 1)[0])
    assert line
    assert int(line[4]) >= 1 << 20


@pytest.mark.parametrize("path", ["/nowhere/access", "/tmp"])
def test_a_log_that_cannot_be_opened_is_an_error(path: str) -> None:
    done = run("serve", WEB, "--bind", "127.0.0.1:0", "--access-log", path)
    assert done.returncode == 2
    assert path in done.stderr
    assert "Traceback" not in done.stderr
