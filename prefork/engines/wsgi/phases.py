"""WORKER. The phases of a connection in the epoll loop, and those before HTTP: a PROXY header, and the TLS handshake.

The phases of a connection follow each other in the loop under one descriptor: ProxyHeader, Handshake, HttpConnection
(connection.py), LingeringSocket (engines/linger.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from select import EPOLLIN
from typing import TYPE_CHECKING, Any, Protocol

from prefork.engines.handover import GRACE_NS
from prefork.engines.linger import LingeringSocket, hang_up
from prefork.engines.proxy_header import ProxyInput
from prefork.engines.timers import NEVER, Bounded
from prefork.errors import HandshakeError
from prefork.http.proxy_protocol import ProxyProtocolError

if TYPE_CHECKING:
    import socket

    from prefork.core.listener import Listener
    from prefork.core.tls import Tls, TlsSocket
    from prefork.engines.http_context import HttpContext
    from prefork.engines.peer import PeerFactory
    from prefork.engines.request_log import RequestLog
    from prefork.engines.timers import Deadlines
    from prefork.engines.wsgi.app import WsgiApp, WsgiPeer
    from prefork.http.environ import Environs
    from prefork.status.scoreboard import Row


class Phase(Bounded, Protocol):
    """One phase of a connection. Its deadline is on the loop's clock."""

    fd: int

    def ready(self, mask: int, /) -> None:
        """Epoll has reported these events of the descriptor."""

    def expire(self) -> None:
        """The deadline has passed."""

    def close(self) -> None:
        """Close the connection at once."""


class Host(Protocol):
    """What the phases use of their loop. `now_ns`: the time of this turn. `bytes_in`, `bytes_out`: counts of this turn.

    `row`: of the loop, if the application runs in it; None if it runs on threads.
    """

    now_ns: int
    bytes_in: int
    bytes_out: int
    row: Row | None
    app: WsgiApp
    context: HttpContext
    log: RequestLog
    peers: PeerFactory[Environs]
    deadlines: Deadlines[Phase]

    def start_http(self, sock: socket.socket, peer: WsgiPeer, /) -> None:
        """Begin with HTTP on a connection, or with TLS if there is a certificate."""

    def start_http_under_tls(self, sock: TlsSocket, peer: WsgiPeer, until_ns: int, /) -> None:
        """Begin with HTTP after the handshake; the client has until then for its first request."""

    def hold(self, phase: Phase, /) -> None:
        """Host this phase from now on."""

    def forget(self, phase: Phase, /) -> None:
        """Host it no longer; its descriptor is about to be closed."""

    def watch(self, phase: Phase, mask: int, /) -> None:
        """Report these events of its descriptor from now on."""


class PreHttp(ABC):
    """WORKER. A phase before HTTP, of a client that has `header_ns` from its connection until its first request."""

    __slots__ = ("_loop", "_peer", "_sock", "begun", "deadline_ns", "entry", "fd", "watched_ns")

    def __init__(self, loop: Host, sock: socket.socket, peer: WsgiPeer) -> None:
        self._loop = loop
        self._sock = sock
        self._peer = peer
        self.begun = False  # the client has sent something
        self.fd = sock.fileno()
        self.deadline_ns = loop.now_ns + loop.context.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None

    @abstractmethod
    def ready(self, mask: int, /) -> None:
        """See Phase."""

    def expire(self) -> None:
        """The deadline has passed."""
        if self.begun:
            self._loop.log.count_late()
        self.close()

    def retire(self) -> None:
        """Wait no longer than GRACE_NS from now for a client that has sent nothing; called again it changes nothing."""
        until_ns = self._loop.now_ns + GRACE_NS
        if until_ns < self.deadline_ns and not self.begun:
            self.deadline_ns = until_ns
            self._loop.deadlines.watch(self)

    def close(self) -> None:
        """Close the connection."""
        self._loop.forget(self)
        hang_up(self._sock)


class ProxyHeader(PreHttp):
    """WORKER. The phase in which the PROXY header arrives."""

    __slots__ = ("_input", "_listener")

    def __init__(self, loop: Host, sock: socket.socket, peer: WsgiPeer, listener: Listener) -> None:
        super().__init__(loop, sock, peer)
        self._listener = listener
        self._input = ProxyInput(sock)

    def ready(self, _mask: int) -> None:
        """Read the PROXY header as far as it has arrived; HTTP follows it."""
        try:
            header = self._input.take()
        except BlockingIOError:
            return
        except ProxyProtocolError as error:
            self._loop.log.refuse_connection(error, self._peer)
            self.close()
            return
        except OSError:  # the client has left
            if self.begun:
                self._loop.log.count_gone()
            self.close()
            return
        self.begun = True
        if header:
            source = header.source
            peer = self._loop.peers.behind(source, self._listener) if source else self._peer
            peer.queue_ms = self._peer.queue_ms
            self._loop.start_http(self._sock, peer)
        elif self._input.ended:
            self.close()


class Handshake(PreHttp):
    """WORKER. The phase of the TLS handshake, which takes memory from the client's first byte on."""

    __slots__ = ("_mask", "_tls", "_wrapped")

    def __init__(self, loop: Host, sock: socket.socket, peer: WsgiPeer, tls: Tls) -> None:
        super().__init__(loop, sock, peer)
        self._tls = tls
        self._wrapped: TlsSocket | None = None
        self._mask: int = EPOLLIN

    def ready(self, _mask: int) -> None:
        """Go on with it as far as the client has; HTTP follows it."""
        try:
            if self._wrapped is None:
                self._sock = self._wrapped = self._tls.wrap(self._sock)
            wanted = self._wrapped.shake_hands()
        except HandshakeError as error:
            self._loop.log.refuse_connection(error, self._peer)
            self._linger()
            return
        except OSError:
            if self.begun:
                self._loop.log.count_gone()
            self.close()
            return
        self.begun = True
        if (mask := wanted or EPOLLIN) != self._mask:
            self._mask = mask
            self._loop.watch(self, mask)
        if not wanted:
            self._loop.start_http_under_tls(self._wrapped, self._peer, self.deadline_ns)

    def _linger(self) -> None:
        """Close, but so that the client can read why."""
        self._loop.watch(self, EPOLLIN)
        try:
            lingering = LingeringSocket(self._sock, self._loop.now_ns, self._loop.forget)
        except OSError:
            self.close()
        else:
            self._loop.hold(lingering)
