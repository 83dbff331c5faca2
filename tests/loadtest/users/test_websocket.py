"""The websocket load as users start it: both engines do the same, and a real server understands them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.server import ServerConnection

from tests.loadtest import stand_in as behave
from tests.loadtest.records import rounds_in
from tests.loadtest.websocket_server import WebSocketServer
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.loadtest.locust_process import Generator
    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]
    StartWebSocket = Callable[..., WebSocketServer]

pytestmark = pytest.mark.slow

SLOW = pytest.mark.slow


def brief(engine: str) -> tuple[str, ...]:
    clients = ("--connections", "3") if engine == "fast" else ("--users", "3", "--spawn-rate", "3")
    return ("--scenario", "websocket", "--engine", engine, "--run-time", "1s", *clients)


@pytest.mark.parametrize("engine", ["fast", pytest.param("readable", marks=SLOW)])
@pytest.mark.parametrize("options", [(), pytest.param(("--exchanges", "4", "--message", "binary"), marks=SLOW)])
def test_both_engines_do_what_the_options_say(
    engine: str, options: tuple[str, ...], web_socket: StartWebSocket, generate: Generate
) -> None:
    sent: list[str | bytes] = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            sent.append(message)
            await connection.send(message)

    server = web_socket(handler)
    host = f"ws://127.0.0.1:{server.address[1]}"
    asked = ("--path", "/a?b", "--header", "X-One: 1", "--payload", "30")
    run = generate("--host", host, *brief(engine), *asked, *options).wait()
    result = run.result()
    assert (result["scenario"], result["failures"], result["censored"]) == ("websocket", {}, 0)
    assert result["completed"] > 10
    assert result["completed"] <= len(sent)
    assert {(type(message), len(message)) for message in sent} == {(bytes if "binary" in options else str, 30)}
    assert {path for path, _ in server.requests} == {"/a?b"}
    assert {head["X-One"] for _, head in server.requests} == {"1"}
    assert len(server.requests) >= len(sent) / 4 if options else len(server.requests) == 3
    eventually(lambda: server.closed == [1000] * len(server.requests), within_s=10, what="clean ends")
    assert "WS       /a?b" in run.log
    assert "CONNECT  /a?b" in run.log


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_both_engines_count_a_refusal(engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.web)
    run = generate("--host", server.address, *brief(engine)).wait(exit_code=1)
    assert set(run.result()["failures"]) == {"status 200"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fast", "readable"])
def test_both_engines_speak_tls(engine: str, web_socket: StartWebSocket, generate: Generate) -> None:
    server = web_socket(tls=behave.certified())
    host = f"wss://127.0.0.1:{server.address[1]}"
    run = generate("--host", host, *brief(engine), "--ca", str(behave.CERTIFICATE), "--payload", "100000").wait()
    assert run.result()["failures"] == {}
    assert run.result()["completed"] > 10


@pytest.mark.slow
def test_both_engines_speak_on_a_unix_socket(web_socket: StartWebSocket, generate: Generate, tmp_path: Path) -> None:
    server = web_socket(path=str(tmp_path / "socket"))
    for engine in ("fast", "readable"):
        result = generate("--host", f"unix:{server.address}", *brief(engine)).wait().result()
        assert (result["failures"], result["completed"] > 10) == ({}, True)


@pytest.mark.slow
def test_several_generators_keep_to_a_rate(web_socket: StartWebSocket, generate: Generate) -> None:
    server = web_socket()
    several = ("--scenario", "websocket", "--engine", "fast", "--connections", "5", "--processes", "2")
    host = f"ws://127.0.0.1:{server.address[1]}"
    run = generate("--host", host, *several, "--rate", "200", "--run-time", "2s", "--window", "1.5").wait()
    result = run.result()
    assert (result["failures"], result["connections"], len(server.requests)) == ({}, 5, 5)
    assert 180 < result["arrivals"]["offered"] < 330  # of 300; one alone offers half of it


def test_a_header_that_is_the_handshakes_own_is_bad_usage(generate: Generate) -> None:
    run = generate(*brief("fast"), "--header", "Upgrade: h2c").wait(exit_code=2)
    assert "header Upgrade cannot be set for websocket" in run.log


ECHO = """
    import asyncio, sys
    from websockets.asyncio.server import serve, unix_serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async def main():
        where = sys.argv[1:]
        server = unix_serve(echo, *where) if len(where) == 1 else serve(echo, where[0], int(where[1]))
        async with server as running:
            await running.serve_forever()

    asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["{host} {port}", pytest.param("{unix}", marks=SLOW)])
def test_the_lab_measures_a_server_of_a_library(where: str, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(textwrap.dedent(ECHO))
    argv = [sys.executable, "-m", "loadtest", "run", "--scenario", "websocket", "--rounds", "1", "--connections", "4",
            "--duration", "0.5", "--warmup", "0.2", "--path", "/x", "--payload", "1000",
            "--server", f"one={{python}} server.py {where}", "--out", "out"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    (done,) = rounds_in(tmp_path / "out")
    assert (done["error"], done["client"]["failures"]) == ("", {})
    assert done["client"]["completed"] > 10
