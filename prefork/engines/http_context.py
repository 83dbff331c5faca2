"""WORKER. What all HTTP clients of a worker share, whatever the application speaks: the limits, whom to believe, and
what is counted and logged of requests. How they are told to the application is in wsgi_site.py and asgi_site.py.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from time import time
from typing import TYPE_CHECKING, Generic, TypeVar

from prefork.core.address import format_sockaddr
from prefork.core.log import Outlet
from prefork.engines.peer import Peer
from prefork.engines.timers import NEVER
from prefork.http.access_log import AccessLog
from prefork.http.fields import FieldTable
from prefork.http.forwarded import UNIX, Trusted, find_origin
from prefork.http.limits import Limits
from prefork.http.response import error_response, stamp
from prefork.status.scoreboard import REFUSED, TIMED_OUT

if TYPE_CHECKING:
    from typing import Any

    from prefork.core.listener import Listener
    from prefork.engines.context import Station
    from prefork.engines.error_log import Complaints
    from prefork.http.head import Request
    from prefork.http.limits import Refusal
    from prefork.http.proxy_protocol import End


_PACE_NS = 1_000_000_000 // 1024  # for a byte, once --idle-timeout has passed

Told = TypeVar("Told")  # what the application is told of a connection


class HttpSite(ABC, Generic[Told]):
    """WORKER. Times are ns. `draining`: every response says that the connection ends with it."""

    def __init__(self, station: Station, complaints: Complaints) -> None:
        config = station.config
        self._complaints = complaints
        self._counters = station.rows[0].cells  # of the loop
        self.limits = Limits(body_bytes=config.max_body)
        self.fields = FieldTable()
        self.header_ns = round(config.header_timeout_s * 1e9)
        self.keep_alive_ns = round(config.keep_alive_s * 1e9)
        self.slow_ns = round(config.slow_s * 1e9) or NEVER
        self._idle_ns = round(config.idle_timeout_s * 1e9)
        self.draining = self.keep_alive_ns == 0
        self.trusted = Trusted(text for text in config.trusted_proxies if text != "none")
        self._access = AccessLog("json" if config.log_format == "json" else "combined")
        self._access_out = Outlet(station.terms.access_log) if station.terms.access_log >= 0 else None
        self.logs_access = self._access_out is not None
        self._second = 0
        self.stamp = b""  # the end of every head of this second
        self.tick()

    @abstractmethod
    def told(self, listener: Listener, address: str, port: int) -> Told:
        """What the application is told of a connection from there; `unix:` and 0 of one on a Unix socket."""

    def deadline_ns(self, since_ns: int, moved: int, now_ns: int) -> int:
        """When a body or a response is late that began then, and of which so many bytes have moved, the last ones now.

        No stall may last for --idle-timeout, nor may a trickle: beyond that time, each byte has to earn its own.
        """
        return self._idle_ns + min(now_ns, since_ns + moved * _PACE_NS)

    def peer(self, listener: Listener, sockaddr: Any) -> Peer[Told]:
        """The other end of a new connection."""
        family = listener.sock.family
        address, port = (UNIX, 0) if family == socket.AF_UNIX else sockaddr[:2]
        return self._peer(listener, format_sockaddr(family, sockaddr), address, port)

    def behind(self, end: End, listener: Listener) -> Peer[Told]:
        """The client for whom the other end, a trusted proxy, has connected."""
        text = f"[{end.address}]:{end.port}" if ":" in end.address else f"{end.address}:{end.port}"
        return self._peer(listener, text, end.address, end.port)

    def late(self) -> None:
        """A client has not sent, or not read, what it had to in time, and nobody can tell it."""
        self._counters[TIMED_OUT] += 1

    def refuse(self, peer: Peer[Told], refusal: Refusal) -> bytes:
        """The whole response to what is not served."""
        self._counters[TIMED_OUT if refusal.status == 408 else REFUSED] += 1
        self._complaints.note(
            "request refused", ours=False, peer=peer.text, status=refusal.status, reason=refusal.reason
        )
        response = error_response(refusal.status, self.stamp)
        if self.logs_access:
            size = len(response.partition(b"\r\n\r\n")[2])
            self._log(self._access.line(time(), peer.address, None, refusal.status, size, 0, self._queue_ms(peer)))
        return response

    def tell(
        self, peer: Peer[Told], request: Request, status: int, sent: int, took_ns: int, error: BaseException | None
    ) -> None:
        """Log what went wrong with a request, and the access."""
        if error is not None:
            self._complaints.add(error, peer.text)
        if not self.logs_access:
            return
        client = peer.address
        if peer.trusted:
            client = find_origin(request.fields, client, peer.port, self.trusted).address
        self._log(self._access.line(time(), client, request, status, sent, took_ns // 1000, self._queue_ms(peer)))

    def complain(self, error: BaseException, peer: Peer[Told]) -> None:
        """Something went wrong on the way to a client."""
        self._complaints.note("connection failed", ours=False, peer=peer.text, error=str(error))

    def tick(self) -> None:
        """In each turn of the loop: heads end with the date, which is made once a second."""
        second = int(time())
        if second != self._second:
            self._second = second
            self.stamp = stamp(second)

    def _peer(self, listener: Listener, text: str, address: str, port: int) -> Peer[Told]:
        trusted = bool(self.trusted) and self.trusted.has_peer(address)
        return Peer(text, address, port, self.told(listener, address, port), trusted=trusted)

    @staticmethod
    def _queue_ms(peer: Peer[Told]) -> int | None:
        """How long the connection waited to be taken; it is told once."""
        waited_ms, peer.queue_ms = peer.queue_ms, None
        return waited_ms

    def _log(self, line: bytes) -> None:
        assert self._access_out is not None
        try:
            self._access_out.write(memoryview(line), patient=True)
        except OSError as error:  # ENOSPC, EPIPE, EAGAIN: the log's trouble must not become the request's
            self._complaints.note("access log line lost", reason=error.strerror)
