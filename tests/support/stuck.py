"""The reader of a log that is stuck, and what it finds when it reads again."""

from __future__ import annotations

import os


def fill(end: int) -> None:
    """Leave no room for a single byte; the description, which the server shares, is blocking again afterwards."""
    os.set_blocking(end, False)
    for size in (65536, 1):
        try:
            while os.write(end, b"\n" * size):
                pass
        except BlockingIOError:
            continue  # full, for this size
    os.set_blocking(end, True)


def read_all(fd: int) -> str:
    """Read what there is."""
    os.set_blocking(fd, False)
    text = b""
    try:
        while chunk := os.read(fd, 65536):
            text += chunk
    except BlockingIOError:
        pass  # all of it
    return text.decode()
