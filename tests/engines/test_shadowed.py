"""Files of an application with the names of other modules: of the standard library, prefork, or its packages."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange
from tests.support.web import fetch

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve

pytestmark = pytest.mark.slow

# The module can be imported by whoever needs it, and its objects pickled.
WSGI = """
import importlib, pickle

class Job: ...

def app(environ, start_response):
    assert pickle.loads(pickle.dumps(Job)) is Job
    standard = importlib.import_module("{name}")
    body = b"ok" if not hasattr(standard, "Job") else b"shadowed"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
STREAM = "def app(conn):\n    conn.sendall(b'ok')\n"
STREAMS = "async def app(reader, writer):\n    writer.write(b'ok')\n    writer.close()\n"
KINDS = {"asgi": ASGI, "stream": STREAM, "streams": STREAMS}

SCRIPT = Path(sys.executable).parent / "prefork"
OURS = ["click", "prefork", "uvloop", "websockets", "setproctitle"]
# What prefork or a loop imports, and names that somebody would give a file.
STANDARD = [
    "asyncio", "base64", "binascii", "code", "codecs", "collections", "contextlib", "contextvars", "ctypes",
    "datetime", "decimal", "email", "enum", "errno", "fcntl", "functools", "gc", "hashlib", "heapq", "http",
    "importlib", "inspect", "io", "ipaddress", "itertools", "json", "linecache", "logging", "math", "mmap",
    "multiprocessing", "os", "pathlib", "pickle", "platform", "profile", "queue", "random", "re", "secrets",
    "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "stat", "string", "struct",
    "subprocess", "sys", "tempfile", "textwrap", "threading", "time", "token", "tokenize", "traceback",
    "types", "typing", "urllib", "warnings", "weakref", "zlib",
]  # fmt: skip
FEW = ["asyncio", "queue", "select", "socket", "ssl", "types"]
NEIGHBOURS = [
    "queue",
    "ssl",
    "selectors",
    "subprocess",
    "tempfile",
    "email",
    "uvloop",
    "concurrent",
    "base64",
    "hashlib",
]


def directly(*more: str) -> list[str]:
    """A wrapper that runs the script `prefork` in place of `python -m prefork`, whose own folder would come first."""
    return ["sh", "-c", 'shift 3; exec "$0" "$@"', str(SCRIPT), *more]


def test_the_names_are_of_modules() -> None:
    assert set(STANDARD) <= sys.stdlib_module_names
    assert all(importlib.util.find_spec(name) for name in STANDARD)


@pytest.mark.parametrize("name", [pytest.param("select", marks=pytest.mark.smoke), *STANDARD, *OURS])
def test_a_wsgi_application_in_a_file_with_the_name_of_another_module(serve: Serve, app: AppWriter, name: str) -> None:
    spec = app(WSGI.replace("{name}", name), name=f"{name}.py", attribute="app")
    server = serve(spec, "--workers", "1", "--log-level", "debug")
    assert fetch(server).body == b"ok"
    server.wait_log(f"app module renamed app=.*/{name}.py:app module=prefork_app_{name} ")


@pytest.mark.parametrize("options", [(), ("--preload",), ("--loop", "asyncio")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FEW)
def test_each_kind(serve: Serve, app: AppWriter, name: str, kind: str, options: tuple[str, ...]) -> None:
    server = serve(app(KINDS[kind], name=f"{name}.py", attribute="app"), "--workers", "1", *options)
    answer = fetch(server).body if kind == "asgi" else exchange(server.address, b"")
    assert answer == b"ok"


@pytest.mark.parametrize("wrapper", [[], directly()], ids=["module", "script"])
@pytest.mark.parametrize("form", ["{}:app", "{}.py:app"])
@pytest.mark.parametrize("name", FEW)
def test_in_the_current_folder(
    serve: Serve, app: AppWriter, tmp_path: Path, name: str, form: str, wrapper: list[str]
) -> None:
    if wrapper == [] and name == "types":
        pytest.skip("Python itself cannot run a module where there is a types.py")
    app(WSGI.replace("{name}", name), name=f"{name}.py")
    server = serve(form.format(name), "--workers", "1", cwd=tmp_path, wrapper=wrapper)
    assert fetch(server).body == b"ok"


@pytest.mark.parametrize("options", [("--preload",), ("--reload",), ("--threads", "2")])
def test_a_reload_loads_the_file_again(serve: Serve, app: AppWriter, options: tuple[str, ...]) -> None:
    spec = app(WSGI.replace("{name}", "select"), name="select.py", attribute="app")
    server = serve(spec, "--workers", "1", *options)
    assert fetch(server).body == b"ok"
    app(WSGI.replace("{name}", "select").replace('b"ok"', 'b"anew"'), name="select.py")
    if "--reload" not in options:
        server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert fetch(server).body == b"anew"


@pytest.mark.parametrize("kind", ["wsgi", *KINDS])
@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_files_beside_the_application_do_not_reach_the_server(
    serve: Serve, app: AppWriter, kind: str, options: tuple[str, ...]
) -> None:
    """The application itself may have them, where the server has not imported the module before."""
    for name in NEIGHBOURS:
        app("raise ImportError('a file beside the application')", name=f"{name}.py")
    app("SECRET = 'ok'", name="secrets.py")
    source = KINDS.get(kind) or WSGI.replace("{name}", "os")
    server = serve(app(f"import secrets\nassert secrets.SECRET\n{source}", attribute="app"), "--workers", "1", *options)
    answer = fetch(server).body if kind in ("wsgi", "asgi") else exchange(server.address, b"")
    assert answer == b"ok"
