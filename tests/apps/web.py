"""The WSGI application of the tests: what routes.py answers, and what only WSGI can."""

from __future__ import annotations

import json
import os
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from wsgiref.validate import validator

from tests.apps.routes import BLOCK, READS, TEXT, Answer, Request, answer, hello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Environ = dict[str, Any]
    StartResponse = Callable[..., Callable[[bytes], None]]


def show_environ(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what the application is told, as JSON."""
    start_response("200 OK", [("Content-Type", "application/json")])
    plain = (str, int, bool, tuple)
    return [json.dumps({key: value for key, value in environ.items() if isinstance(value, plain)}).encode()]


def write(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by write(), and then by what is returned."""
    give = start_response("200 OK", [*TEXT])
    give(b"written, ")
    give(b"")
    give(b"twice, ")
    return [b"and ", b"returned\n"]


def fail_late(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Raise when the head and a part of the body have left; the response begins only with its first piece."""
    start_response("200 OK", [*TEXT])
    yield BLOCK
    raise RuntimeError("a secret of the application")


def return_early(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Break the protocol: no response."""
    return []


def say_thread(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Say which thread serves."""
    start_response("200 OK", [*TEXT])
    return [b"%d" % threading.get_ident()]


def show_variables(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the names of the environment variables that the application has."""
    start_response("200 OK", [*TEXT])
    return [" ".join(os.environ).encode()]


def complain(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Write to wsgi.errors."""
    environ["wsgi.errors"].write(unquote(environ["QUERY_STRING"]) + "\n")
    environ["wsgi.errors"].flush()
    return say(hello(), environ, start_response)


DEEDS: dict[str, Callable[[Environ, StartResponse], Iterable[bytes]]] = {
    "/environ": show_environ,
    "/write": write,
    "/raise-late": fail_late,
    "/return": return_early,
    "/thread": say_thread,
    "/errors": complain,
    "/variables": show_variables,
}


def request_of(environ: Environ, path: str) -> Request:
    """Read the body as well, if the path's deed wants it."""
    size, source = READS.get(path), environ["wsgi.input"]
    return Request(
        method=environ["REQUEST_METHOD"],
        path=path,
        query=environ["QUERY_STRING"],
        scheme=environ["wsgi.url_scheme"],
        host=environ.get("HTTP_HOST", ""),
        client=(environ["REMOTE_ADDR"], environ["REMOTE_PORT"]),
        body=b"".join(iter(lambda: source.read(size), b"")) if size else b"",
    )


def say(said: Answer, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response(f"{said.status} {HTTPStatus(said.status).phrase}", [*said.headers])
    if said.file:
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](open(said.file, "rb"))  # noqa: SIM115
        return wrapped
    return said.pieces


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Do the deed of the path."""
    path = environ["PATH_INFO"].encode("latin1").decode()
    if path in DEEDS:
        return DEEDS[path](environ, start_response)
    return say(answer(request_of(environ, path)), environ, start_response)


validated = validator(app)
