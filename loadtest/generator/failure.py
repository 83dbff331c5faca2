"""Why an exchange failed, in a few short words, so that failures can be counted by cause and compared."""

from __future__ import annotations

import errno
import socket
import ssl

REFUSED = "refused"
RESET = "reset"
TIMEOUT = "timeout"
WRONG_REPLY = "wrong reply"
CLOSED_EARLY = "closed early"
WRONG_LENGTH = "wrong length"
WRONG_HANDSHAKE = "wrong handshake"
WRONG_FRAME = "wrong frame"
BAD_CERTIFICATE = "bad certificate"
TLS_HANDSHAKE = "TLS handshake"
NO_SOCKET_FILE = "no socket file"
UNKNOWN_HOST = "unknown host"
NO_FREE_PORT = "no free port"
TOO_MANY_FILES = "too many open files"

# The names of the errors of connect, send and recv; what is not here is named by its errno symbol (ENETUNREACH).
_CAUSES = {
    errno.ECONNREFUSED: REFUSED,
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,  # a send after the reset was received
    errno.ETIMEDOUT: TIMEOUT,
    errno.ENOENT: NO_SOCKET_FILE,
    errno.EADDRNOTAVAIL: NO_FREE_PORT,  # all local ports are in TIME_WAIT: the generator's limit, not the server's
    errno.EMFILE: TOO_MANY_FILES,
    errno.ENFILE: TOO_MANY_FILES,
}


class ExchangeError(Exception):
    """An exchange that failed. Its repr is the bare cause, because locust tells errors apart by their repr."""

    def __repr__(self) -> str:
        return str(self)


def cause_of(error: BaseException) -> str:
    """Return the cause that an exception stands for; an unknown exception is named by its class."""
    match error:
        case ExchangeError():
            return str(error)
        case TimeoutError():
            return TIMEOUT
        case socket.gaierror():
            return UNKNOWN_HOST
        case ssl.SSLError():
            # or, hardly ever, what came after it
            return BAD_CERTIFICATE if isinstance(error, ssl.SSLCertVerificationError) else TLS_HANDSHAKE
        case OSError(errno=int(number)):
            return _CAUSES.get(number) or errno.errorcode.get(number, f"errno {number}")
        case _:
            return type(error).__name__
