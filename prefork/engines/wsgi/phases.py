"""WORKER. The beginning of a connection from a load balancer: its PROXY header, before TLS and before HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefork.engines.proxy_header import ProxyInput
from prefork.engines.timers import NEVER
from prefork.http.proxy_protocol import ProxyProtocolError

if TYPE_CHECKING:
    import socket

    from prefork.core.listener import Listener
    from prefork.engines.wsgi.app import WsgiPeer
    from prefork.engines.wsgi.loop import Reactor


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
