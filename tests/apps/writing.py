"""A WSGI application that gives its output to write(), or gives back control with b"", and says how it went.

The query is a path. It is a FIFO that the application reads before it goes on, or a file that it makes in the end.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    StartResponse = Callable[..., Callable[[bytes], None]]

BLOCK = bytes(range(256)) * 256  # 64 KiB
BLOCKS = 128
STEPS = 5
STEP_S = 0.5


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path."""
    answer = ANSWERS.get(environ["PATH_INFO"])
    if answer is not None:
        return answer(Path(environ["QUERY_STRING"]), start_response)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def gated(path: Path, start_response: StartResponse, *fields: tuple[str, str]) -> Iterable[bytes]:
    """Write a part, and return the other one when the path can be read."""
    start_response("200 OK", [*fields])(b"first")
    path.read_bytes()
    return [b"later"]


def much(path: Path, start_response: StartResponse) -> Iterable[bytes]:
    """Write more than a client's window holds."""
    write = start_response("200 OK", [])
    for _ in range(BLOCKS):
        write(BLOCK)
    path.touch()
    return []


def paced(_path: Path, start_response: StartResponse) -> Iterable[bytes]:
    """Write a byte at a time."""
    write = start_response("200 OK", [])
    for _ in range(STEPS):
        time.sleep(STEP_S)
        write(b"x")
    return []


def stubborn(path: Path, start_response: StartResponse) -> Iterable[bytes]:
    """Go on when write() has failed."""
    with suppress(OSError):
        write_on(path, start_response)
    path.write_text("")
    return [b"nobody reads this"]


def write_on(path: Path, start_response: StartResponse) -> Iterable[bytes]:
    """Write until that fails."""
    write = start_response("200 OK", [])
    try:
        while True:
            write(BLOCK)
            time.sleep(0.001)
    except OSError as error:
        path.write_text(type(error).__name__)
        raise


def give_back(path: Path, start_response: StartResponse) -> Iterator[bytes]:
    """Give back control until the file is there."""
    start_response("200 OK", [])
    until_s = time.monotonic() + 30
    path.with_suffix(".begun").touch()
    try:
        while not path.exists() and time.monotonic() < until_s:
            yield b""
        yield b"end"
    finally:
        path.with_suffix(".closed").touch()


ANSWERS: dict[str, Callable[[Path, StartResponse], Iterable[bytes]]] = {
    "/gated": gated,
    "/sized": lambda path, start_response: gated(path, start_response, ("Content-Length", "10")),
    "/much": much,
    "/endless": write_on,
    "/stubborn": stubborn,
    "/paced": paced,
    "/yielding": give_back,
}
