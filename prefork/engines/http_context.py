"""WORKER. What all HTTP connections of a worker share, whatever the application speaks: limits, times, trust, the date.

What is counted and logged of requests is in request_log.py, how an application is called in wsgi/app.py and
asgi/app.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import time
from typing import TYPE_CHECKING, Any, Generic

from prefork.engines.peer import AppView, Peer, PeerFactory
from prefork.engines.request_log import RequestLog
from prefork.http.fields import FieldTable
from prefork.http.forwarded import Trusted
from prefork.http.limits import Limits
from prefork.http.response import error_response, stamp

if TYPE_CHECKING:
    from prefork.config.config import Config
    from prefork.core.listener import Listener
    from prefork.engines.context import Station
    from prefork.engines.error_log import Complaints
    from prefork.http.head import Request
    from prefork.http.limits import Refusal
    from prefork.http.proxy_protocol import End


_PACE_NS = 1_000_000_000 // 1024  # for a byte, once --idle-timeout has passed


class HttpContext:
    """WORKER. Times are ns. `draining`: every response says that the connection ends with it. `stamp`: the end of
    every head of this second, with the date.
    """

    def __init__(self, config: Config) -> None:
        self.limits = Limits(body_bytes=config.max_body)
        self.fields = FieldTable()
        self.trusted = Trusted(text for text in config.trusted_proxies if text != "none")
        self.header_ns = round(config.header_timeout_s * 1e9)
        self.keep_alive_ns = round(config.keep_alive_s * 1e9)
        self._idle_ns = round(config.idle_timeout_s * 1e9)
        self.draining = self.keep_alive_ns == 0
        self._second = 0
        self.stamp = b""
        self.tick()

    def deadline_ns(self, since_ns: int, moved: int, now_ns: int) -> int:
        """When a body or a response is late that began then, and of which so many bytes have moved, the last ones now.

        No stall may last for --idle-timeout, nor may a trickle: beyond that time, each byte has to earn its own.
        """
        return self._idle_ns + min(now_ns, since_ns + moved * _PACE_NS)

    def tick(self) -> None:
        """Make the date anew if a second has passed. Call it in each turn of the loop."""
        second = int(time())
        if second != self._second:
            self._second = second
            self.stamp = stamp(second)

    def drain(self) -> None:
        """Let every response from now on say that its connection ends."""
        self.draining = True


class HttpSite(HttpContext, ABC, Generic[AppView]):
    """WORKER. The context with the log and the peers of AsgiSite."""

    def __init__(self, station: Station, complaints: Complaints) -> None:
        super().__init__(station.config)
        self._complaints = complaints
        self.log = RequestLog(station, complaints, self.trusted)
        self.slow_ns = self.log.slow_ns
        self.logs_access = self.log.active
        self._peers = PeerFactory(self.trusted, self.told)

    @abstractmethod
    def told(self, listener: Listener, address: str, port: int) -> AppView:
        """What the application is told of a connection from there; `unix:` and 0 of one on a Unix socket."""

    def peer(self, listener: Listener, sockaddr: Any) -> Peer[AppView]:
        """The other end of a new connection."""
        return self._peers.of(listener, sockaddr)

    def behind(self, end: End, listener: Listener) -> Peer[AppView]:
        """The client for whom the other end, a trusted proxy, has connected."""
        return self._peers.behind(end, listener)

    def late(self) -> None:
        """A client has not sent, or not read, what it had to in time, and nobody can tell it."""
        self.log.count_late()

    def refuse(self, peer: Peer[AppView], refusal: Refusal) -> bytes:
        """The whole response to what is not served."""
        response = error_response(refusal.status, self.stamp)
        self.log.refuse(peer, refusal, response)
        return response

    def tell(
        self, peer: Peer[AppView], request: Request, status: int, sent: int, took_ns: int, error: BaseException | None
    ) -> None:
        """Log what went wrong with a request, and the access."""
        self.log.write(peer, request, status, sent, took_ns, error)

    def complain(self, error: BaseException, peer: Peer[AppView]) -> None:
        """Something went wrong on the way to a client."""
        self.log.connection_failed(error, peer)
