"""The built-in applications: the life cycle of a socket server in a few lines each, a greeting over WSGI and ASGI."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from prefork.errors import LineTooLong
from prefork.runtime.connection import Connection

GREETING = b"hello from prefork\n"
NAP_S = 0.005
_AHELLO = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(GREETING))]


def talkback(conn: Connection) -> None:
    """Greet, read one line, say it back, close."""
    _talkback(conn, 0.0)


def nap(conn: Connection) -> None:
    """Talkback that waits 5 ms before the answer, as an application does that asks a database."""
    _talkback(conn, NAP_S)


def echo(conn: Connection) -> None:
    """Return each line as it came, until the client closes."""
    try:
        while line := conn.readline():
            conn.sendall(line)
    except LineTooLong as error:
        _refuse(conn, error)


def hello(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Greet over HTTP, whatever is asked (WSGI)."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(GREETING)))])
    return [GREETING]


async def ahello(scope: dict[str, Any], _receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Greet over HTTP, whatever is asked (ASGI)."""
    if scope["type"] != "http":
        raise ValueError(f"this application does not speak {scope['type']}")
    await send({"type": "http.response.start", "status": 200, "headers": _AHELLO})
    await send({"type": "http.response.body", "body": GREETING})


def _talkback(conn: Connection, nap_s: float) -> None:
    conn.sendall(GREETING)
    try:
        line = conn.readline()
    except LineTooLong as error:
        _refuse(conn, error)
    if nap_s:
        time.sleep(nap_s)
    text = line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line
    conn.sendall(b"you said: " + text + b"\n")


def _refuse(conn: Connection, error: LineTooLong) -> NoReturn:
    """Tell the client why, then let the engine count it."""
    conn.sendall(b"line too long: at most %d bytes\n" % error.limit)
    raise error


BUILTINS: dict[str, Callable[..., Any]] = {
    "talkback": talkback,
    "echo": echo,
    "nap": nap,
    "hello": hello,
    "ahello": ahello,
}
