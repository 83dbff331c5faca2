"""A strict HTTP/1.1 client for tests: bytes out as the test gives them, whole responses in, every doubt an error."""

from __future__ import annotations

import re
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.support.client import TIMEOUT_S, dial, read_to_end
from tests.support.server import APPS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from tests.support.server import RunningServer

WEB = f"{APPS / 'web.py'}:app"
ASGI = f"{APPS / 'web_asgi.py'}:app"  # which answers alike: see tests/apps/routes.py
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([ -~]*)")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~\x80-\xff]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response. `fields` has names in lower case; two of the same name are an error unless it is Set-Cookie."""

    status: int
    fields: Mapping[str, str]
    body: bytes = b""

    @property
    def closes(self) -> bool:
        """Whether the server says that the connection ends here."""
        return self.fields.get("connection") == "close"


def request(path: str = "/", *, method: str = "GET", body: bytes | None = None, minor: int = 1, **fields: str) -> bytes:
    """Return a whole request; `x_forwarded_for="…"` is the field X-Forwarded-For."""
    lines = [f"{method} {path} HTTP/1.{minor}", *([] if "host" in fields else ["Host: localhost"])]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in fields.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin1") + (body or b"")


class Browser:
    """One connection to a server. Everything that it reads has to be right, to the byte."""

    def __init__(self, server: RunningServer | str, *, tls: ssl.SSLContext | None = None) -> None:
        self.sock: socket.socket = dial(server if isinstance(server, str) else server.address, timeout_s=TIMEOUT_S)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.sock.sendall(data)

    def get(self, path: str = "/", **fields: str) -> Response:
        """Ask for a path and read the response."""
        self.send(request(path, **fields))
        return self.response()

    def post(self, path: str, body: bytes, **fields: str) -> Response:
        """Send a body to a path and read the response."""
        self.send(request(path, method="POST", body=body, **fields))
        return self.response()

    def head(self) -> tuple[int, dict[str, str]]:
        """Read a head alone: status and fields."""
        raw = self._until(b"\r\n\r\n")
        first, *lines = raw[:-4].split(b"\r\n")
        status = _STATUS.fullmatch(first)
        assert status, f"not a status line: {first!r}"
        fields: dict[str, str] = {}
        for line in lines:
            match = _FIELD.fullmatch(line)
            assert match, f"not a field: {line!r}"
            name = match[1].decode().lower()
            assert name not in fields or name == "set-cookie", f"{name} twice: {raw!r}"
            fields[name] = match[2].decode("latin1")
        assert int(status[1]) == 100 or "date" in fields, raw
        return int(status[1]), fields

    def response(self, *, head: bool = False) -> Response:
        """Read one response; `head`: it answers HEAD, and has no body. Raises EOFError if the server closes."""
        code, fields = self.head()
        body = b"" if head or code in (100, 204, 304) else self._body(fields)
        return Response(status=code, fields=fields, body=body)

    def ended(self) -> bool:
        """Wait for the server's end; whether it came without another byte and without a reset."""
        return not self._buffer and read_to_end(self.sock) == b""

    def rest(self) -> bytes:
        """Read all that still comes, to the server's end."""
        rest, self._buffer = self._buffer + read_to_end(self.sock), b""
        return rest

    # --- reading

    def _body(self, fields: dict[str, str]) -> bytes:
        assert not {"transfer-encoding", "content-length"} <= fields.keys(), fields
        if "transfer-encoding" in fields:
            assert fields["transfer-encoding"] == "chunked", fields
            return self._chunks()
        if "content-length" in fields:
            return self.exactly(int(fields["content-length"]))
        assert fields.get("connection") == "close", f"where does it end? {fields}"
        return self.rest()

    def _chunks(self) -> bytes:
        body = []
        while size := int(self._until(b"\r\n"), 16):
            body.append(self.exactly(size))
            assert self.exactly(2) == b"\r\n"
        assert self.exactly(2) == b"\r\n"
        return b"".join(body)

    def _until(self, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            assert len(self._buffer) < 1 << 20, "no end of line or head"
            self._more()
        found, self._buffer = self._buffer[: at + len(end)], self._buffer[at + len(end) :]
        return found

    def exactly(self, size: int) -> bytes:
        """Read so many bytes."""
        parts, have = [self._buffer], len(self._buffer)
        while have < size:
            chunk = self.sock.recv(min(size - have, 1 << 20))
            if not chunk:
                raise EOFError(b"".join(parts)[:200])
            parts.append(chunk)
            have += len(chunk)
        whole = b"".join(parts)
        self._buffer = whole[size:]
        return whole[:size]

    def _more(self) -> None:
        chunk = self.sock.recv(65536)
        if not chunk:
            raise EOFError(self._buffer)
        self._buffer += chunk


def fetch(
    server: RunningServer | str, path: str = "/", *, tls: ssl.SSLContext | None = None, **fields: str
) -> Response:
    """Ask for one path over a connection of its own."""
    with Browser(server, tls=tls) as browser:
        return browser.get(path, **fields)


def silent(browser: Browser) -> bool:
    """Whether nothing has come from the server. What it had to say before this is known to be here."""
    return not select.select([browser.sock], [], [], 0)[0]
