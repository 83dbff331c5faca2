"""The few exceptions of prefork, each with its exit code, and the errno sets that are handled rather than raised.

Exit codes: 0 stopped as asked, 1 anything else, 2 bad usage or configuration, 3 workers cannot boot, 4 the app cannot
be loaded, 5 an address cannot be bound, 6 no server to talk to.
"""

from __future__ import annotations

import errno
import sys


class PreforkError(Exception):
    """An error that a user can act on: the message says what happened, where, why and what to do.

    `detail` is text of the application, such as its traceback. prefork's own traceback is never shown. `logged`: the
    log has told it where it would be printed.
    """

    exit_code = 1
    logged = False

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class ConfigError(PreforkError):
    """A flag, an environment variable or a line of the configuration file is wrong."""

    exit_code = 2


class BootError(PreforkError):
    """A worker died, or was not ready in time, before all workers had been ready once."""

    exit_code = 3


class AppLoadError(PreforkError):
    """APP cannot be loaded, or prefork cannot serve it."""

    exit_code = 4


class BindError(PreforkError):
    """A listener cannot be made: which step failed, on which address, and the system's reason."""

    exit_code = 5


class LineTooLong(PreforkError):  # noqa: N818 - reads as what happened, like the EOFError and TimeoutError beside it
    """A client sent `limit` bytes without a line end."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"no line end within {limit} bytes")
        self.limit = limit


class HandshakeError(OSError):
    """A client and we could not agree on TLS. It has been told, if it spoke TLS at all."""


class PlainHttpError(HandshakeError):
    """A client spoke HTTP on a TLS port. It has been answered."""


_CONTAINER = (
    'docker run --rm -it -p 8000:8000 -v "$PWD":/app -w /app python:3.13-slim '
    'sh -c "pip install prefork && prefork serve shop:app --bind 0.0.0.0:8000"'
)


def require_linux(platform: str = sys.platform) -> None:
    """Raise PreforkError on another system: it has no epoll, no prctl, and accepts in other ways."""
    if platform != "linux":
        raise PreforkError(f"prefork needs Linux, and this is {platform}. In a container: {_CONTAINER}")


_ENONET = getattr(errno, "ENONET", 64)  # Linux alone has it, and elsewhere we have to come as far as to say so

# accept(2), "Error handling": errors of the connection, not of the listener. The next one may be fine.
ACCEPT_IGNORED = frozenset({
    errno.EAGAIN,        # SO_RCVTIMEO ran out, or another process made the shared listener non-blocking
    errno.EINTR,         # a signal; Python retries, but not for every caller
    errno.ECONNABORTED,  # the client reset the connection while it was queued
    errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM,  # a firewall or the protocol refused this one
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, _ENONET,  # its network went away
    errno.ETIMEDOUT,
})  # fmt: skip

# accept(2) on a listener while new connections are held off, or after the last master has ended it: the queue is empty.
QUEUE_EMPTY = frozenset({
    errno.EAGAIN,  # the listener is non-blocking by then
    errno.EINVAL,  # after shutdown(2); a worker of an upgraded server's old master may still be there
})  # fmt: skip

# accept(2): this process, or the system, has no file descriptor or memory left. Trying at once again would spin.
ACCEPT_PAUSE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ACCEPT_PAUSE_S = 0.1

# The client left while it was being served. This is not an error of the handler.
CLIENT_GONE = frozenset({
    errno.EPIPE,         # we wrote after it had closed
    errno.ECONNRESET,    # it closed with our bytes unread, or died
    errno.ECONNABORTED,
    errno.ENOTCONN,      # shutdown(2) after a reset
    errno.ESHUTDOWN,
    errno.ETIMEDOUT,     # its host stopped answering (TCP_USER_TIMEOUT, keep-alive)
    errno.EHOSTUNREACH, errno.ENETUNREACH,
})  # fmt: skip

# close(2) and the like: the handler closed the descriptor behind our back, `os.close(conn.fileno())`.
NOT_OPEN = frozenset({errno.EBADF, errno.ENOTSOCK})

# fork(2) and the pipes around it: too many processes, no memory, no descriptors. All pass; the master keeps what it has
# and tries again.
FORK_REFUSED = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
