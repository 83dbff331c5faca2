"""Talkback that works for its answer, as an application does that fills in a template: about a millisecond of Python.

The work is a fixed amount, so it takes longer where somebody else wants the CPU too. It never gives up the GIL, except
when Python makes it: threads of one process get no more of it done than one thread does.
"""

from __future__ import annotations

from typing import Any

GREETING = b"hello from prefork\n"
ROWS = 600


def handle(conn: Any) -> None:
    """Serve one client: greet, read a line, work, say it back, close."""
    conn.sendall(GREETING)
    line = conn.readline()
    page(ROWS)
    conn.sendall(b"you said: " + line.rstrip(b"\r\n") + b"\n")


def page(rows: int) -> str:
    """A table in HTML, made in Python as a template engine would."""
    cells = ((str(row), f"item {row:05d}", f"{row * 1.19:.2f}") for row in range(rows))
    return "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
