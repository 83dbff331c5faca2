"""WORKER. The beginning of a connection from a load balancer: its PROXY header, before TLS and before HTTP.

Not a byte behind the header may be read here, as it is the client's, perhaps a TLS handshake's. So the input is looked
at, and only what is known to be the header is taken.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from ..http.proxy_protocol import V2_MOST, ProxyProtocolError, parse
from .deadlines import NEVER

if TYPE_CHECKING:
    from ..listener import Listener
    from .reactor import Reactor
    from .wsgi_site import WsgiPeer


class Preface:
    """WORKER. Stands for a client until its header is complete. `deadline_ns` and so on as for HttpClient."""

    __slots__ = ("_header", "_listener", "_reactor", "_sock", "deadline_ns", "entry", "fd", "peer", "watched_ns")

    def __init__(self, reactor: Reactor, sock: socket.socket, peer: WsgiPeer, listener: Listener) -> None:
        self._reactor = reactor
        self._sock = sock
        self._listener = listener
        self._header = b""  # what was taken of it
        self.fd = sock.fileno()
        self.peer = peer
        self.deadline_ns = reactor.now_ns + reactor.site.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None

    def ready(self, _mask: int) -> None:
        """Its socket has something to say."""
        try:
            seen = self._sock.recv(V2_MOST, socket.MSG_PEEK)
            header = parse(self._header + seen) if seen else None
            size = header.consumed - len(self._header) if header else len(seen)
            self._header += self._sock.recv(size)
        except BlockingIOError:
            return
        except (OSError, ProxyProtocolError) as error:
            self._reactor.site.complain(error, self.peer)
            self.close()
            return
        if header:
            source = header.source
            peer = self._reactor.site.behind(source, self._listener) if source else self.peer
            self._reactor.greet(self._sock, peer)
        elif not seen or len(self._header) >= V2_MOST:
            self.close()

    def expire(self) -> None:
        """Its deadline has passed."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._reactor.forget(self)
        self._sock.close()
