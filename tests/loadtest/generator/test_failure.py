"""The causes of failures, as a report names them."""

from __future__ import annotations

import errno
import socket

import pytest

from loadtest.generator.failure import ExchangeError, cause_of


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "refused"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "reset"),
        (BrokenPipeError(errno.EPIPE, "x"), "reset"),
        (TimeoutError(), "timeout"),
        (OSError(errno.ETIMEDOUT, "x"), "timeout"),
        (FileNotFoundError(errno.ENOENT, "x"), "no socket file"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "no free port"),
        (OSError(errno.EMFILE, "x"), "too many open files"),
        (OSError(errno.ENETUNREACH, "x"), "ENETUNREACH"),
        (socket.gaierror(-2, "x"), "unknown host"),
        (ExchangeError("wrong reply"), "wrong reply"),
        (KeyError("x"), "KeyError"),
    ],
)
def test_errors_have_a_short_cause(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause
    assert repr(ExchangeError(cause)) == cause
