"""What the applications of web.py and web_asgi.py answer alike: one path, one deed, its argument in the query.

A deed makes an Answer of a Request. The applications make the Request of what their interface tells them, and send the
Answer by its means; what only one of them can, or does in a way of its own, is there.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from tests.apps import gated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HELLO = b"hello over HTTP\n"
BLOCK = bytes(range(256)) * 256  # 64 KiB
TEXT = (("Content-Type", "text/plain"),)


class Request(NamedTuple):
    """What both interfaces tell. `client` is an address and a port; both are empty for a Unix socket."""

    method: str
    path: str
    query: str
    scheme: str
    host: str
    client: tuple[str, str]
    body: bytes  # read only for the paths of READS

    @property
    def argument(self) -> str:
        """The query, decoded."""
        return unquote(self.query)


class Answer(NamedTuple):
    """A response. A list of pieces is the whole body; of other iterables, each piece is sent by itself.

    `pieces.close`, if it exists, is called when the client leaves. `file` is sent instead, by what the interface has
    for files.
    """

    pieces: Iterable[bytes] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = TEXT
    file: str = ""


def hello(_: Request | None = None) -> Answer:
    return Answer([HELLO], headers=(*TEXT, ("Content-Length", str(len(HELLO)))))


def tell(request: Request) -> Answer:
    """Answer what the application is told, as JSON."""
    told = {**request._asdict(), "body": request.body.decode("latin1")}
    return Answer([json.dumps(told).encode()], headers=(("Content-Type", "application/json"),))


def count_sent(request: Request) -> Answer:
    """Stream so many blocks, and note in a file, each time, how many of them were taken."""
    count, path = request.argument.split(" ")

    def blocks() -> Iterator[bytes]:
        with open(path, "wb", buffering=0) as file:
            for number in range(int(count)):
                yield BLOCK
                os.pwrite(file.fileno(), b"%9d" % (number + 1), 0)

    return Answer(blocks())


class Endless:
    """A body without an end, which notes in a file each time that it is closed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield BLOCK

    def close(self) -> None:
        """Leave a mark."""
        with open(self._path, "a") as file:
            file.write("closed\n")


def fail(_: Request) -> Answer:
    """Raise before anything is said."""
    raise RuntimeError("a secret of the application")


def fail_late(_: Request) -> Answer:
    """Raise when the head and a part of the body have left."""

    def blocks() -> Iterator[bytes]:
        yield BLOCK
        raise RuntimeError("a secret of the application")

    return Answer(blocks())


def pass_gate(_: Request) -> Answer:
    """Stand at the test's gate (tests/support/gate.py) until it opens, and keep the thread or the loop."""
    gated.pass_gate()
    return hello()


def block(request: Request) -> Answer:
    """Take so many seconds, and keep the thread or the loop."""
    time.sleep(float(request.query))
    return hello()


def spin_forever(_: Request) -> Answer:
    """Burn CPU."""
    while True:
        pass


HELD: list[int] = []


def open_files(request: Request) -> Answer:
    """Take every descriptor that is left but so many, for good."""
    try:
        while True:
            HELD.append(os.open(tempfile.gettempdir(), os.O_RDONLY))
    except OSError:
        for _ in range(int(request.query)):
            os.close(HELD.pop())
    return hello()


ROUTES: dict[str, Callable[[Request], Answer]] = {
    "/": hello,
    "/told": tell,
    "/echo": lambda request: Answer([request.body]),
    "/length": lambda request: Answer([b"%d" % len(request.body)]),
    "/big": lambda request: Answer([BLOCK * int(request.query)]),
    "/stream": lambda request: Answer(BLOCK for _ in range(int(request.query))),
    "/count": count_sent,
    "/endless": lambda request: Answer(Endless(request.argument)),
    "/file": lambda request: Answer(file=request.argument),
    "/204": lambda _: Answer([], 204, ()),
    "/promise": lambda request: Answer([b"0123456789"], headers=(("Content-Length", request.query),)),
    "/split": lambda request: Answer([], headers=(("X-Said", request.argument), ("Content-Length", "0"))),
    "/raise": fail,
    "/raise-late": fail_late,
    "/gate": pass_gate,  # in web_asgi.py, and so the next: the call waits, and the loop goes on
    "/work": block,
    "/hold": pass_gate,
    "/block": block,
    "/spin": spin_forever,
    "/exhaust": open_files,
    "/pid": lambda _: Answer([b"%d" % os.getpid()]),
    "/generation": lambda _: Answer([os.environ["PREFORK_GENERATION"].encode()]),
}
READS = {"/echo": -1, "/length": 65536, "/told": 1000}  # whose body is read, and how much at a time: -1 is all of it


def answer(request: Request) -> Answer:
    """Do the deed of the path."""
    deed = ROUTES.get(request.path)
    return deed(request) if deed else Answer([b"no such deed\n"], 404)
