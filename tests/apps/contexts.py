"""Applications that leave a mark in a context variable, and say which one they have found."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

MARK = contextvars.ContextVar("MARK", default="none")
MARK.set("import")


def leave_mark(mark: str) -> bytes:
    """Return the mark that was found."""
    found = MARK.get()
    MARK.set(mark)
    return found.encode()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Over HTTP and WebSocket; `/later` has its next mark after its response."""
    if scope["type"] == "lifespan":
        leave_mark("lifespan")
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    found = leave_mark(scope["path"])
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": found})
        await send({"type": "websocket.close"})
        return
    while (await receive())["more_body"]:
        leave_mark("the body")
    padding = bytes(1 << 21) if scope["path"] == "/large" else b""
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": found + b" ", "more_body": True})
    await send({"type": "http.response.body", "body": padding})
    if scope["path"] == "/later":
        leave_mark("the background")
        for _ in range(3):
            await asyncio.sleep(0)


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one line with the mark that was found."""
    found = leave_mark("a handler")
    while await reader.readline():
        leave_mark("a line")
        writer.write(found + b"\n")
        await writer.drain()


class Talk(asyncio.Protocol):
    """The same as a Protocol."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._found = leave_mark("a connection")

    def data_received(self, data: bytes) -> None:
        leave_mark("data")
        self._transport.write(self._found + b"\n")
