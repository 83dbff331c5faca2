"""TLS for the event loops: a context made before the fork, and connections that behave as non-blocking ones do.

Made by the master, so that all workers share the keys of session tickets: what one has issued, another resumes. Only
imported with --tls-cert, as `ssl` is a heavy import.

A handshake that fails is told to both sides: the client gets the alert of RFC 8446 6.2 and time to read it, and the log
gets a sentence.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from errno import ECONNRESET
from select import EPOLLIN, EPOLLOUT
from typing import Any

from prefork.errors import ConfigError, HandshakeError, PlainHttpError

# What a browser gets that speaks plain HTTP here; a reset would tell its user nothing.
_HINT = b"This port speaks TLS: use https:// instead.\n"
PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b" % (len(_HINT), _HINT)
)
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """What --tls-* ask for: files, all PEM but that of the password, and what is agreed on with clients.

    `password`: of the key, unless `password_file` has it. `client_cert`: required or optional, if there is a `ca`.
    `ciphers`: in the format of OpenSSL; "" is its own choice.
    """

    cert: str
    key: str = ""
    password_file: str = ""
    password: str = ""
    ca: str = ""
    client_cert: str = "required"
    min_version: str = "1.2"
    ciphers: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFacts:
    """What applications are told of a connection. Of a client that has shown no certificate, the last four are empty.

    `version`: as OpenSSL has it, such as TLSv1.3. `suite`: the number of the cipher. `client_chain`: PEM, the client's
    own certificate first; before Python 3.13 no other. `subject`, `issuer`: of it, as in RFC 4514. `serial`: hex.
    """

    version: str
    cipher: str
    suite: int | None
    server_cert: str
    client_chain: list[str]
    subject: str
    issuer: str
    serial: str


class Tls:
    """MASTER makes it, workers inherit it. `renew` reads all files anew, for workers forked from then on.

    `server_cert`: the certificate that clients see (PEM). `suites`: numbers of cipher suites by name (RFC 8446 B.4).
    """

    server_cert: str
    suites: dict[str, int]

    def __init__(self, settings: TlsSettings) -> None:
        """Raises ConfigError."""
        self._settings = settings
        self._context = self._load()

    def renew(self) -> None:
        """Raises ConfigError, and stays with what it had."""
        self._context = self._load()

    def facts(self, connection: ssl.SSLSocket | ssl.SSLObject) -> TlsFacts:
        """WORKER. Return what was agreed on in a handshake that is complete."""
        cipher = connection.cipher()
        chain: list[bytes] = []
        client: Any = connection.getpeercert() if self._settings.ca else None
        if client:
            if sys.version_info >= (3, 13):
                chain = connection.get_unverified_chain()
            elif leaf := connection.getpeercert(binary_form=True):
                chain = [leaf]
        return TlsFacts(
            version=connection.version() or "",
            cipher=cipher[0] if cipher else "",
            suite=self.suites.get(cipher[0]) if cipher else None,
            server_cert=self.server_cert,
            client_chain=[ssl.DER_cert_to_PEM_cert(certificate) for certificate in chain],
            subject=_distinguished_name(client["subject"]) if client else "",
            issuer=_distinguished_name(client["issuer"]) if client else "",
            serial=client["serialNumber"] if client else "",
        )

    @property
    def context(self) -> ssl.SSLContext:
        """WORKER. For a loop that does TLS by itself."""
        return self._context

    def speak_http(self) -> None:
        """WORKER. Agree on HTTP/1.1 with clients that ask for a protocol (ALPN, RFC 7301)."""
        self._context.set_alpn_protocols(["http/1.1"])

    def on_failure(self, tell: Callable[[OSError], None]) -> None:
        """WORKER. Call this when a handshake fails that a loop does by itself, with its connection's variables."""
        self._context.tell = tell

    def wrap(self, sock: socket.socket) -> TlsSocket:
        """WORKER. The server's end of a new connection, before its handshake.

        Raises OSError if the client is gone already.
        """
        sock.getpeername()  # ENOTCONN here; ssl would take it for a socket that is yet to be connected
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, TlsSocket)
        return wrapped

    # --- the context

    def _load(self) -> _Context:
        settings = self._settings
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = VERSIONS[settings.min_version]
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.sslsocket_class = TlsSocket
        context.sslobject_class = _TlsObject
        if settings.ciphers:
            try:
                context.set_ciphers(settings.ciphers)
            except ssl.SSLError:
                raise ConfigError(f"--tls-ciphers {settings.ciphers}: OpenSSL knows none of these") from None
        self._load_own(context)
        if settings.ca:
            self._load_ca(context)
        self.suites = {cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()}
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        """Load the certificate and its key."""
        settings = self._settings
        key = settings.key or settings.cert
        try:
            context.load_cert_chain(settings.cert, key, password=self._password)
            with open(settings.cert, encoding="ascii", errors="replace") as file:
                found = _CERTIFICATE.search(file.read())
        except ssl.SSLError as error:
            raise ConfigError(self._fault(error, key)) from None
        except OSError as error:
            files = f"--tls-cert {settings.cert} or --tls-key {key}"
            raise ConfigError(f"cannot read {files}: {error.strerror}") from None
        self.server_cert = found[0] + "\n" if found else ""

    def _load_ca(self, context: ssl.SSLContext) -> None:
        """Load who has to have signed the certificates of clients."""
        path = self._settings.ca
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            raise ConfigError(f"--tls-ca {path} has no certificate in it (PEM)") from None
        except OSError as error:
            raise ConfigError(f"cannot read --tls-ca {path}: {error.strerror}") from None
        required = self._settings.client_cert == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL

    def _password(self) -> str:
        """Return the password of the key. Only called for a key that has one. Raises ConfigError."""
        path, password = self._settings.password_file, self._settings.password
        if path:
            try:
                with open(path, encoding="utf-8") as file:
                    password = file.readline(_PASSWORD_MOST + 2).rstrip("\r\n")
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
                raise ConfigError(f"cannot read --tls-key-password-file {path}: {reason}") from None
            if not password:
                raise ConfigError(f"--tls-key-password-file {path}: its first line is empty")
        elif not password:
            key = self._settings.key or self._settings.cert
            cure = "give --tls-key-password-file FILE, or set PREFORK_TLS_KEY_PASSWORD"
            raise ConfigError(f"--tls-key {key} has a password: {cure}")
        if len(password.encode()) > _PASSWORD_MOST:
            raise ConfigError(f"the password of --tls-key is longer than {_PASSWORD_MOST} bytes")
        return password

    def _fault(self, error: ssl.SSLError, key: str) -> str:
        """Return a message that names the wrong file."""
        cert = self._settings.cert
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"--tls-key {key} is not the key of --tls-cert {cert}"
        for option, path, mark in (("--tls-cert", cert, b"CERTIFICATE"), ("--tls-key", key, b"PRIVATE KEY")):
            with open(path, "rb") as file:
                text = file.read(1 << 20)
            if mark + b"-----" not in text:
                what = mark.decode().lower()
                also = "; say where it is, --tls-key FILE" if path == cert and option == "--tls-key" else ""
                return f"{option} {path} has no {what} in it (PEM){also}"
        if b"ENCRYPTED" in text:
            return f"the password of --tls-key {key} is wrong"
        return f"cannot use --tls-cert {cert} with --tls-key {key}: {error.reason or error}"


_PASSWORD_MOST = 1024  # bytes; PEM_BUFSIZE of OpenSSL


# --- Why a handshake failed, for whoever reads the log: the reasons of OpenSSL that people meet.


_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it gave no certificate, which --tls-ca asks for",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS that is served here; see --tls-min-version",
    "NO_SHARED_CIPHER": "it has no cipher in common with --tls-ciphers",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept the certificate of --tls-cert",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know who has signed the certificate of --tls-cert",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept the certificate of --tls-cert",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that the certificate of --tls-cert has expired",
}


def _sentence(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    reason = error.reason or "it was cut"
    return _REASONS.get(reason) or reason.lower().replace("_", " ")


def _check_certificate(connection: ssl.SSLSocket | ssl.SSLObject) -> None:
    """Raise ssl.SSLError if Python cannot read the certificate of a client, which OpenSSL has accepted.

    A name in it need not be UTF-8 for OpenSSL; loops and applications ask for it, and would stumble.
    """
    if connection.context.verify_mode != ssl.CERT_NONE:
        try:
            connection.getpeercert()
        except UnicodeDecodeError as error:
            unreadable = ssl.SSLCertVerificationError("")
            unreadable.reason = _UNREADABLE
            unreadable.verify_message = f"it has what is not UTF-8: {error.object[:50]!r}"
            raise unreadable from None


_UNREADABLE = "UNREADABLE"  # beside the reasons of OpenSSL


# --- Names in certificates, as RFC 4514 writes them: the last part first, special characters escaped.


_SHORT = {  # RFC 4514 section 3
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
_SPECIAL = re.compile(r'[",+;<>\\]|\A[ #]| \Z')


def _distinguished_name(parts: Any) -> str:
    """Write a name that ssl.SSLSocket.getpeercert() has: a tuple of parts, each of (type, value) pairs."""

    def written(value: str) -> str:
        return _SPECIAL.sub(r"\\\g<0>", value).replace("\0", "\\00")

    pairs = (((_SHORT.get(name, name), written(value)) for name, value in part) for part in reversed(parts))
    return ",".join("+".join(f"{name}={value}" for name, value in part) for part in pairs)


# --- connections


class _Context(ssl.SSLContext):
    """A context whose objects tell of failed handshakes."""

    tell: Callable[[OSError], None] | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """See ssl.SSLContext."""
        wrapped = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        assert isinstance(wrapped, _TlsObject)
        wrapped.incoming, wrapped.outgoing = incoming, outgoing
        return wrapped


class _TlsObject(ssl.SSLObject):
    """TLS for a loop that does it by itself. asyncio and uvloop would close the connection with the alert unsent.

    (cpython #98078.) They send what there is to send when a handshake has to wait for its client. So one that fails
    waits, until the client has left, or has sent too much, or the time for handshakes is over.
    """

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    _error: ssl.SSLError | None = None
    _left = 64 << 20  # bytes that are discarded at most

    def do_handshake(self) -> None:
        """See ssl.SSLObject."""
        if self._error is None:
            try:
                super().do_handshake()
                _check_certificate(self)
                return
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                self._error = error
                if not self.outgoing.pending or error.reason == _UNREADABLE:  # there is no alert
                    self._left = -1
                if (tell := getattr(self.context, "tell", None)) is not None:
                    tell(HandshakeError(f"TLS handshake: {_sentence(error)}"))
        self._left -= len(self.incoming.read())
        if self._left < 0:
            raise self._error
        raise ssl.SSLWantReadError


def _as_of_a_socket(error: ssl.SSLError) -> OSError:
    """Return what a socket without TLS would have raised."""
    if isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError):
        return BlockingIOError()
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ConnectionResetError(ECONNRESET, "it has left")
    return OSError(f"TLS: {_sentence(error)}")


class TlsSocket(ssl.SSLSocket):
    """A connection under TLS whose waits are BlockingIOError, like those of any non-blocking socket."""

    def shake_hands(self) -> int:
        """Go on with the handshake. Returns 0 when it is complete, else what it waits for: EPOLLIN or EPOLLOUT.

        Raises HandshakeError if it has failed, PlainHttpError if the client speaks HTTP and was told so, and
        ConnectionError if it has left.
        """
        try:
            self.do_handshake()
            _check_certificate(self)
        except ssl.SSLWantReadError:
            return EPOLLIN
        except ssl.SSLWantWriteError:
            return EPOLLOUT
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                socket.socket.send(self, PLAIN_HTTP)
                raise PlainHttpError("it speaks plain HTTP") from None
            if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                raise _as_of_a_socket(error) from None
            raise HandshakeError(f"TLS handshake: {_sentence(error)}") from None
        return 0

    def recv(self, *args: Any) -> bytes:
        """As socket.recv(); b"" also for a client that ends without saying so."""
        try:
            return super().recv(*args)
        except ssl.SSLError as error:
            raise _as_of_a_socket(error) from None

    def send(self, *args: Any) -> int:
        """As socket.send()."""
        try:
            return super().send(*args)
        except ssl.SSLError as error:
            raise _as_of_a_socket(error) from None

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
