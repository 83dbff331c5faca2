"""The `environ` of PEP 3333: what holds for a listener, and what a connection and its request add to it.

All CGI variables are native strings: bytes as they came, decoded as latin-1. There is a key for each field, with two
exceptions that fields.py makes: HTTP_PROXY, which would tell the application's own HTTP client where to go, and
Transfer-Encoding, since the body that is read here is decoded. What becomes of names with "_", FieldTable says.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import IO, Any, TextIO
from urllib.parse import unquote_to_bytes

from prefork.http.body import BodyBuffer, FileWrapper
from prefork.http.fields import Field
from prefork.http.head import Request

Environ = dict[str, Any]


def for_listener(
    *,
    name: str,
    port: int,
    scheme: str,
    errors: TextIO | IO[str],
    multithread: bool,
    multiprocess: bool,
    root_path: str = "",
) -> Environ:
    """Prepare what is the same for all requests of a listener.

    `name` and `port`: where it listens; "" and 0 for a Unix socket, which stands for the local host here, since
    neither may be empty. `scheme`: http or https. `errors`: takes any text. `root_path`: where the application is
    mounted, decoded.
    """
    environ = {
        "SCRIPT_NAME": root_path.encode().decode("latin1"),
        "QUERY_STRING": "",
        "SERVER_NAME": name or "localhost",
        "SERVER_PORT": str(port or (443 if scheme == "https" else 80)),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "prefork",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": errors,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": multiprocess,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,  # the input ends with the body: an application may read to its end
    }
    if scheme == "https":
        environ["HTTPS"] = "on"
    return environ


class Environs:
    """The environs of one connection's requests. A client on a Unix socket has "" for an address and a port.

    A client that keeps its connection sends the same fields again; the parser then gives the very same list of them,
    and what they become is remembered (measured: 0.8 us less for a browser's request). Until then nothing is: most
    connections wait for a next request, and a dict for each takes half a KiB.
    """

    __slots__ = ("_address", "_fields", "_listener", "_port", "_with_fields")

    def __init__(self, listener: Environ, address: str, port: int | str) -> None:
        self._listener = listener
        self._address = address
        self._port = str(port)
        self._fields: list[Field] | None = None
        self._with_fields: Environ | None = None

    def secure(self, added: Environ) -> None:
        """The connection is under TLS: tell it in all environs."""
        self._listener = {**self._listener, **added}

    def of(self, request: Request, body: BodyBuffer | None = None) -> Environ:
        """Return a new environ for one request whose body, if there is one, is complete."""
        if request.fields is not self._fields:
            self._fields, self._with_fields = request.fields if request.plain else None, None
            environ = self._made_of(request.fields)
        else:
            if self._with_fields is None:
                self._with_fields = self._made_of(request.fields)
            environ = self._with_fields.copy()
        environ["REQUEST_METHOD"] = request.method
        environ["REQUEST_URI"] = environ["RAW_URI"] = uri = request.target.decode("latin1")
        path = request.path
        if path is request.target and b"%" not in path and uri != "*":
            environ["PATH_INFO"] = uri
        else:
            # `OPTIONS *` asks about the server as a whole: no path, not one that is called "*".
            environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin1") if path != b"*" else ""
            environ["QUERY_STRING"] = request.query.decode("latin1")
        if root := environ["SCRIPT_NAME"]:
            # A proxy before us may take it away, or leave it. What is below it begins with a slash, or is nothing.
            rest = environ["PATH_INFO"].removeprefix(root)
            if not rest or rest[0] == "/":
                environ["PATH_INFO"] = rest
        if not request.minor:
            environ["SERVER_PROTOCOL"] = "HTTP/1.0"
        if body is None:
            environ["wsgi.input"] = BytesIO()
        else:
            environ["wsgi.input"] = body.input()
            environ["CONTENT_LENGTH"] = str(body.size)  # of a chunked one too: many applications read nothing without
        return environ

    def _made_of(self, fields: Sequence[Field]) -> Environ:
        """Return a new environ that has a key for each field."""
        environ = self._listener.copy()
        environ["REMOTE_ADDR"] = self._address
        environ["REMOTE_PORT"] = self._port
        for name, value in fields:
            key = name.cgi
            if key not in environ:
                environ[key] = value.decode("latin1")
            else:  # RFC 9110 5.3, RFC 9113 8.2.3
                environ[key] += ("; " if key == "HTTP_COOKIE" else ", ") + value.decode("latin1")
        if environ.pop("", None) is not None:  # what must not be seen; cheaper than a look at each
            _add_ambiguous(environ, fields)
        return environ


def _add_ambiguous(environ: Environ, fields: Sequence[Field]) -> None:
    """Add the fields whose names have "_", where no other field has their key (FieldTable, underscores="pass")."""
    values: dict[str, list[str]] = {}
    for name, value in fields:
        if name.ambiguous:
            values.setdefault(name.ambiguous, []).append(value.decode("latin1"))
    for key, found in values.items():
        environ.setdefault(key, ", ".join(found))
