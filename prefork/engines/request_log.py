"""WORKER. What is written down of a unit of work: counters and times on the scoreboard, and of HTTP the access log.

A unit's time has one meaning for every kind of application: how long the application took, from its call until it had
given the last piece of its response, less its waits for the client to send or to read. Only of an asyncio.Protocol are
these not known: the time is that of its connection.
"""

from __future__ import annotations

import os
from time import time
from typing import TYPE_CHECKING, Any, Protocol

from prefork.core.log import ReportingWriter
from prefork.engines.error_log import name_of
from prefork.engines.timers import NEVER
from prefork.http import access_log
from prefork.http.access_log import AccessLog
from prefork.http.forwarded import Trusted, find_origin
from prefork.status.histogram import array_index
from prefork.status.scoreboard import ABORTED, COMPLETED, ERRORS, GONE, HISTOGRAM, REFUSED, TIMED_OUT, TOOK_NS, Row

if TYPE_CHECKING:
    from prefork.engines.context import WorkerContext
    from prefork.engines.error_log import RateLimitedLog
    from prefork.engines.peer import Peer
    from prefork.http.head import Request
    from prefork.http.limits import Refusal


def count_unit(row: Row, outcome: int, took_ns: int) -> None:
    """Count a unit of work that is complete: call it before its last bytes leave. `outcome`: the counter's cell."""
    cells = row.cells
    cells[outcome] += 1
    cells[HISTOGRAM + array_index(took_ns)] += 1
    cells[TOOK_NS] += took_ns


class Response(access_log.Response, Protocol):
    """What is to be known of an application's response."""

    status: int
    sent: int  # bytes of its body
    error: BaseException | None
    aborted: bool  # it failed when the client had a part already


class RequestLog:
    """WORKER. Of all requests of an event loop. Times are ns. `active`: there is an access log."""

    def __init__(self, worker: WorkerContext, errors: RateLimitedLog, trusted: Trusted) -> None:
        config = worker.config
        self._errors = errors
        self._trusted = trusted
        self._counters = worker.rows[0].cells  # of the loop
        self._access = AccessLog(config.access_log_format, os.getpid())
        fd = worker.inherited.access_log
        self._access_out = ReportingWriter(fd, worker.log, "access log lines") if fd >= 0 else None
        self.active = self._access_out is not None
        self.slow_ns = round(config.slow_s * 1e9) or NEVER
        self._most_in_flight = config.max_in_flight

    def finish(self, row: Row, peer: Peer[Any], request: Request, response: Response, took_ns: int) -> None:
        """Count a request whose response is complete, and log it. Call it before the response's last bytes leave.

        `row`: of the thread that ran the application.
        """
        error = response.error
        if error is None:
            count_unit(row, COMPLETED, took_ns)
        else:
            count_unit(row, ERRORS, took_ns)
            row.cells[ABORTED] += response.aborted
        if took_ns >= self.slow_ns:
            self._note_slow(row, peer, response, took_ns)
        if error is not None or self.active:
            self.write(peer, request, response.status, response.sent, took_ns, error, response)

    def abandon(
        self, row: Row, peer: Peer[Any], request: Request, response: Response, took_ns: int, error: BaseException | None
    ) -> None:
        """Log a request whose client left before the response was complete. `error`: of the application."""
        if took_ns >= self.slow_ns:
            self._note_slow(row, peer, response, took_ns)
        self.write(peer, request, response.status, response.sent, took_ns, error, response)

    def write(
        self,
        peer: Peer[Any],
        request: Request,
        status: int,
        sent: int,
        took_ns: int,
        error: BaseException | None,
        response: access_log.Response | None = None,
    ) -> None:
        """Write the error, if there is one, and the line of the access log. `response`: None of a WebSocket."""
        if error is not None:
            self._errors.add(error, peer.text, request)
        if not self.active:
            return
        client = peer.address
        if peer.trusted:
            client = find_origin(request.fields, client, peer.port, self._trusted).address
        took_us, queue_ms = took_ns // 1000, _queue_ms(peer)
        self._write(self._access.line(time(), client, request, status, sent, took_us, queue_ms, response))

    def refuse(self, peer: Peer[Any], refusal: Refusal, response: bytes) -> None:
        """Count and log a request that the server answers itself, with this response."""
        self._counters[TIMED_OUT if refusal.status == 408 else REFUSED] += 1
        self._errors.note("request refused", ours=False, peer=peer.text, status=refusal.status, reason=refusal.reason)
        if self.active:
            size = len(response.partition(b"\r\n\r\n")[2])
            self._write(self._access.line(time(), peer.address, None, refusal.status, size, 0, _queue_ms(peer)))

    def turn_away(self, peer: Peer[Any], request: Request, response: Response) -> None:
        """Count and log a request beyond --max-in-flight, with the server's own whole response."""
        self._counters[REFUSED] += 1
        peer.set_request(request)  # from now on, it counts as a client that was served
        self._errors.note(
            "max-in-flight reached",
            ours=False,
            limit=self._most_in_flight,
            peer=peer.text,
            request=name_of(request),
            status=response.status,
            hint="add --workers, or raise --max-in-flight if the application can do more at once",
        )
        self.write(peer, request, response.status, response.sent, 0, None)

    def count_gone(self) -> None:
        """Count a client that left in the midst of a request."""
        self._counters[GONE] += 1

    def count_late(self) -> None:
        """Count a client that was too slow to send or to read, where no response can say so."""
        self._counters[TIMED_OUT] += 1

    def refuse_connection(self, error: BaseException, peer: Peer[Any]) -> None:
        """Count and log a connection that came to no request: its PROXY header or its TLS handshake is at fault."""
        self._counters[REFUSED] += 1
        self.connection_failed(error, peer)

    def connection_failed(self, error: BaseException, peer: Peer[Any]) -> None:
        """Log what went wrong on the way to a client."""
        self._errors.note("connection failed", ours=False, peer=peer.text, error=str(error))

    @staticmethod
    def _note_slow(row: Row, peer: Peer[Any], response: Response, took_ns: int) -> None:
        # A stream of events (ASGI) lasts for as long as its client likes.
        if not getattr(response, "streams_events", False):
            row.add_slow(took_ns, peer.row_text)

    def _write(self, line: bytes) -> None:
        assert self._access_out is not None
        self._access_out.write(line)


def _queue_ms(peer: Peer[Any]) -> int | None:
    """How long the connection waited to be accepted; returned once."""
    waited_ms, peer.queue_ms = peer.queue_ms, None
    return waited_ms
