"""TLS on a connection that does not block, with the same four methods as the socket below it.

OpenSSL works on two buffers in memory here; this class carries their bytes to and from the socket. The handshake goes
on with every send and recv until it is over, so whoever sends a request at once waits for it without knowing. What
would block is one of two errors: BlockingIOError waits as on the socket itself, ssl.SSLWantReadError for more to read.

No session is resumed: each new connection pays for a whole handshake, as a new client does.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 # a class, as in the socket module

_RECORD = 16384  # bytes of plain text in one record, at most
_READ = 65536


def context(*, insecure: bool, ca: str) -> ssl.SSLContext:
    """How servers are verified: by the system's authorities, by those in the file `ca`, or, if insecure, not at all.

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
    """A connection to the server of that name."""

    def __init__(self, connection: Socket, tls: ssl.SSLContext, name: str) -> None:
        self._connection = connection
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._came, self._goes, server_hostname=name)
        self._greeted = False
        self._record = 0  # plain bytes of the record that is not wholly sent
        self._unsent = b""  # the rest of it, encrypted
        self.fileno = connection.fileno
        self.close = connection.close

    def send(self, data: bytes) -> int:
        """Send as much as there is room for; the rest, and no other, is to be given next. Raises OSError."""
        self._greet()
        sent = 0
        try:
            while sent < len(data):
                if not self._record:
                    self._record = self._tls.write(memoryview(data)[sent : sent + _RECORD])
                self._flush()
                sent += self._record
                self._record = 0
        except BlockingIOError:
            if not sent:
                raise
        return sent

    def recv(self, _size: int) -> bytes:
        """All that has come, since no event tells of what is left here. Raises OSError."""
        self._greet()
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

    def _greet(self) -> None:
        """Go on with the handshake, if it is not over."""
        while not self._greeted:
            try:
                self._tls.do_handshake()
                self._flush()
                self._greeted = True
            except ssl.SSLWantReadError:
                self._flush()
                self._fetch()

    def _flush(self) -> None:
        self._unsent += self._goes.read()
        while self._unsent:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]

    def _fetch(self) -> None:
        """Take what the socket has. Raises SSLWantReadError if that is nothing yet."""
        try:
            data = self._connection.recv(_READ)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        if data:
            self._came.write(data)
        elif self._greeted:
            self._came.write_eof()
        else:
            raise ssl.SSLEOFError  # in the midst of the handshake
