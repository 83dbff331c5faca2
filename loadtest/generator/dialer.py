"""Makes connections without waiting for them, plain or with TLS.

The sockets are the C ones of `_socket`: no monkey-patching, no wrapper. connect() of a non-blocking socket returns
EINPROGRESS even when the TCP handshake is already over, as on loopback. Therefore the caller sends at once, and waits
only when the send would block.

Local ports. A connection that the client closes first keeps its local port for a minute (TIME_WAIT), and there are
about 28,000 ports for one pair of addresses. Towards 127.0.0.0/8 every address of that net can be the source, so when
the ports of one are used up (EADDRNOTAVAIL) the next one is taken: 253 sources are enough for 100,000 connections/s.
Elsewhere the caller gets the error, and HINTS explains it.

TLS has the same four methods as the socket below it. OpenSSL works on two buffers in memory, and TlsConnection carries
their bytes to and from the socket. Each send and recv continues the handshake until it is over, so the caller sends its
request at once here, too. An operation that would block raises BlockingIOError, as on the socket, or
ssl.SSLWantReadError when more has to be read first. No session is resumed: each new connection pays for a whole
handshake, as a new client does.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from _socket import socket as Socket  # noqa: N812 # a class, as in the socket module
from typing import Any, Protocol

from loadtest.generator.failure import BAD_CERTIFICATE, NO_FREE_PORT, TOO_MANY_FILES

_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_BIND_ADDRESS_NO_PORT = (
    24  # IP_BIND_ADDRESS_NO_PORT: connect() chooses the port, which may serve other destinations too
)
_SOURCES = 253

HINTS = {
    NO_FREE_PORT: "every local port towards the server is in use or in TIME_WAIT (60 s after a close): keep "
    "connections open (--exchanges), widen net.ipv4.ip_local_port_range, or share the load among machines",
    TOO_MANY_FILES: "this process may not open as many sockets as the load has connections: raise `ulimit -n`",
    BAD_CERTIFICATE: "it is not for this host, is out of date, or its authority is unknown: name a file of "
    "certificates (--ca), or do not verify it (--insecure)",
}
"""Cause -> what to do about it, for causes that are the generator's own limits or settings."""


class Connection(Protocol):
    """What a link needs of a socket.

    No call waits: BlockingIOError, or ssl.SSLWantReadError of TLS, means "not yet".
    """

    def send(self, data: bytes, /) -> int:
        """Send as much of the data as there is room for; return the number of bytes sent."""

    def recv(self, size: int, /) -> bytes:
        """Return the bytes that have come; none at the end of the stream."""

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""

    def close(self) -> None:
        """Close the connection."""


class Dialer:
    """Makes connections to one address; each call returns a new one."""

    def __init__(
        self,
        family: socket.AddressFamily,
        address: Any,
        *,
        tls: tuple[ssl.SSLContext, str] | None = None,
    ) -> None:
        """`tls` is the context that verifies the server, and the server's name; None for plain TCP."""
        self._family = family
        # For what goes in several segments: the last would wait until the others are acknowledged.
        self.no_delay = tls is not None
        self._address = address
        self._tls = tls
        self._spreads = family == socket.AF_INET and str(address[0]).startswith("127.")
        self._source = 0  # 0: the kernel's choice, else the last number of 127.0.0.N less one

    def __call__(self) -> Connection:
        """Return a connection that may still be connecting.

        Raises OSError; BlockingIOError when a Unix server's queue is full.
        """
        connection = Socket(self._family, _TYPE)
        if self.no_delay or self._source:
            self._prepare(connection)
        error = connection.connect_ex(self._address)
        if error == errno.EADDRNOTAVAIL and self._spreads:
            connection, error = self._from_elsewhere(connection)
        if error and error != errno.EINPROGRESS:
            connection.close()
            raise OSError(error, os.strerror(error))
        return TlsConnection(connection, *self._tls) if self._tls else connection

    def _from_elsewhere(self, connection: Socket) -> tuple[Socket, int]:
        """Try the other source addresses in turn, and keep the first that has a free port."""
        error = errno.EADDRNOTAVAIL
        for _ in range(_SOURCES):
            connection.close()
            connection = Socket(self._family, _TYPE)
            self._source = self._source % _SOURCES + 1
            self._prepare(connection)
            error = connection.connect_ex(self._address)
            if error != errno.EADDRNOTAVAIL:
                break
        return connection, error

    def _prepare(self, connection: Socket) -> None:
        if self.no_delay and self._family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._source:
            connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            connection.bind((f"127.0.0.{self._source + 1}", 0))


_RECORD = 16384  # bytes of plain text in one record, at most
_READ = 65536


def tls_context(*, insecure: bool, ca: str) -> ssl.SSLContext:
    """Make a context that verifies servers by the file `ca`, else by the system's authorities; if insecure, not at all.

    Raises ValueError if there are no certificates in the file.
    """
    if insecure:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        return made
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{ca!r} is no file of certificates (PEM): {error.strerror or error}") from None


class TlsConnection:
    """A TLS connection to the server `name`, on a non-blocking socket."""

    def __init__(self, connection: Socket, tls: ssl.SSLContext, name: str) -> None:
        self._connection = connection
        self._came = ssl.MemoryBIO()
        self._goes = ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._came, self._goes, server_hostname=name)
        self._established = False
        self._record = 0  # plain bytes of the record that is not wholly sent
        self._unsent = b""  # the rest of it, encrypted
        self.fileno = connection.fileno
        self.close = connection.close

    def send(self, data: bytes) -> int:
        """Send as much as there is room for; the next call must get the rest, and nothing else. Raises OSError."""
        self._continue_handshake()
        sent = 0
        try:
            while sent < len(data):
                if not self._record:
                    self._record = self._tls.write(memoryview(data)[sent : sent + _RECORD])
                self._flush()
                sent += self._record
                self._record = 0
        except OSError:  # BlockingIOError, or an error, which the next call meets again
            if not sent:
                raise
        return sent

    def recv(self, _size: int) -> bytes:
        """Return everything that has come, since epoll does not report what is left in the TLS buffers.

        Raises OSError.
        """
        self._continue_handshake()
        came = b""
        while True:
            try:
                piece = self._tls.read(_RECORD)
            except ssl.SSLWantReadError:
                if came:
                    return came
                self._fetch()
                continue
            except ssl.SSLEOFError:
                piece = b""  # without a goodbye; whether that is too early, the framing of the response says
            came += piece
            if not piece:
                if came:
                    self._connection.shutdown(socket.SHUT_RD)  # so that there is an event for the end, too
                return came

    def _continue_handshake(self) -> None:
        """Continue the handshake, unless it is over."""
        while not self._established:
            try:
                self._tls.do_handshake()
                self._flush()
                self._established = True
            except ssl.SSLWantReadError:
                self._flush()
                self._fetch()

    def _flush(self) -> None:
        self._unsent += self._goes.read()
        while self._unsent:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]

    def _fetch(self) -> None:
        """Read from the socket into the TLS buffer. Raises SSLWantReadError when there is nothing yet."""
        try:
            data = self._connection.recv(_READ)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        if data:
            self._came.write(data)
        elif self._established:
            self._came.write_eof()
        else:
            raise ssl.SSLEOFError  # in the midst of the handshake
