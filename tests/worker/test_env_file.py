"""--env-file: the application has the variables in every worker, and a reload gives new workers the new ones."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.server import run
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

APP = """
import os
SHOP = " ".join(os.environ.get(name, "-") for name in ("SHOP_A", "SHOP_B", "SHOP_C")).encode()
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", str(len(SHOP)))])
    return [SHOP]
async def aio(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(SHOP))]})
    await send({"type": "http.response.body", "body": SHOP})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def said(server: RunningServer) -> str:
    return fetch(server, "/").body.decode()


@pytest.mark.parametrize("way", [("shop:app",), ("shop:app", "--preload"), ("shop:aio",)])
def test_the_application_has_the_variables_and_a_reload_reads_them_again(
    serve: Serve, folder: Path, way: tuple[str, ...]
) -> None:
    file = folder / ".env"
    file.write_text("SHOP_A=one\nSHOP_B=file\nPREFORK_WORKERS=1\n")
    server = serve(*way, "--env-file", ".env", cwd=folder, env={"SHOP_B": "environment"})
    assert said(server) == "one environment -"
    server.wait_log("ready workers=1 ")
    file.write_text("SHOP_C='two'\nPREFORK_WORKERS=2\n")
    server.signal(signal.SIGHUP)
    eventually(lambda: said(server) == "- environment two", within_s=15)
    file.write_text("SHOP_C='two\n")
    server.signal(signal.SIGHUP)
    server.wait_log(r"reload abandoned .*\.env:1: the quote of SHOP_C is not closed")
    assert said(server) == "- environment two"


def test_check_and_config_know_the_file(folder: Path) -> None:
    (folder / ".env").write_text("SHOP_A=one\n\nPREFORK_THREADS=7\n")
    (folder / "picky.py").write_text("import os\nassert os.environ['SHOP_A'] == 'one'\nfrom shop import app\n")
    assert run("check", "picky:app", "--env-file", ".env", cwd=folder).returncode == 0
    shown = json.loads(run("config", "picky:app", "--env-file", ".env", "--json", cwd=folder).stdout)
    assert shown["threads"] == {"value": 7, "source": ".env:3"}
    (folder / ".env").write_text("SHOP_A\n")
    for command in ("check", "config", "serve"):
        done = run(command, "picky:app", "--env-file", ".env", cwd=folder)
        assert done.returncode == 2
        assert done.stderr == "prefork: .env:1: this is neither KEY=VALUE nor a comment\n"
