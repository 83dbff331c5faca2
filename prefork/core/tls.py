"""TLS for the event loops: a context made before the fork, and sockets that behave as non-blocking ones do.

Made by the master, so that all workers share the keys of session tickets: what one has issued, another resumes. Only
imported with --tls-cert, as `ssl` is a heavy import.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from prefork.errors import ConfigError, PlainHttpError

# What a browser gets that speaks plain HTTP here; a reset would tell its user nothing.
_HINT = b"This port speaks TLS: use https:// instead.\n"
PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b" % (len(_HINT), _HINT)
)


class Tls:
    """MASTER makes it, workers inherit it. `renew` reads certificate and key anew, for workers forked from then on."""

    def __init__(self, cert: str, key: str) -> None:
        """Raises ConfigError."""
        self._cert, self._key = cert, key or cert
        self._context = self._load()

    def renew(self) -> None:
        """Raises ConfigError, and stays with what it had."""
        self._context = self._load()

    @property
    def context(self) -> ssl.SSLContext:
        """WORKER. For a loop that does TLS by itself."""
        return self._context

    def wrap(self, sock: socket.socket) -> TlsSocket:
        """WORKER. The server's end of a new connection; the handshake is part of its first recv().

        Raises OSError if the client is gone already.
        """
        sock.getpeername()  # ENOTCONN here; ssl would take it for a socket that is yet to be connected
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, TlsSocket)
        return wrapped

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.sslsocket_class = TlsSocket
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except ssl.SSLError as error:
            raise ConfigError(self._fault(error)) from None
        except OSError as error:
            files = f"--tls-cert {self._cert} or --tls-key {self._key}"
            raise ConfigError(f"cannot read {files}: {error.strerror}") from None
        return context

    def _fault(self, error: ssl.SSLError) -> str:
        """Return a message that names the wrong file."""
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"--tls-key {self._key} is not the key of --tls-cert {self._cert}"
        for option, path, mark in (
            ("--tls-cert", self._cert, b"CERTIFICATE"),
            ("--tls-key", self._key, b"PRIVATE KEY"),
        ):
            with open(path, "rb") as file:
                if mark + b"-----" not in file.read(1 << 20):
                    what = mark.decode().lower()
                    also = "; say where it is, --tls-key FILE" if path == self._cert and option == "--tls-key" else ""
                    return f"{option} {path} has no {what} in it (PEM){also}"
        return f"cannot use --tls-cert {self._cert} with --tls-key {self._key}: {error.reason or error}"


class TlsSocket(ssl.SSLSocket):
    """A connection under TLS whose waits are BlockingIOError, like those of any non-blocking socket."""

    def recv(self, *args: Any) -> bytes:
        """As socket.recv(); b"" also for a client that ends without saying so. Raises PlainHttpError."""
        try:
            return super().recv(*args)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except ssl.SSLError as error:
            if error.reason != "HTTP_REQUEST":
                raise
            socket.socket.send(self, PLAIN_HTTP)
            raise PlainHttpError(str(error)) from None

    def send(self, *args: Any) -> int:
        """As socket.send()."""
        try:
            return super().send(*args)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """Close the sending side, in TLS and in TCP."""
        self._say_goodbye()
        super().shutdown(how)

    def close(self) -> None:
        """Close it, and tell the client that this is the end and no cut."""
        self._say_goodbye()
        super().close()

    def _say_goodbye(self) -> None:
        try:
            self.unwrap()
        except (OSError, ValueError):
            pass  # it has not answered yet, or is gone, or no handshake was done


def _no_password() -> str:
    raise ConfigError("the --tls-key is encrypted; give one without a password")
