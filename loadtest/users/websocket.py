"""The user of the websocket scenario: one connection, one message after the other, each echoed before the next."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ..generator.websocket import OPCODES, WebSocketTalk
from .stream import EchoUser
from .web_options import opening_of, tls_of

if TYPE_CHECKING:
    from locust.env import Environment


class WebSocketUser(EchoUser):
    """Opens a WebSocket at `--path` and has `--payload` bytes echoed, until `--exchanges` or the server end it."""

    protocol = "websocket"
    request_type = "WS"

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self.name = options.path
        self.opcode = OPCODES[options.message]
        self.opening = opening_of(options, self.server.name)
        self.tls = tls_of(options) if self.server.tls else None
        self.talk: WebSocketTalk | None = None  # on the connection, once the server has agreed

    def _open(self) -> int:
        options = self.environment.parsed_options
        self.connection = self.connect()
        try:
            if self.family != socket.AF_UNIX:
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                self.connection = self.tls.wrap_socket(self.connection, server_hostname=self.server.host)
            talk = WebSocketTalk(self.connection, self.opening, options.payload)
            talk.open()
        except BaseException:
            self._close()
            raise
        self.talk = talk
        self.left = options.exchanges or float("inf")
        return 0

    def _echo(self) -> int:
        assert self.talk is not None
        self.left -= 1
        return self.talk.echo(self.opcode, self.next_line()[:-1])

    def _close(self) -> None:
        if self.talk is not None:
            self.talk.close()
            self.talk = None
        super()._close()
