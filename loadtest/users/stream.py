"""Users of the line protocols and of WebSocket, written as a locust user usually is: one connection each, one task, one
request event.

The clock of an exchange starts before connect (talkback, nap) or before the line or message is sent (echo, websocket).
It stops when the last byte of the reply was read, for talkback and nap the end of the stream. Replies are compared byte
for byte with the expected one.
"""

from __future__ import annotations

import itertools
import random
import socket
import ssl
import time
from select import POLLIN, POLLRDHUP
from typing import TYPE_CHECKING

from gevent import GreenletExit, Timeout
from gevent.monkey import get_original
from locust import User, constant, task

from loadtest.generator.failure import CLOSED_EARLY, WRONG_REPLY, ExchangeError, cause_of
from loadtest.generator.lines import GREETING, PREFIX, numbered
from loadtest.generator.recorder import CONNECT
from loadtest.generator.websocket import OPCODES, WebSocketTalk
from loadtest.users.options import ECHOES, scenario_of, target
from loadtest.users.web import name_of, opening_of, tls_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment


poll = get_original("select", "poll")


class StreamUser(User):  # type: ignore[misc]  # locust ships no types
    """What the users of line protocols share: the address, distinct lines, and an exchange under a deadline."""

    abstract = True
    wait_time = constant(0)
    protocol = "tcp"
    request_type = "TCP"
    unix = True  # whether it can speak that over a Unix socket

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.server, self.family, self.address = target(self)
        self.scenario = scenario_of(type(self), environment.parsed_options)
        self.deadline_s = environment.parsed_options.timeout
        self.name = self.scenario
        # No two users send the same line, so that a reply which belongs to another client is noticed.
        self.numbers = itertools.count(random.getrandbits(48))

    def next_line(self) -> bytes:
        """Return a line of `--payload` bytes and its newline."""
        return numbered(next(self.numbers), self.environment.parsed_options.payload)

    def connect(self) -> socket.socket:
        """Make a new connection to the server."""
        connection = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            connection.connect(self.address)
        except BaseException:
            connection.close()
            raise
        return connection

    def timed(self, request_type: str, name: str, action: Callable[[], int]) -> bool:
        """Run `action`, which returns the bytes read, and report it to locust. Return whether it succeeded."""
        failure = None
        length = 0
        began = time.time()
        start_ns = time.perf_counter_ns()
        try:
            with Timeout(self.deadline_s, TimeoutError):
                length = action()
        except (OSError, ExchangeError) as error:
            failure = ExchangeError(cause_of(error))
        except GreenletExit:  # the run is over and waits no longer
            self.environment.events.censored.fire(start_ns=start_ns)
            raise
        elapsed_ns = time.perf_counter_ns() - start_ns
        self.environment.events.request.fire(
            request_type=request_type,
            name=name,
            response_time=elapsed_ns / 1e6,
            response_length=length,
            exception=failure,
            context={},
            start_time=began,
        )
        return failure is None


class TalkbackUser(StreamUser):
    """Connects, reads the greeting, sends a line, reads `you said: LINE` to the end. Also the user of `nap`."""

    half_close = False  # whether to shut down the sending side after the line

    @task  # type: ignore[untyped-decorator]
    def exchange(self) -> None:
        """Perform one exchange on a connection of its own."""
        self.timed(self.request_type, self.name, self._talk)

    def _talk(self) -> int:
        line = self.next_line()
        with self.connect() as connection:
            expect(connection, GREETING)
            connection.sendall(line)
            if self.half_close:
                connection.shutdown(socket.SHUT_WR)
            return len(GREETING) + expect(connection, PREFIX + line, to_the_end=True)


class EchoUser(StreamUser):
    """Keeps a connection for `--exchanges` lines, each sent when the one before has come back, then makes a new one."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.connection: socket.socket | None = None
        self.left: float = 0  # exchanges that this connection still serves

    def on_stop(self) -> None:
        """Close the connection with the user."""
        self._close()

    @task  # type: ignore[untyped-decorator]
    def exchange(self) -> None:
        """Send one line and read its echo, on a new connection if there is none, or the server has ended it."""
        if self.connection is not None and self._ended():
            self._close()
        if self.connection is None and not self.timed(CONNECT, self.name, self._open):
            return
        if not self.timed(self.request_type, self.name, self._echo) or self.left <= 0:
            self._close()

    def _open(self) -> int:
        self.connection = self.connect()
        if self.family != socket.AF_UNIX:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.left = self.environment.parsed_options.exchanges or ECHOES
        return 0

    def _ended(self) -> bool:
        """Return whether the server has ended the connection, or talks without having been asked."""
        looker = poll()
        looker.register(self.connection, POLLIN | POLLRDHUP)
        return bool(looker.poll(0))

    def _echo(self) -> int:
        assert self.connection is not None
        self.left -= 1
        line = self.next_line()
        self.connection.sendall(line)
        return expect(self.connection, line)

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def expect(connection: socket.socket, expected: bytes, *, to_the_end: bool = False) -> int:
    """Read exactly `expected`, and with `to_the_end` the end of the stream after it. Return the number of bytes read.

    Raises ExchangeError ("wrong reply" at the first other byte, "closed early") and OSError.
    """
    got = b""
    while len(got) < len(expected) or to_the_end:
        chunk = connection.recv(65536)
        if not chunk:
            break
        got += chunk
        if not expected.startswith(got):
            raise ExchangeError(WRONG_REPLY)
    if len(got) < len(expected):
        raise ExchangeError(CLOSED_EARLY)
    return len(got)


class WebSocketUser(EchoUser):
    """Opens a WebSocket at `--path` and has `--payload` bytes echoed, until `--exchanges` or the server end it."""

    protocol = "websocket"
    request_type = "WS"

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self.name = name_of(options)
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

    def _ended(self) -> bool:
        """Return whether the server has ended the connection; answer its pings."""
        assert self.connection is not None
        assert self.talk is not None
        if not super()._ended():
            return False
        self.connection.settimeout(0)
        try:
            while True:
                self.talk.settle()
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except (OSError, ExchangeError):
            return True
        finally:
            self.connection.settimeout(None)
        return False  # nothing more has come

    def _echo(self) -> int:
        assert self.talk is not None
        self.left -= 1
        return self.talk.echo(self.opcode, self.next_line()[:-1])

    def _close(self) -> None:
        if self.talk is not None:
            self.talk.close()
            self.talk = None
        super()._close()
