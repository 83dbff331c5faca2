"""The application of the plans that compare WSGI servers, without a framework: a small answer, a large one, a slow one,
and one that reads what it is sent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_HELLO = b"Hello, world!\n"
_LARGE = b"0123456789abcdef" * 6400  # 100 KB


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer /, /large, after 30 ms /slow, and a POST with the number of bytes that came."""
    if environ["REQUEST_METHOD"] == "POST":
        body = b"%d\n" % len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    else:
        if environ["PATH_INFO"] == "/slow":
            time.sleep(0.03)
        body = _LARGE if environ["PATH_INFO"] == "/large" else _HELLO
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
