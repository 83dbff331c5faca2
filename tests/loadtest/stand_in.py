"""A server that speaks the scenarios' protocols in threads of the test, and misbehaves on request.

A behaviour serves one connection and yields once for each exchange that it answered as it should.
"""

from __future__ import annotations

import itertools
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.server import ROOT

Behaviour = Callable[[socket.socket], Iterator[None]]

GREETING = b"hello from prefork\n"
CERTIFICATE = ROOT / "tests" / "support" / "certificates" / "first.pem"


def talkback(peer: socket.socket, *, wait_s: float = 0.0) -> Iterator[None]:
    peer.sendall(GREETING)
    line = peer.makefile("rb").readline()
    threading.Event().wait(wait_s)
    peer.sendall(b"you said: " + line)
    yield


def slow(wait_s: float) -> Behaviour:
    return lambda peer: talkback(peer, wait_s=wait_s)


def echo(peer: socket.socket) -> Iterator[None]:
    for line in peer.makefile("rb"):
        peer.sendall(line)
        yield


def responding(response: bytes, *, good: bool = False, once: bool = False) -> Behaviour:
    """An HTTP server that answers each request with the same bytes; with `once` it closes after the first."""

    def serve(peer: socket.socket) -> Iterator[None]:
        requests = peer.makefile("rb")
        while requests.readline():
            while requests.readline() not in (b"\r\n", b""):
                continue
            peer.sendall(response)
            if good:
                yield
            if once:
                return

    return serve


web = responding(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n", good=True)


def certified() -> ssl.SSLContext:
    """A server's side of TLS, as localhost and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def secure(behaviour: Behaviour, *, goodbye: bool = True) -> Behaviour:
    """The behaviour behind a handshake."""
    context = certified()

    def serve(peer: socket.socket) -> Iterator[None]:
        with context.wrap_socket(peer, server_side=True) as secured:
            yield from behaviour(secured)
            if goodbye:
                secured.unwrap().close()

    return serve


def hang(peer: socket.socket) -> Iterator[None]:
    while peer.recv(65536):  # until the client gives up
        yield from ()


def reset(peer: socket.socket) -> Iterator[None]:
    peer.recv(1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the close that follows resets
    yield from ()


def greet_and_reset(peer: socket.socket) -> Iterator[None]:
    peer.sendall(GREETING)
    yield from reset(peer)


def wrong_reply(peer: socket.socket) -> Iterator[None]:
    peer.sendall(GREETING)
    peer.sendall(b"you said: " + peer.makefile("rb").readline() + b"!")  # one byte too many
    yield from ()


def closed_early(peer: socket.socket) -> Iterator[None]:
    peer.sendall(GREETING)
    peer.makefile("rb").readline()  # what is left unread would turn the close into a reset
    yield from ()


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The first connection gets the first behaviour, the next one the second, and so on around."""
    turns = itertools.cycle(behaviours)
    lock = threading.Lock()

    def serve(peer: socket.socket) -> Iterator[None]:
        with lock:
            chosen = next(turns)
        yield from chosen(peer)

    return serve


class StandIn(socketserver.ThreadingTCPServer):
    """A server on a free port, one thread a connection, that counts connections and good answers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.behaviour = behaviour
        self.connections = 0
        self.answered = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def finish_request(self, request: Any, client_address: object) -> None:
        with self._lock:
            self.connections += 1
        try:
            for _ in self.behaviour(request):
                with self._lock:
                    self.answered += 1
        except OSError:
            pass  # the client went first: some tests make it do so

    def shutdown_request(self, request: Any) -> None:
        request.close()  # without a shutdown before, which would turn a reset into an ordinary end

    def close(self) -> None:
        self.shutdown()
        self._thread.join(5)
        self.server_close()
