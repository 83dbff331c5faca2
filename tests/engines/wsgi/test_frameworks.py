"""Real frameworks behind the server and real client libraries before it: what people will run."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.server import APPS
from tests.support.tls import FIRST, TLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

requests = pytest.importorskip("requests")
httpx = pytest.importorskip("httpx")

FRAMEWORKS = ("flask", "django", "bottle", "pyramid")
SOURCE = (APPS / "web.py").read_bytes()  # the file that each site serves
STREAMED = b"".join(b"line %d\n" % number for number in range(10))
ONE = ("--workers", "1")


def app_of(framework: str) -> str:
    pytest.importorskip(framework)
    return f"{APPS / f'site_{framework}.py'}:site"


@pytest.fixture(params=FRAMEWORKS)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    return shared(app_of(request.param), *ONE, "--threads", "2")


@pytest.fixture(params=["requests", "httpx"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A session that keeps its connections."""
    with requests.Session() if request.param == "requests" else httpx.Client() as session:
        yield session


def visit(client: Any, base: str, file: Path) -> None:
    """Go through the whole site, twice over the same connections."""
    file.write_bytes(b"u" * 300_000)
    for turn in (1, 2):
        assert client.get(f"{base}/", params={"name": "J\u00f6rg & Co"}).text == "hello J\u00f6rg & Co"
        assert client.get(f"{base}/").text == "hello you"
        assert client.post(f"{base}/form", data={"a": "1", "b": "zw\u00f6lf"}).text == "a=1&b=zw\u00f6lf"
        with file.open("rb") as opened:
            assert client.post(f"{base}/upload", files={"file": ("name.bin", opened)}).text == "name.bin 300000"
        assert client.post(f"{base}/json", json={"x": [1, None, "\u00e9"]}).json() == {"x": [1, None, "\u00e9"]}
        assert client.get(f"{base}/stream").content == STREAMED
        assert client.get(f"{base}/file").content == SOURCE
        assert client.head(f"{base}/").content == b""
        assert client.get(f"{base}/cookie").text == str(turn)
        assert dict(client.cookies) == {"visits": str(turn), "second": "x"}
        assert client.get(f"{base}/nowhere").status_code == 404
        assert client.post(f"{base}/form", data={"a": "z" * 90_000}).text == "a=" + "z" * 90_000


def test_a_site_as_its_clients_see_it(server: RunningServer, client: Any, tmp_path: Path) -> None:
    visit(client, f"http://{server.address}", tmp_path / "file")


def test_a_body_in_chunks_of_a_client_that_streams(server: RunningServer, client: Any) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"x": "'
        yield b"y" * 100_000
        yield b'"}'

    told: dict[str, Callable[[], Iterator[bytes]]] = {
        "data" if isinstance(client, requests.Session) else "content": parts()
    }
    answer = client.post(f"http://{server.address}/json", headers={"Content-Type": "application/json"}, **told)
    assert answer.json() == {"x": "y" * 100_000}


def test_a_stream_arrives_line_by_line(server: RunningServer) -> None:
    with httpx.stream("GET", f"http://{server.address}/stream") as answer:
        assert b"".join(line.encode() + b"\n" for line in answer.iter_lines()) == STREAMED


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_error_gives_nothing_away(serve: Serve, framework: str) -> None:
    server = serve(app_of(framework), *ONE, expect_traceback=True)
    for _ in range(2):
        answer = requests.get(f"http://{server.address}/fail", timeout=10)
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert requests.get(f"http://{server.address}/", timeout=10).text == "hello you"


def test_djangos_static_files_and_what_its_middleware_makes_of_a_stream(shared: Shared) -> None:
    server = shared(app_of("django"), *ONE, "--threads", "2")
    base = f"http://{server.address}"
    with requests.Session() as session:
        answer = session.get(f"{base}/static/web.py")
        assert answer.content == SOURCE
        assert answer.headers["Content-Type"] == "text/x-python"
        since = {"If-Modified-Since": answer.headers["Last-Modified"]}
        assert session.get(f"{base}/static/web.py", headers=since).status_code == 304
        zipped = session.get(f"{base}/stream", headers={"Accept-Encoding": "gzip"})
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert zipped.content == STREAMED
        plain = session.get(f"{base}/file", headers={"Accept-Encoding": "identity"})
        assert plain.headers["Content-Length"] == str(len(SOURCE))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(server: RunningServer, tmp_path: Path) -> None:
    """Including an upload for which it asks to continue."""
    upload = tmp_path / "upload"
    upload.write_bytes(b"u" * 3_000_000)
    base = f"http://{server.address}"
    curl = ["curl", "-sS", "--fail", "--max-time", "20", "--expect100-timeout", "15"]
    done = subprocess.run(
        [*curl, "-F", f"file=@{upload}", f"{base}/upload", "--next", *curl[1:], f"{base}/stream"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"upload 3000000" + STREAMED
    done = subprocess.run([*curl, "-D", "-", "-o", "/dev/null", f"{base}/file"], capture_output=True, check=True)
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_site_under_tls(shared: Shared, tmp_path: Path) -> None:
    server = shared(app_of("flask"), *ONE, *TLS)
    with requests.Session() as session:
        session.trust_env, session.verify = False, FIRST
        visit(session, f"https://localhost:{server.address.rpartition(':')[2]}", tmp_path / "file")
