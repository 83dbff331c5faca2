"""The web application of the tests in each way to serve it, as parameters: over WSGI and ASGI, which answer alike."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.support.client import abort
from tests.support.web import ASGI, WEB

Way = tuple[str, ...]  # the application and its options
Leave = Callable[[socket.socket], None]

ONE = ("--workers", "1")
WSGI = pytest.param((WEB,), id="wsgi")
THREADS = pytest.param((WEB, "--threads", "3"), id="wsgi-threads")
ON_UVLOOP = pytest.param((ASGI,), id="asgi")
ON_ASYNCIO = pytest.param((ASGI, "--loop", "asyncio"), id="asgi-asyncio")
WAYS = [WSGI, THREADS, ON_UVLOOP, ON_ASYNCIO]
LOOPS = [ON_UVLOOP, ON_ASYNCIO]
EACH_WAY = pytest.mark.parametrize("way", WAYS)
EACH_ENGINE = pytest.mark.parametrize("way", [WSGI, THREADS, ON_UVLOOP])
BOTH = pytest.mark.parametrize("way", [WSGI, ON_UVLOOP])
LEAVING = pytest.mark.parametrize("leave", [abort, socket.socket.close], ids=["reset", "close"])


def units(way: Way) -> int:
    """How many requests that block keep a worker busy."""
    return 3 if "--threads" in way else 1
