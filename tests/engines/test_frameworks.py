"""Real frameworks behind the server and real client libraries before it: what people will run."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.server import APPS
from tests.support.tls import FIRST, TLS, trusting
from tests.support.ways import ONE, Way
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

requests = pytest.importorskip("requests")
httpx = pytest.importorskip("httpx")

ON_THREADS = ("--threads", "2")
SITES: dict[str, Way] = {
    "flask": ("site_flask.py:site", *ON_THREADS),
    "django": ("site_django.py:site", *ON_THREADS),
    "bottle": ("site_bottle.py:site", *ON_THREADS),
    "pyramid": ("site_pyramid.py:site", *ON_THREADS),
    "starlette": ("site_starlette.py:site",),
    "fastapi": ("site_fastapi.py:site",),
    "quart": ("site_quart.py:site",),
    "litestar": ("site_litestar.py:site",),
    "django-asgi": ("site_django.py:asgi_site",),
}
SOURCE = (APPS / "web.py").read_bytes()  # the file that each site serves
STREAMED = b"".join(b"line %d\n" % number for number in range(10))


def way_of(site: str) -> Way:
    """Return the command line for one of the sites."""
    pytest.importorskip(site.partition("-")[0])
    name, *options = SITES[site]
    return (str(APPS / name), *options, *ONE)


@pytest.fixture(params=SITES)
def server(shared: Shared, request: pytest.FixtureRequest) -> RunningServer:
    return shared(*way_of(request.param))


@pytest.fixture(params=["requests", "httpx"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A session that keeps its connections, and trusts the tests' certificate."""
    with requests.Session() if request.param == "requests" else httpx.Client(verify=trusting()) as session:
        if request.param == "requests":
            session.trust_env, session.verify = False, FIRST
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


@pytest.mark.parametrize(
    ("site", "options"),
    [("flask", ()), ("starlette", ("--loop", "asyncio")), ("django-asgi", ("--loop", "asyncio"))],
)
def test_a_site_under_tls(shared: Shared, client: Any, tmp_path: Path, site: str, options: Way) -> None:
    server = shared(*way_of(site), *options, *TLS)
    visit(client, f"https://localhost:{server.address.rpartition(':')[2]}", tmp_path / "file")


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


@pytest.mark.parametrize("site", SITES)
def test_an_error_gives_nothing_away(serve: Serve, site: str) -> None:
    server = serve(*way_of(site), expect_traceback=True)
    for _ in range(2):
        answer = requests.get(f"http://{server.address}/fail", timeout=10)
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert requests.get(f"http://{server.address}/", timeout=10).text == "hello you"


def test_a_client_that_leaves_its_upload_makes_no_noise(server: RunningServer) -> None:
    for path in ("/json", "/form"):
        with Browser(server) as browser:
            browser.send(request(path, method="POST", content_type="application/json", content_length="1000") + b"{")
    assert fetch(server).body == b"hello you"
    assert "Traceback" not in server.log


@pytest.mark.parametrize("site", ["django", "django-asgi"])
def test_djangos_static_files_and_what_its_middleware_makes_of_a_stream(shared: Shared, site: str) -> None:
    server = shared(*way_of(site))
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
@pytest.mark.parametrize(
    ("site", "options"),
    [*((site, ()) for site in SITES), ("flask", TLS), ("starlette", TLS)],
)
def test_curl(shared: Shared, tmp_path: Path, site: str, options: Way) -> None:
    """Including an upload for which it asks to continue."""
    server = shared(*way_of(site), *options)
    upload = tmp_path / "upload"
    upload.write_bytes(b"u" * 3_000_000)
    base = f"https://localhost:{server.address.rpartition(':')[2]}" if options else f"http://{server.address}"
    curl = ["curl", "-sS", "--http1.1", "--cacert", FIRST, "--fail", "--max-time", "20", "--expect100-timeout", "15"]
    done = subprocess.run(
        [*curl, "-F", f"file=@{upload}", f"{base}/upload", "--next", *curl[1:], f"{base}/stream"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"upload 3000000" + STREAMED
    done = subprocess.run([*curl, "-D", "-", "-o", "/dev/null", f"{base}/file"], capture_output=True, check=True)
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
