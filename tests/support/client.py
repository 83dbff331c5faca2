"""Small blocking clients: one exchange, a client that is rude in one way, and many that hammer and count outcomes."""

from __future__ import annotations

import enum
import itertools
import socket
import struct
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.support.wait import eventually

if TYPE_CHECKING:
    from types import TracebackType

GREETING = b"hello from prefork\n"
TIMEOUT_S = 15.0


def talkback_reply(line: bytes) -> bytes:
    """Say what talkback sends in all to a client that sent this line."""
    return GREETING + b"you said: " + line + b"\n"


def dial(address: str, *, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """Connect to HOST:PORT, [V6]:PORT or unix:PATH; the timeout then holds for each later call on the socket."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address.removeprefix("unix:"))
        except OSError:
            sock.close()
            raise
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s)


def read_to_end(sock: socket.socket, *, most: int = 1 << 26) -> bytes:
    """Read until the server closes; ConnectionResetError and TimeoutError are the caller's to judge."""
    got = bytearray()
    while chunk := sock.recv(65536):
        got += chunk
        if len(got) > most:
            raise AssertionError(f"the server sent more than {most} bytes")
    return bytes(got)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Read so many bytes; EOFError with what came when the server closes before."""
    got = bytearray()
    while len(got) < count:
        if not (chunk := sock.recv(count - len(got))):
            raise EOFError(bytes(got))
        got += chunk
    return bytes(got)


def exchange(
    address: str, data: bytes = b"hello\n", *, half_close: bool = False, timeout_s: float = TIMEOUT_S
) -> bytes:
    """Connect, send, read to the end, close."""
    with dial(address, timeout_s=timeout_s) as sock:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return read_to_end(sock)


def abort(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Outcome(enum.StrEnum):
    """How one exchange ended, as its client saw it."""

    OK = "ok"
    REFUSED = "refused"
    RESET = "reset"
    EOF = "eof"  # an orderly close before the whole reply
    TIMEOUT = "timeout"
    WRONG = "wrong"  # other bytes than expected


def judge(got: bytes, expected: bytes) -> Outcome:
    """Compare a reply that was read to its end."""
    if got == expected:
        return Outcome.OK
    return Outcome.EOF if expected.startswith(got) else Outcome.WRONG


def outcome_of(error: OSError) -> Outcome:
    """Name the failure of a client; an error that no outcome stands for is raised again."""
    match error:
        case ConnectionRefusedError() | FileNotFoundError():  # the path of a Unix socket is gone with its server
            return Outcome.REFUSED
        case ConnectionResetError() | BrokenPipeError():
            return Outcome.RESET
        case TimeoutError():
            return Outcome.TIMEOUT
    raise error


def attempt(address: str, data: bytes, expected: bytes, *, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Do one exchange and judge it."""
    try:
        return judge(exchange(address, data, timeout_s=timeout_s), expected)
    except OSError as error:
        return outcome_of(error)


class Failure(NamedTuple):
    """One exchange that did not end well, and when: seconds on the monotonic clock."""

    outcome: Outcome
    at_s: float


class Hammer:
    """Clients in a closed loop, a thread each: connect, send, read to the end, compare, again until stopped.

    `failures` lists all that was not OK; `count` is the number of OK exchanges so far. A context manager: leaving
    it stops the clients after the exchange that each of them is in.
    """

    def __init__(self, address: str, *, clients: int = 4, data: bytes = b"hi\n", expected: bytes | None = None) -> None:
        self._address = address
        self._data = data
        self._expected = talkback_reply(data.rstrip(b"\r\n")) if expected is None else expected
        self._counts = [Counter[Outcome]() for _ in range(clients)]  # one writer each
        self.failures: list[Failure] = []  # append only, from every client
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=(i,), daemon=True) for i in range(clients)]

    def _loop(self, index: int) -> None:
        while not self._stopping.is_set():
            outcome = attempt(self._address, self._data, self._expected)
            self._counts[index][outcome] += 1
            if outcome is not Outcome.OK:
                self.failures.append(Failure(outcome, time.monotonic()))
                self._stopping.wait(0.01)  # a refused client must not spin

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the clients; each finishes its exchange first."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)
            assert not thread.is_alive(), "a client did not finish within its own deadline"

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Count the exchanges so far by how they ended."""
        return sum(self._counts, Counter())

    @property
    def count(self) -> int:
        """Count the exchanges that ended well so far."""
        return self.outcomes[Outcome.OK]

    def wait_more(self, count: int, *, within_s: float = 20.0) -> None:
        """Wait until so many more exchanges have ended well."""
        before = self.count
        try:
            eventually(lambda: self.count >= before + count, within_s=within_s)
        except AssertionError:
            more = self.count - before
            raise AssertionError(
                f"only {more} of {count} good exchanges in {within_s:g} s; in all {dict(self.outcomes)}"
            ) from None


def crowd(address: str, count: int, data: bytes = b"hi\n") -> list[socket.socket]:
    """Connect so many clients, each having sent its request, and leave them waiting for the answer."""
    clients = [dial(address) for _ in itertools.repeat(None, count)]
    for sock in clients:
        sock.sendall(data)
    return clients


def collect(clients: list[socket.socket], expected: bytes) -> Counter[Outcome]:
    """Read every waiting client to its end, close it, and count how they fared."""
    outcomes = Counter[Outcome]()
    for sock in clients:
        with sock:
            try:
                outcomes[judge(read_to_end(sock), expected)] += 1
            except OSError as error:
                outcomes[outcome_of(error)] += 1
    return outcomes
