"""An ASGI application that takes its time: one path, one way to take it, for how long in the query."""

from __future__ import annotations

import asyncio
import time
from typing import Any


async def wait_deep(seconds: float) -> None:
    """Await something that awaits something."""
    await _wait_deeper(seconds)


async def _wait_deeper(seconds: float) -> None:
    await asyncio.sleep(seconds)


def block(seconds: float) -> None:
    """Hold the loop."""
    time.sleep(seconds)


async def app(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    """Do what the path says, and greet."""
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    seconds = float(scope["query_string"] or 0)
    if scope["path"] == "/wait":
        await wait_deep(seconds)
    elif scope["path"] == "/block":
        block(seconds)
    elif scope["path"] == "/raise":
        raise RuntimeError("as asked")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/raise-late":
        await send({"type": "http.response.body", "body": b"a part", "more_body": True})
        raise RuntimeError("as asked, late")
    await send({"type": "http.response.body", "body": b"hello\n"})
