"""The user of the http scenario: locust's own FastHttpUser on one connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit
from geventhttpclient._parser import HTTPParseError
from geventhttpclient.response import HTTPConnectionClosed
from locust import FastHttpUser, constant, task

from ..generator.failure import CLOSED_EARLY, RESET, WRONG_REPLY, ExchangeError, cause_of
from .options import DEADLINE_S, target
from .web_options import expectation_of, request_of, tls_of

if TYPE_CHECKING:
    from locust.env import Environment


# How the messages of geventhttpclient and of its parser begin when the stream ended inside a response.
_CUT_SHORT = ("Incomplete response", "Invalid EOF state", "connection closed")
_PIECE = 65536  # bytes of a body to read at once; none of them is kept


class WebUser(FastHttpUser):  # type: ignore[misc]  # locust ships no types
    """Sends `--method --path`, reads the whole response, and checks its status and its length."""

    wait_time = constant(0)
    protocol = "http"
    unix = False
    host: str | None = None
    concurrency = 1  # one connection
    connection_timeout = network_timeout = DEADLINE_S

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        options = environment.parsed_options
        address, _, _ = target(self)
        self.host = f"{'https' if address.tls else 'http'}://{address}"
        self.insecure = options.insecure
        if address.tls:
            verified = tls_of(options)
            self.ssl_context_factory = lambda **_: verified
        super().__init__(environment)
        self.asked, self.expected = request_of(options), expectation_of(options)
        self.fields: dict[str, list[str]] = {}
        for name, value in self.asked.fields(address.name):
            self.fields.setdefault(name, []).append(value)
        self.exchanges = options.exchanges if options.keep_alive else 1
        self.left = self.exchanges  # requests that this connection still takes; never 0 again if that is not limited
        # Each request is like the one before, and `expected` says which responses are good.
        self.client.client.cookiejar = None
        self.client.client.valid_response_codes = range(1000)
        self.pool = self.client.client.clientpool.get_client(self.host)._connection_pool
        # geventhttpclient silently sends a request again, size + 1 times, if its connection breaks. The lab counts that
        # as what it is: a request that failed.
        self.pool.size = -1

    @task  # type: ignore[untyped-decorator]
    def exchange(self) -> None:
        """One request and its whole response."""
        start_ns = time.perf_counter_ns()
        try:
            with self.client.request(
                self.asked.method,
                self.asked.path,
                data=self.asked.body,
                headers=self.fields,
                allow_redirects=False,
                stream=True,
                catch_response=True,
            ) as response:
                length, error = _read(response)
                response.request_meta["response_time"] = (time.perf_counter_ns() - start_ns) / 1e6
                response.request_meta["response_length"] = length
                if cause := _cause(error) or self.expected.flaw(response.status_code, length):
                    response.failure(ExchangeError(cause))
                else:
                    response.success()
        except GreenletExit:  # the run is over and waits no longer
            self.environment.events.censored.fire(start_ns=start_ns)
            raise
        self.left -= 1
        if not self.left:
            self._hang_up()

    def _hang_up(self) -> None:
        self.left = self.exchanges
        while not self.pool._socket_queue.empty():
            self.pool._socket_queue.get(block=False).close()


def _read(response: Any) -> tuple[int, Exception | None]:
    """Read the body to its end: its length, and what went wrong, before or now."""
    error, length = getattr(response, "error", None), 0
    try:
        while error is None and (piece := response.read(_PIECE)):
            length += len(piece)
    except (OSError, HTTPParseError) as raised:
        error = raised
    return length, error


def _cause(error: Any) -> str:
    """The cause of a failure that an error of geventhttpclient stands for; empty without one."""
    error = getattr(error, "original", None) or error  # of RetriesExceeded
    match error:
        case None:
            return ""
        case HTTPConnectionClosed():
            return RESET if isinstance(error.__context__, ConnectionResetError) else CLOSED_EARLY
        case HTTPParseError():
            return CLOSED_EARLY if str(error.args[0]).startswith(_CUT_SHORT) else WRONG_REPLY
        case _:
            return cause_of(error)
