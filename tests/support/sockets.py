"""A WebSocket client for tests: right by way of `websockets`' own protocol, raw where a test wants to be rude."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

from tests.http.websocket_clients import WebsocketsClient
from tests.support.client import TIMEOUT_S, dial

if TYPE_CHECKING:
    import ssl

    from tests.http.websocket_clients import Heard, Message
    from tests.support.server import RunningServer


class Socket:
    """One WebSocket. `status` and `head`: the answer to its handshake; it is open if that is 101.

    `heard`: what has come and waits for `receive`.
    """

    def __init__(
        self,
        server: RunningServer | str,
        path: str = "/",
        *,
        deflate: bool = False,
        subprotocols: list[str] | None = None,
        fields: tuple[tuple[str, str], ...] = (),
        tls: ssl.SSLContext | None = None,
        window: int = 0,
    ) -> None:
        """`window`: the kernel's buffer for what comes."""
        self.sock: socket.socket = dial(server if isinstance(server, str) else server.address, timeout_s=TIMEOUT_S)
        if window:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self._client = WebsocketsClient(deflate=deflate, subprotocols=subprotocols)
        self.heard: list[Heard] = []
        opening = self._client.opening().replace(b"GET /chat ", b"GET %b " % path.encode())
        more = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
        self.sock.sendall(opening[:-2] + more + b"\r\n")
        self.head = b""
        self.rest = b""

    def answered(self) -> Self:
        """Read the answer to the handshake."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                raise EOFError(data)
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        self.head = head + b"\r\n\r\n"
        if self.status == 101:
            self._client.answered(self.head)
            if rest:
                self.heard += self._client.receive(rest)
        else:
            self.rest = rest
        return self

    @property
    def status(self) -> int:
        """What the server said to the handshake."""
        return int(self.head.split(b" ", 2)[1])

    @property
    def subprotocol(self) -> str | None:
        """The one that was agreed on."""
        return self._client.subprotocol

    def send(self, message: Message, pieces: int = 1) -> None:
        """Send a message, in so many fragments."""
        self.sock.sendall(self._client.send(message, pieces))

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.sock.sendall(data)

    def close_with(self, code: int = 1000, reason: str = "") -> None:
        """Send a Close frame."""
        self.sock.sendall(self._client.close(code, reason))

    def receive(self) -> Heard:
        """The next message, or ("close", code, reason). Answers pings and the server's Close. EOFError at the end."""
        while not self.heard:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError("the server has ended the connection")
            self.heard += self._client.receive(data)
            if owed := self._client.replies():
                try:
                    self.sock.sendall(owed)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the server has gone after its Close
        return self.heard.pop(0)

    def closed(self) -> int:
        """Read to the Close and the end of the connection; returns the code."""
        while not isinstance(heard := self.receive(), tuple) or heard[0] != "close":
            pass
        assert self.sock.recv(65536) == b"", "something behind the Close"
        assert isinstance(heard[1], int)
        return heard[1]

    def leave(self) -> None:
        """Close the connection."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self.answered()

    def __exit__(self, *_: object) -> None:
        self.leave()
