"""The C code that masks is loaded alone: not the package that it is part of, which imports much else."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.server import ROOT, clean_environment
from tests.support.sockets import Socket

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve

pytestmark = pytest.mark.slow

LOADS = """
import sys
from prefork.http.websocket import apply_mask, fastest_mask

mask = fastest_mask()
assert mask is not apply_mask
assert mask(b"masked", b"mask") == apply_mask(b"masked", b"mask") == bytes([0, 0, 0, 0, 8, 5])
assert mask is fastest_mask()
print([name for name in ("websockets", "csv") if name in sys.modules])
"""


@pytest.mark.smoke
def test_nothing_else_is_imported_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")


SAYS_BACK = """
async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
"""


@pytest.mark.parametrize("options", [(), ("--loop", "asyncio"), ("--preload",)])
def test_a_file_beside_the_application_does_not_keep_a_websocket_from_opening(
    serve: Serve, app: AppWriter, options: tuple[str, ...]
) -> None:
    app("raise RuntimeError('a file beside the application')", name="csv.py")
    server = serve(app(SAYS_BACK, attribute="app"), "--workers", "1", *options)
    with Socket(server) as ws:
        assert ws.status == 101
        ws.send("text")
        assert ws.receive() == "text"
