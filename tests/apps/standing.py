"""The same application for each engine: `gil` has a background thread hold the GIL, from a moment after the answer on.

It answers `ok` with the pid of its worker. `nap SECONDS` prints that it begins, and sleeps before it answers.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from typing import Any

MOMENT_S = 0.1


def _hold_the_gil() -> None:
    time.sleep(MOMENT_S)  # so that the answer is out
    re.match(r"(a+)+$", "a" * 45 + "b")  # takes hours, and never lets another thread run


def _obey(word: str) -> bytes:
    verb, _, argument = word.partition(" ")
    if verb == "gil":
        threading.Thread(target=_hold_the_gil, daemon=True).start()
    elif verb == "nap":
        print("naps", os.getpid())
        time.sleep(float(argument))
    return b"ok %d\n" % os.getpid()


def stream(conn: Any) -> None:
    """Obey one line."""
    conn.sendall(_obey(conn.readline().decode().strip()))


async def coroutine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Obey one line."""
    writer.write(_obey((await reader.readline()).decode().strip()))
    await writer.drain()
    writer.close()


class Line(asyncio.Protocol):
    """Obeys one line."""

    def connection_made(self, transport: Any) -> None:
        """Keep it."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer and leave; the line comes whole."""
        self._transport.write(_obey(data.decode().strip()))
        self._transport.close()


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Obey the path."""
    answer = _obey(environ["PATH_INFO"][1:].replace("/", " "))
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


async def asgi(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    """Obey the path."""
    assert scope["type"] == "http"
    answer = _obey(scope["path"][1:].replace("/", " "))
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
