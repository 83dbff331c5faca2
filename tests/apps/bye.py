"""Handlers of each kind that read one line and say goodbye, whatever their clients still send."""

from __future__ import annotations

import socketserver
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def stream(conn: Any) -> None:
    """As a stream handler."""
    conn.readline()
    conn.sendall(b"bye\n")


class Handler(socketserver.StreamRequestHandler):
    """As a handler of socketserver."""

    def handle(self) -> None:
        """Say it."""
        self.rfile.readline()
        self.wfile.write(b"bye\n")


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a coroutine."""
    await reader.readline()
    writer.write(b"bye\n")
    await writer.drain()
