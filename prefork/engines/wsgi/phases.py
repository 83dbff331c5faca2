"""WORKER. The end of a connection whose client may still be sending: read on, so that it can read its last response.

close(2) with unread input sends a reset, and a reset makes the client's kernel throw away what it has not read yet.
So the last response is followed by the end of our sending, and what still comes is read and thrown away, for a while
(RFC 9112 9.6).
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

from prefork.engines.proxy_header import ProxyInput
from prefork.engines.timers import NEVER
from prefork.http.proxy_protocol import ProxyProtocolError

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.wsgi.app import WsgiPeer
    from prefork.engines.wsgi.loop import Reactor


# --- The beginning of a connection from a load balancer: its PROXY header, before TLS and before HTTP.


class Preface:
    """WORKER. Stands for a client until its header is complete. `deadline_ns` and so on as for HttpClient."""

    __slots__ = ("_input", "_listener", "_reactor", "_sock", "deadline_ns", "entry", "fd", "peer", "watched_ns")

    def __init__(self, reactor: Reactor, sock: socket.socket, peer: WsgiPeer, listener: Listener) -> None:
        self._reactor = reactor
        self._sock = sock
        self._listener = listener
        self._input = ProxyInput(sock)
        self.fd = sock.fileno()
        self.peer = peer
        self.deadline_ns = reactor.now_ns + reactor.site.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None

    def ready(self, _mask: int) -> None:
        """Its socket has something to say."""
        try:
            header = self._input.take()
        except BlockingIOError:
            return
        except (OSError, ProxyProtocolError) as error:
            self._reactor.site.complain(error, self.peer)
            self.close()
            return
        if header:
            source = header.source
            peer = self._reactor.site.behind(source, self._listener) if source else self.peer
            peer.queue_ms = self.peer.queue_ms
            self._reactor.greet(self._sock, peer)
        elif self._input.ended:
            self.close()

    def expire(self) -> None:
        """Its deadline has passed."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._reactor.forget(self)
        self._sock.close()


_LINGER_NS = 2_000_000_000  # how long the client may take to read its response
_LINGER_BYTES = 64 << 20  # and how much of what it sends is read
_CHUNK = 65536  # bytes of one recv()


def reset_at_close(sock: socket.socket) -> None:
    """Let close() end the connection with a reset (socket(7), SO_LINGER). Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))


class Farewell:
    """WORKER. Stands for a client that has been served. `deadline_ns` and so on as for HttpClient."""

    __slots__ = ("_left", "_reactor", "_sock", "deadline_ns", "entry", "fd", "peer", "watched_ns")

    def __init__(self, reactor: Reactor, sock: socket.socket, peer: WsgiPeer) -> None:
        """Say that nothing more comes. Raises OSError if the client is gone already."""
        self._reactor = reactor
        self._sock = sock
        self._left = _LINGER_BYTES
        self.fd = sock.fileno()
        self.peer = peer
        self.deadline_ns = reactor.now_ns + _LINGER_NS
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        sock.shutdown(socket.SHUT_WR)

    def ready(self, _mask: int) -> None:
        """Its socket has something to say."""
        try:
            size = len(self._sock.recv(_CHUNK))
        except BlockingIOError:
            return
        except OSError:
            size = 0
        self._left -= size
        if not size or self._left < 0:
            self.close()

    def expire(self) -> None:
        """Its deadline has passed."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._reactor.forget(self)
        self._sock.close()
