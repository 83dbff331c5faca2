"""Driving a WSGI application as an engine does: a request in bytes, the parser, the steps, all that came out."""

from __future__ import annotations

import http.client
import io
import os
from dataclasses import dataclass
from typing import Any

from prefork.http.body import BodyBuffer, FilePart
from prefork.http.environ import Environs, for_listener
from prefork.http.fields import FieldTable
from prefork.http.head import Request
from prefork.http.limits import Limits
from prefork.http.parser import END, RequestParser
from prefork.http.response import stamp
from prefork.http.wsgi import WsgiCall

NOW_S = 1_700_000_000
STAMP = stamp(NOW_S)
CLIENT = "127.0.0.1", 40312
MOST_STEPS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one call. `steps`: what each gave, and each write() in it, parts of files as their bytes."""

    call: WsgiCall
    steps: list[bytes]
    errors: str
    method: str

    @property
    def raw(self) -> bytes:
        return b"".join(self.steps)

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def payload(self) -> bytes:
        """What follows the head, framing included."""
        return self.raw.partition(b"\r\n\r\n")[2]

    def fields(self, name: str) -> list[str]:
        """The values of one field."""
        lines = self.head.decode("latin1").split("\r\n")[1:]
        return [value for key, _, value in (line.partition(": ") for line in lines) if key.lower() == name.lower()]

    def read(self) -> tuple[http.client.HTTPResponse, bytes]:
        """Parse as the standard library's client; raises IncompleteRead for a cut body."""
        response = http.client.HTTPResponse(Stream(self.raw), method=self.method)  # type: ignore[arg-type]
        response.begin()
        return response, response.read()

    @property
    def body(self) -> bytes:
        return self.read()[1]


class Written:
    """A client that takes all that an application gives to write(), until `left`: then it is one that has left."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.left = False

    def write(self, data: bytes) -> None:
        """Take data."""
        if self.left:
            raise BrokenPipeError("the client has left")
        self.sent.append(data)


class Stream:
    """Enough of a socket for http.client: bytes to read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def parse(data: bytes, underscores: str = "drop") -> tuple[Request, BodyBuffer | None]:
    """Parse one request with its body."""
    request, *rest = RequestParser(Limits(), FieldTable(underscores)).feed(data)
    assert isinstance(request, Request), request
    if request.complete:
        assert not rest
        return request, None
    body = BodyBuffer()
    assert rest.pop() is END
    for event in rest:
        assert isinstance(event, bytes)
        body.add(event)
    return request, body


def compose(method: str = "GET", target: str = "/", *fields: str, minor: int = 1, body: bytes = b"") -> bytes:
    """Write a request. A Host goes without saying, and so does the Content-Length of a body."""
    lines = [f"{method} {target} HTTP/1.{minor}", "Host: example.org", *fields]
    if body and not any(field.lower().startswith("transfer-encoding") for field in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin1") + body


def environ_of(data: bytes, **settings: Any) -> dict[str, Any]:
    """Return the environ of a request in bytes.

    `settings`: of the listener; `client`: address and port; `underscores`: as of FieldTable.
    """
    client = settings.pop("client", CLIENT)
    parsed = parse(data, settings.pop("underscores", "drop"))
    return Environs(listener(**settings), *client).of(*parsed)


def listener(**settings: Any) -> dict[str, Any]:
    """What holds for all requests of one listener."""
    plain = {
        "name": "127.0.0.1", "port": 8000, "scheme": "http", "errors": io.StringIO(),
        "multithread": False, "multiprocess": True,
    }  # fmt: skip
    return for_listener(**plain | settings)


def begin(app: Any, data: bytes = b"", *, sendfile: bool = True, keep_alive: bool = True) -> WsgiCall:
    """Make the call, without a step."""
    request, body = parse(data or compose())
    call = WsgiCall(app, Environs(listener(), *CLIENT).of(request, body), request, STAMP, body, sendfile)
    call.keep_alive = call.keep_alive and keep_alive
    return call


def run(app: Any, data: bytes = b"", *, sendfile: bool = True, keep_alive: bool = True) -> Answer:
    """Make the call and step it to its end."""
    call = begin(app, data, sendfile=sendfile, keep_alive=keep_alive)
    errors = call._environ["wsgi.errors"]
    client = call.client = Written()
    steps = client.sent
    while not call.done:
        assert len(steps) < MOST_STEPS
        output = call.step()
        if isinstance(output, FilePart):
            output = os.pread(output.file.fileno(), output.count, output.offset)
        steps.append(output)
    assert call.step() == b"", "nothing comes after the end"
    return Answer(call=call, steps=steps, errors=errors.getvalue(), method=call.request.method)
