"""Talkback on asyncio: `python asyncio_talkback.py asyncio|uvloop streams|protocol HOST PORT`.

Streams are what asyncio's own page begins with, a Protocol is what it offers to those who need the speed; each runs on
the standard library's event loop or on uvloop. Both loops set TCP_NODELAY on every connection by themselves.
`handle` and `Talkback` are what prefork serves too, as they are.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import cast

GREETING = b"hello from prefork\n"
BACKLOG = 2048


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    line = await reader.readline()
    writer.write(b"you said: " + line.rstrip(b"\r\n") + b"\n")
    await writer.drain()
    writer.close()


class Talkback(asyncio.Protocol):
    def __init__(self) -> None:
        self.line = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self.transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        self.line += data
        if b"\n" in data:
            self.answer()

    def eof_received(self) -> None:
        self.answer()

    def answer(self) -> None:
        line = self.line.partition(b"\n")[0].removesuffix(b"\r")
        self.transport.write(b"you said: " + line + b"\n")
        self.transport.close()


async def serve(kind: str, host: str, port: int) -> None:
    if kind == "streams":
        server = await asyncio.start_server(handle, host, port, backlog=BACKLOG)
    else:
        server = await asyncio.get_running_loop().create_server(Talkback, host, port, backlog=BACKLOG)
    await server.serve_forever()


def main() -> None:
    loop, kind, host, port = sys.argv[1:]
    run = import_module(loop).run  # asyncio.run, or uvloop.run
    run(serve(kind, host, int(port)))


if __name__ == "__main__":
    main()
