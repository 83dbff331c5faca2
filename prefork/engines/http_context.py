"""WORKER. What all HTTP connections of a worker share, whatever the application speaks: limits, times, trust, the date.

What is counted and logged of requests is in request_log.py, how an application is called in wsgi/app.py and
asgi/app.py.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from prefork.http.fields import FieldTable
from prefork.http.forwarded import Trusted
from prefork.http.limits import Limits
from prefork.http.response import add_fields, stamp

if TYPE_CHECKING:
    from prefork.config.config import Config


_PACE_NS = 1_000_000_000 // 1024  # for a byte, once --idle-timeout has passed


class HttpContext:
    """WORKER. Times are ns. `draining`: every response says that the connection ends with it. `stamp`: the end of
    every head of this second, with the date.
    """

    def __init__(self, config: Config, fields: FieldTable | None = None) -> None:
        self.limits = Limits(
            request_line_bytes=config.max_request_line,
            fields=config.max_fields,
            header_bytes=config.max_header,
            body_bytes=config.max_body,
        )
        self.fields = FieldTable() if fields is None else fields
        self.trusted = Trusted(text for text in config.trusted_proxies if text != "none")
        self.header_ns = round(config.header_timeout_s * 1e9)
        self.keep_alive_ns = round(config.keep_alive_s * 1e9)
        self._idle_ns = round(config.idle_timeout_s * 1e9)
        self.draining = self._always_drains = self.keep_alive_ns == 0
        self._added = add_fields([text for text in config.header if text != "none"], server=config.server_header)
        self._second = 0
        self.stamp = b""
        self.tick()

    def deadline_ns(self, since_ns: int, moved: int, now_ns: int) -> int:
        """When a body or a response is late that began then, and of which so many bytes have moved, the last ones now.

        No stall may last for --idle-timeout, nor may a trickle: beyond that time, each byte has to earn its own.
        """
        return self._idle_ns + min(now_ns, since_ns + moved * _PACE_NS)

    def idle_ns(self, *, served: bool) -> int:
        """How long a client may take until it sends a request: the next one, or its first."""
        return self.keep_alive_ns if served else self.header_ns

    def tick(self) -> None:
        """Make the date anew if a second has passed. Call it in each turn of the loop."""
        second = int(time())
        if second != self._second:
            self._second = second
            self.stamp = stamp(second, self._added)

    def drain(self, *, last: bool = True) -> None:
        """Let every response from now on say that its connection ends; unless it need not be the last one after all."""
        self.draining = last or self._always_drains
