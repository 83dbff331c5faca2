"""WORKER. Who is at the other end of a connection; of HTTP, or said to be there by a load balancer's PROXY header."""

from __future__ import annotations

import re
import socket
import sys
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefork.core.address import format_sockaddr, plain_host
from prefork.http.forwarded import UNIX, Trusted, parse
from prefork.status.scoreboard import QUEUE, queue_bucket, request_text, row_prefix

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from prefork.core.listener import Listener
    from prefork.engines.context import WorkerContext
    from prefork.http.head import Request
    from prefork.http.proxy_protocol import End
    from prefork.runtime.transfer import Server, TransferMessage


# --- How long a connection waited in the kernel until a worker took it.
#
# A socket that has sent nothing yet says since when it is connected: that is what the kernel calls the time since it
# last sent data (tcp(7), TCP_INFO: tcpi_last_data_sent). It is told in milliseconds, as the kernel's clock ticks: every
# 1 to 10 ms. Asked at accept; later, the answer would be about the response.


_BEFORE = 44  # bytes of struct tcp_info before tcpi_last_data_sent, a number of four
_TCP = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})


def note_wait(sock: socket.socket | _socket.socket, family: int, cells: memoryview) -> int | None:
    """Count in a row how long a connection, just taken, has waited (ms); None if that cannot be known.

    Measured: 1.1 us, of 35 and more that a connection costs.
    """
    if family not in _TCP:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BEFORE + 4)
    except OSError:
        return None  # not TCP: what was inherited may be any stream
    waited_ms = int.from_bytes(info[_BEFORE:], sys.byteorder)
    cells[QUEUE + queue_bucket(waited_ms)] += 1
    return waited_ms


AppView = TypeVar("AppView")


class Peer(Generic[AppView]):
    """WORKER. The other end of an HTTP connection. `text` is for people, `app_view` is what the application sees of it.

    `server`: where it has connected to, as Listener.server. `address` is `unix:` on a Unix socket. `trusted`: what it
    says of others is believed. `queue_ms`: how long the connection waited to be taken, until that is logged with its
    first request; None if it is not known. `row_text`: what the scoreboard is to say of its request, with that `method`
    and `target`.
    """

    __slots__ = (
        "_row_prefix",
        "address",
        "app_view",
        "method",
        "port",
        "queue_ms",
        "row_text",
        "server",
        "target",
        "text",
        "trusted",
    )

    def __init__(self, server: Server, text: str, address: str, port: int, app_view: AppView, *, trusted: bool) -> None:
        self.server = server
        self.text = text
        self._row_prefix = row_prefix(text)
        self.method, self.target, self.row_text = "", b"", b""
        self.address = address
        self.port = port
        self.app_view = app_view
        self.trusted = trusted
        self.queue_ms: int | None = None

    @property
    def served(self) -> bool:
        """Whether the client has had a request."""
        return bool(self.method)

    def set_request(self, request: Request) -> None:
        """Make `row_text`. The next same request has it: the parser remembers request lines."""
        self.method, self.target = request.method, request.target
        self.row_text = request_text(self._row_prefix, request.method, request.target)


# --- A proxy that --trusted-proxies does not name. An application behind it takes all its clients for the proxy, and
# https for http, so one line of the log says why. Only the first request of a connection is looked at, and only of so
# many connections: in a server without a proxy nobody pays for this for long.


_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_LOOKS = 10_000


class ForwardedWarning:
    """WORKER. Warns once that fields of a proxy are not believed. `looks`: connections that it is to look at yet."""

    def __init__(self, worker: WorkerContext) -> None:
        config = worker.config
        asked_for = config.sources["trusted-proxies"] != "default" and set(config.trusted_proxies) == {"none"}
        self.looks = 0 if asked_for else _LOOKS
        self._log = worker.log

    def look(self, peer: str, request: Request) -> None:
        """Look at the first request of an untrusted peer. Clients on the Internet may write what they like."""
        self.looks -= 1
        if any(name.lower in _FORWARDED for name, _value in request.fields) and self.looks >= 0:
            address = parse(peer)
            if peer == UNIX or (address is not None and address.is_private):
                self.looks = 0
                hint = f"--trusted-proxies {peer}"
                self._log.warning("forwarded fields are not believed", peer=peer, hint=hint)


class UntrustedPeer(Peer[AppView]):
    """WORKER. A peer that may be a proxy."""

    __slots__ = ("warning",)
    warning: ForwardedWarning

    def set_request(self, request: Request) -> None:
        """See Peer."""
        if not self.method:
            self.warning.look(self.address, request)
        Peer.set_request(self, request)


class PeerFactory(Generic[AppView]):
    """WORKER. Makes the peers of new connections. `app_view(server, address, port)`: what the application sees of one
    from there; of one on a Unix socket, from `unix:` and 0.
    """

    def __init__(
        self, trusted: Trusted, app_view: Callable[[Server, str, int], AppView], worker: WorkerContext
    ) -> None:
        self._trusted = trusted
        self._app_view = app_view
        self._warning = ForwardedWarning(worker)

    def of(self, listener: Listener, sockaddr: Any) -> Peer[AppView]:
        """The other end of a new connection."""
        family = listener.sock.family
        address, port = (UNIX, 0) if family == socket.AF_UNIX else sockaddr[:2]
        if family == socket.AF_INET6:
            address = plain_host(address)
        return self._make(listener.server, format_sockaddr(family, sockaddr), address, port)

    def behind(self, end: End, listener: Listener) -> Peer[AppView]:
        """The client of the trusted proxy that has connected."""
        text = f"[{end.address}]:{end.port}" if ":" in end.address else f"{end.address}:{end.port}"
        return self._make(listener.server, text, end.address, end.port)

    def of_message(self, message: TransferMessage) -> Peer[AppView]:
        """The other end of a connection that another worker has given."""
        peer = self._make(message.server, *message.client)
        peer.queue_ms = message.queue_ms
        peer.method = "-" if message.served else ""  # of no request
        return peer

    def _make(self, server: Server, text: str, address: str, port: int) -> Peer[AppView]:
        trusted = bool(self._trusted) and self._trusted.has_peer(address)
        view = self._app_view(server, address, port)
        if trusted or self._warning.looks <= 0:
            return Peer(server, text, address, port, view, trusted=trusted)
        peer = UntrustedPeer(server, text, address, port, view, trusted=False)
        peer.warning = self._warning
        return peer


# --- A client that speaks HTTP with a stream handler: somebody wanted to serve an application, and named none. As
# above, only the first bytes of so many connections are looked at.


_REQUEST_LINE = re.compile(rb"[A-Z]{3,16} [/*h][!-~]* HTTP/1\.[01]\r?\n")
_FIRST_BYTES = 1000


class HttpHint:
    """WORKER. Says once how to serve an application. `looks`: connections that it is to look at yet."""

    def __init__(self, worker: WorkerContext) -> None:
        self.looks = _FIRST_BYTES
        self._log = worker.log
        self._app = worker.app.name

    def look(self, data: bytes) -> None:
        """Look at the first bytes of a connection."""
        self.looks -= 1
        if _REQUEST_LINE.match(data) and self.looks >= 0:
            self.looks = 0
            hint = "to serve a WSGI or ASGI application, name it: prefork serve module:app"
            self._log.info("an HTTP request came to a stream handler", app=self._app, hint=hint)


def peer_of(transport: Any) -> str:
    """Who is at the other end of an asyncio transport, for people."""
    sockaddr = transport.get_extra_info("peername")
    if not isinstance(sockaddr, tuple):
        return format_sockaddr(socket.AF_UNIX, sockaddr)
    return format_sockaddr(socket.AF_INET if len(sockaddr) == 2 else socket.AF_INET6, sockaddr)
