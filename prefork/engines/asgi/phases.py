"""WORKER. The beginning of a connection that is not HTTP yet: a load balancer's PROXY header, the first byte of TLS.

A transport would take more than that from the socket, so the gate stands before there is one. Of TLS it only looks at
the first byte: who speaks plain HTTP there is told so, where a failed handshake would tell a person nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.core.tls import PLAIN_HTTP
from prefork.engines.proxy_header import ProxyInput
from prefork.engines.timers import NEVER
from prefork.http.proxy_protocol import ProxyProtocolError

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.asgi.app import AsgiPeer, AsgiSite

_LINGER_NS = 2_000_000_000  # how long who speaks plain HTTP may take to read what it is told
_HANDSHAKE = b"\x16"  # RFC 8446 5.1: the type of a client's first record

Adopt = Callable[[socket.socket, "Listener", "AsgiPeer"], None]


class Gate:
    """WORKER. Stands for one connection until `adopt` gets it. `deadline_ns` and so on: for deadlines.Deadlines."""

    __slots__ = (
        "_adopt", "_listener", "_loop", "_peer", "_proxy", "_site", "_sock", "_told", "deadline_ns", "entry",
        "watched_ns",
    )  # fmt: skip

    def __init__(
        self, site: AsgiSite, sock: socket.socket, peer: AsgiPeer, listener: Listener, *, proxied: bool, adopt: Adopt
    ) -> None:
        self._site = site
        self._loop: asyncio.AbstractEventLoop = site.loop
        self._sock = sock
        self._peer = peer
        self._listener = listener
        self._proxy = ProxyInput(sock) if proxied else None
        self._adopt = adopt
        self._told = False  # that it does not speak TLS
        self.deadline_ns = monotonic_ns() + site.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        site.crowd.join(self)
        site.timekeeper.watch(self)
        site.loop.add_reader(sock, self._ready)

    def expire(self) -> None:
        """Its deadline has passed."""
        self.abort()

    def abort(self) -> None:
        """Close the connection."""
        self._leave()
        self._sock.close()

    def _ready(self) -> None:
        """Its socket has something to say."""
        try:
            if self._proxy is not None:
                self._take_header(self._proxy)
            elif self._told:
                if not self._sock.recv(65536):
                    self.abort()
            else:
                self._look_for_tls()
        except BlockingIOError:
            return
        except (OSError, ProxyProtocolError) as error:
            self._site.complain(error, self._peer)
            self.abort()

    def _take_header(self, proxy: ProxyInput) -> None:
        header = proxy.take()
        if proxy.ended:
            self.abort()
        elif header:
            if header.source:
                queue_ms, self._peer = self._peer.queue_ms, self._site.behind(header.source, self._listener)
                self._peer.queue_ms = queue_ms
            self._proxy = None
            if not self._site.secure:
                self._pass()

    def _look_for_tls(self) -> None:
        first = self._sock.recv(1, socket.MSG_PEEK)
        if first == _HANDSHAKE:
            self._pass()
        elif first:
            self._site.complain(ConnectionError("it does not speak TLS"), self._peer)
            self._sock.send(PLAIN_HTTP)
            self._sock.shutdown(socket.SHUT_WR)
            self._told = True  # unread, what it still sends would make a reset of the close
            self.deadline_ns = monotonic_ns() + _LINGER_NS
        else:
            self.abort()

    def _pass(self) -> None:
        self._leave()
        self._site.crowd.arriving += 1
        self._adopt(self._sock, self._listener, self._peer)

    def _leave(self) -> None:
        self._loop.remove_reader(self._sock)
        self._site.timekeeper.forget(self)
        self._site.crowd.leave(self)
