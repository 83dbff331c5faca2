"""WORKER. What comes before HTTP on a connection, and how it ends: the PROXY header, the check for TLS, the close."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.core.tls import PLAIN_HTTP
from prefork.engines.handover import GRACE_NS
from prefork.engines.linger import (
    LINGER_BYTES,
    LINGER_S,
    LingeringTransport,
    cut,
    discard,
    end_sending,
    hang_up,
)
from prefork.engines.proxy_header import ProxyInput
from prefork.engines.timers import NEVER
from prefork.errors import HandshakeError
from prefork.http.proxy_protocol import ProxyProtocolError

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.aio.connections import ConnectionLike
    from prefork.engines.asgi.app import AsgiApp, AsgiPeer
    from prefork.engines.http_context import HttpContext

TURN_BYTES = 262144  # that are written in one turn of the loop before an application has to let others go first
_SIOCOUTQ = termios.TIOCOUTQ  # tcp(7): bytes that the other end has not acknowledged


class ReadProgress:
    """WORKER. The write timeout: the unsent bytes of a connection must shrink within the deadline.

    Deadlines are CLOCK_MONOTONIC ns. `late`: the client did not read in time. What the kernel holds counts as unsent: a
    full send buffer takes more only when a third of it is free again, and that may be a megabyte.
    """

    __slots__ = ("_bytes", "_context", "_left", "_since_ns", "_transport", "late")

    def __init__(self, context: HttpContext, transport: Any) -> None:
        self._context = context
        self._transport = transport
        self._since_ns = 0
        self.late = False
        self._bytes = 0  # unsent when the wait began; 0: there is no wait
        self._left = 0  # of them, at the last check

    def begin(self, now_ns: int) -> int:
        """Begin to wait; return the deadline."""
        self._since_ns = now_ns
        self._bytes = unsent(self._transport)
        self._left = self._bytes
        return self._context.deadline_ns(now_ns, 0, now_ns)

    def end(self) -> None:
        """End the wait: the client has read enough."""
        self._bytes = 0

    def check(self, now_ns: int) -> int:
        """Return the next deadline: later than now if the client has read fast enough; 0 if all has been sent."""
        if not self._transport.get_write_buffer_size():
            return 0
        if not self._bytes:
            return self.begin(now_ns)
        before, self._left = self._left, unsent(self._transport)
        moved = self._bytes - self._left
        deadline_ns = self._context.deadline_ns(self._since_ns, moved, now_ns) if self._left < before else now_ns
        self.late = deadline_ns <= now_ns
        return deadline_ns


def unsent(transport: Any) -> int:
    """Return how many bytes the client has not read: in the transport, and in the kernel."""
    count: int = transport.get_write_buffer_size()
    try:
        fd = transport.get_extra_info("socket").fileno()
        return count + int(struct.unpack("i", fcntl.ioctl(fd, _SIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):  # closed
        return count


class LingeringClose(LingeringTransport, asyncio.Protocol):
    """WORKER. Closes a connection whose client may still be sending (engines/linger.py)."""

    __slots__ = ("_app", "_progress")

    def __init__(self, app: AsgiApp, transport: Any) -> None:
        self._app = app
        self._progress = ReadProgress(app.context, transport)
        super().__init__(transport, app.timers, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        self._app.connections.leave(self)

    def _check(self, now_ns: int) -> int:
        deadline_ns = self._progress.check(now_ns)
        if self._progress.late:
            self._app.log.count_late()
        return deadline_ns


class FlushingClose(asyncio.Protocol):
    """WORKER. Closes a connection as soon as the client has read what the transport holds.

    `deadline_ns`, `watched_ns` and `entry` are for engines/timers.py.
    """

    __slots__ = ("_app", "_progress", "_transport", "deadline_ns", "entry", "watched_ns")

    def __init__(self, app: AsgiApp, transport: Any) -> None:
        self._app = app
        self._transport = transport
        self._progress = ReadProgress(app.context, transport)
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        if not transport.is_closing():  # asyncio's own under TLS is of no use once it was closed twice
            transport.close()
        now_ns = monotonic_ns()
        # If all has been sent, only TLS keeps it open, as it waits for the client's word that it ends as well.
        sends = transport.get_write_buffer_size()
        self.deadline_ns = self._progress.begin(now_ns) if sends else now_ns + round(LINGER_S * 1e9)
        app.timers.watch(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        end_sending(self._transport)
        self._app.timers.forget(self)
        self._app.connections.leave(self)

    def expire(self) -> None:
        """Act: the deadline has passed."""
        now_ns = monotonic_ns()
        self.deadline_ns = self._progress.check(now_ns)
        if self.deadline_ns > now_ns:
            self._app.timers.watch(self)
        else:
            if self._progress.late:
                self._app.log.count_late()
            self.abort()

    def abort(self) -> None:
        """Close the connection at once; unsent bytes are lost."""
        cut(self._transport)


def close_after_response(
    app: AsgiApp, transport: Any, connection: ConnectionLike, *, linger: bool, sends: bool = False
) -> None:
    """Close a connection when the client has read its last response. `linger`: it may still be sending.

    `sends`: it is sending a body, and can tell where the response ends. Only then a connection under TLS lingers: it
    cannot say that the server's side has ended, and closed at once, asyncio's own would reset a client that sends on.
    """
    lingers = linger and (sends or transport.can_write_eof())
    closing = LingeringClose(app, transport) if lingers else FlushingClose(app, transport)
    app.connections.replace(connection, closing)
    transport.set_protocol(closing)


_HANDSHAKE = b"\x16"  # RFC 8446 5.1: the type of a client's first record

Adopt = Callable[[socket.socket, "Listener", "AsgiPeer"], None]


class PreHttp:
    """WORKER. A connection before HTTP: reads the PROXY header, looks for TLS, then calls `adopt`.

    It reads from the socket, as a transport would read more than that. Of TLS it only looks at the first byte: a client
    that speaks plain HTTP gets a response that says so, where a failed handshake would tell a person nothing.
    `deadline_ns`, `watched_ns` and `entry` are for engines/timers.py.
    """

    __slots__ = (
        "_adopt",
        "_app",
        "_left",
        "_listener",
        "_peer",
        "_proxy",
        "_sock",
        "deadline_ns",
        "entry",
        "watched_ns",
    )

    def __init__(
        self, app: AsgiApp, sock: socket.socket, peer: AsgiPeer, listener: Listener, *, proxied: bool, adopt: Adopt
    ) -> None:
        self._app = app
        self._sock = sock
        self._peer = peer
        self._listener = listener
        self._proxy = ProxyInput(sock) if proxied else None
        self._adopt = adopt
        self._left = 0  # bytes to read of a client that speaks no TLS, and was told so
        self.deadline_ns = monotonic_ns() + app.context.header_ns
        self.watched_ns = NEVER
        self.entry: list[Any] | None = None
        app.connections.join(self)
        app.timers.watch(self)
        app.loop.add_reader(sock, self._on_readable)

    def expire(self) -> None:
        """Act: the deadline has passed."""
        self.abort()

    def retire(self) -> None:
        """Wait no longer than GRACE_NS from now for a client that has sent nothing; called again it changes nothing."""
        until_ns = monotonic_ns() + GRACE_NS
        if until_ns < self.deadline_ns and not (self._proxy and self._proxy.begun):
            self.deadline_ns = until_ns
            self._app.timers.watch(self)

    def abort(self) -> None:
        """Close the connection."""
        self._leave()
        hang_up(self._sock)

    def _on_readable(self) -> None:
        try:
            if self._proxy is not None:
                self._take_header(self._proxy)
            elif self._left:
                self._left = discard(self._sock, self._left)
                if not self._left:
                    self.abort()
            else:
                self._look_for_tls()
        except BlockingIOError:
            return
        except ProxyProtocolError as error:
            self._app.log.refuse_connection(error, self._peer)
            self.abort()
        except OSError:  # the client has left
            if self._proxy is not None and self._proxy.begun:
                self._app.log.count_gone()
            self.abort()

    def _take_header(self, proxy: ProxyInput) -> None:
        header = proxy.take()
        if proxy.ended:
            self.abort()
        elif header:
            if header.source:
                peer = self._app.peers.behind(header.source, self._listener)
                peer.queue_ms = self._peer.queue_ms
                self._peer = peer
            self._proxy = None
            if not self._app.tls:
                self._pass()

    def _look_for_tls(self) -> None:
        first = self._sock.recv(1, socket.MSG_PEEK)
        if first == _HANDSHAKE:
            self._pass()
        elif first:
            self._app.log.refuse_connection(HandshakeError("TLS handshake: it does not speak TLS"), self._peer)
            self._sock.send(PLAIN_HTTP)
            self._sock.shutdown(socket.SHUT_WR)
            self._left = LINGER_BYTES
            self.deadline_ns = monotonic_ns() + round(LINGER_S * 1e9)
            self._app.timers.watch(self)
        else:
            self.abort()

    def _pass(self) -> None:
        self._leave()
        self._app.connections.arriving += 1
        self._adopt(self._sock, self._listener, self._peer)

    def _leave(self) -> None:
        self._app.loop.remove_reader(self._sock)
        self._app.timers.forget(self)
        self._app.connections.leave(self)
