"""A WSGI application that does what its client asks for: one path, one deed, its argument in the query."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from wsgiref.validate import validator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Environ = dict[str, Any]
    StartResponse = Callable[..., Callable[[bytes], None]]

HELLO = b"hello over HTTP\n"
BLOCK = bytes(range(256)) * 256  # 64 KiB
TEXT = [("Content-Type", "text/plain")]


def hello(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Greet."""
    start_response("200 OK", [*TEXT, ("Content-Length", str(len(HELLO)))])
    return [HELLO]


def show_environ(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what the application is told, as JSON."""
    start_response("200 OK", [("Content-Type", "application/json")])
    plain = (str, int, bool, tuple)
    return [json.dumps({key: value for key, value in environ.items() if isinstance(value, plain)}).encode()]


def say_back(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the body that came."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [environ["wsgi.input"].read()]


def measure(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer how many bytes came, read in pieces."""
    source = environ["wsgi.input"]
    total = sum(len(block) for block in iter(lambda: source.read(65536), b""))
    start_response("200 OK", TEXT)
    return [b"%d" % total]


def be_big(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer so many blocks of 64 KiB at once."""
    start_response("200 OK", TEXT)
    return [BLOCK * int(environ["QUERY_STRING"])]


def stream(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer so many blocks of 64 KiB, one by one."""
    start_response("200 OK", TEXT)
    return (BLOCK for _ in range(int(environ["QUERY_STRING"])))


def send_file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the file that is named."""
    start_response("200 OK", TEXT)
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](open(unquote(environ["QUERY_STRING"]), "rb"))  # noqa: SIM115
    return wrapped


def write(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by write(), and then by what is returned."""
    give = start_response("200 OK", TEXT)
    give(b"written, ")
    give(b"")
    give(b"twice, ")
    return [b"and ", b"returned\n"]


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


def never_end(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Stream until the client leaves; the query names the file for Endless."""
    start_response("200 OK", TEXT)
    return Endless(unquote(environ["QUERY_STRING"]))


def fail(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Raise before anything is said."""
    raise RuntimeError("a secret of the application")


def fail_late(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Raise when the head and a part of the body have left."""
    start_response("200 OK", TEXT)
    yield BLOCK
    raise RuntimeError("a secret of the application")


def promise(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer ten bytes under the Content-Length that is asked for."""
    start_response("200 OK", [("Content-Length", environ["QUERY_STRING"])])
    return [b"0123456789"]


def split(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Put what is asked for, decoded, into a header."""
    start_response("200 OK", [("X-Said", unquote(environ["QUERY_STRING"])), ("Content-Length", "0")])
    return []


def be_silent(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer 204."""
    start_response("204 No Content", [])
    return []


def pass_gate(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Stand at the test's gate (tests/support/gate.py) until it opens, then greet."""
    host, _, port = os.environ["GATE_ADDRESS"].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=60) as gate:
            gate.recv(1)
    except ConnectionError:
        pass  # open
    return hello(environ, start_response)


def work(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Take so many seconds, as an application that waits for a database."""
    time.sleep(float(environ["QUERY_STRING"]))
    return hello(environ, start_response)


def spin_forever(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Burn CPU."""
    while True:
        pass


def say_pid(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Say which worker serves."""
    start_response("200 OK", TEXT)
    return [b"%d" % os.getpid()]


def say_thread(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Say which thread serves."""
    start_response("200 OK", TEXT)
    return [b"%d" % threading.get_ident()]


def complain(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Write to wsgi.errors."""
    environ["wsgi.errors"].write(unquote(environ["QUERY_STRING"]) + "\n")
    environ["wsgi.errors"].flush()
    return hello(environ, start_response)


def open_files(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Take every descriptor that is left but so many, for good."""
    folder = Path(tempfile.gettempdir())
    held = HELD
    try:
        while True:
            held.append(os.open(folder, os.O_RDONLY))
    except OSError:
        for _ in range(int(environ["QUERY_STRING"])):
            os.close(held.pop())
    return hello(environ, start_response)


HELD: list[int] = []

DEEDS: dict[str, Callable[[Any, Any], Iterable[bytes]]] = {
    "/": hello,
    "/environ": show_environ,
    "/echo": say_back,
    "/length": measure,
    "/big": be_big,
    "/stream": stream,
    "/file": send_file,
    "/write": write,
    "/endless": never_end,
    "/raise": fail,
    "/raise-late": fail_late,
    "/promise": promise,
    "/split": split,
    "/204": be_silent,
    "/gate": pass_gate,
    "/work": work,
    "/spin": spin_forever,
    "/pid": say_pid,
    "/thread": say_thread,
    "/errors": complain,
    "/exhaust": open_files,
}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Do the deed of the path."""
    path = environ["PATH_INFO"].encode("latin1").decode()
    if path not in DEEDS:
        start_response("404 Not Found", TEXT)
        return [b"no such deed\n"]
    return DEEDS[path](environ, start_response)


validated = validator(app)
