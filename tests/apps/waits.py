"""Applications that mostly wait, as those with a database do: 30 ms for an answer, in bare WSGI and ASGI."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 0.03
FIELDS = [("Content-Type", "text/plain"), ("Content-Length", "4")]


def slow(_environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    time.sleep(WAIT_S)
    start_response("200 OK", FIELDS)
    return [b"done"]


async def awaits(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    if scope["type"] == "http":
        await asyncio.sleep(WAIT_S)
        await _answer(send)


async def blocks(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """The mistake: nothing else of this process goes on meanwhile."""
    if scope["type"] == "http":
        time.sleep(WAIT_S)
        await _answer(send)


async def _answer(send: Callable[..., Any]) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in FIELDS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"done"})
