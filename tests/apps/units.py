"""An application of each kind that blocks for NAP_S, if it is asked to, and then answers `done`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from prefork.runtime.connection import Connection

NAP_S = 0.03
HEADERS = [("Content-Length", "4"), ("Connection", "close")]


def work(asked: bytes) -> None:
    """Block for as long as the client wants."""
    if asked == b"nap\n":
        time.sleep(NAP_S)


def stream(conn: Connection) -> None:
    """Serve a stream on a thread."""
    work(conn.readline())
    conn.sendall(b"done")


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve a stream in a coroutine."""
    work(await reader.readline())
    writer.write(b"done")
    await writer.drain()


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Serve WSGI."""
    work(environ["wsgi.input"].read())
    start_response("200 OK", HEADERS)
    return [b"done"]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve ASGI."""
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan")
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    work(body)
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"done"})
