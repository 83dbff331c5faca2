"""A WebSocket on a connection that waits: for the readable user, and for the proof that a server is ready."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from .failure import CLOSED_EARLY, WRONG_REPLY, ExchangeError
from .websocket import CLOSE, NORMAL, PING, PONG, Messages, close_cause, frame

if TYPE_CHECKING:
    import socket

    from .websocket import Opening


class WebSocketTalk:
    """`open` it, then `echo`; both raise OSError, and ExchangeError for an answer that is not as it should be."""

    def __init__(
        self, connection: socket.socket, opening: Opening, most: int, deadline_s: float = float("inf")
    ) -> None:
        """`most`: bytes of a message; `deadline_s`, by the monotonic clock: when to wait no longer."""
        self.began = b""  # how the server's answer began
        self._connection = connection
        self._opening = opening
        self._messages = Messages(most)
        self._deadline_s = deadline_s
        self._mask = secrets.token_bytes(4)
        self._early = b""  # what came with the server's agreement

    def open(self) -> None:
        """Shake hands."""
        self._connection.sendall(self._opening.request)
        came = b""
        while (rest := self._opening.read(came)) is None:
            came += self._receive()
        self._early = rest

    def echo(self, opcode: int, payload: bytes) -> int:
        """Send a message and wait until it came back. Returns the bytes of the reply."""
        self._connection.sendall(frame(opcode, payload, self._mask))
        while True:
            data, self._early = self._early or self._receive(), b""
            for kind, got in self._messages.feed(data):
                if kind == PING:
                    self._connection.sendall(frame(PONG, got, self._mask))
                elif kind == CLOSE:
                    raise ExchangeError(close_cause(got))
                elif (kind, got) == (opcode, payload):
                    return len(frame(opcode, payload))
                elif kind != PONG:
                    raise ExchangeError(WRONG_REPLY)

    def close(self) -> None:
        """Say goodbye."""
        try:
            self._connection.sendall(frame(CLOSE, NORMAL, self._mask))
        except OSError:
            pass  # the server went first

    def _receive(self) -> bytes:
        if time.monotonic() > self._deadline_s:
            raise TimeoutError("the answer does not end")
        data = self._connection.recv(65536)
        if not data:
            raise ExchangeError(CLOSED_EARLY)
        self.began = self.began or data[:80]
        return data
