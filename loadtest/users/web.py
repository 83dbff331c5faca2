"""The user of the http scenario: locust's own FastHttpUser on one keep-alive connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit
from geventhttpclient._parser import HTTPParseError
from geventhttpclient.response import HTTPConnectionClosed
from locust import FastHttpUser, constant, task

from ..generator.failure import CLOSED_EARLY, RESET, WRONG_REPLY, ExchangeError, cause_of
from .options import DEADLINE_S
from .target import target

if TYPE_CHECKING:
    from locust.env import Environment


# How the messages of geventhttpclient and of its parser begin when the stream ended inside a response.
_CUT_SHORT = ("Incomplete response", "Invalid EOF state", "connection closed")


class WebUser(FastHttpUser):  # type: ignore[misc]  # locust ships no types
    """Requests `/`, reads the whole body, and checks the status (200) and the length that was announced."""

    wait_time = constant(0)
    protocol = "http"
    unix = False
    host: str | None = None
    concurrency = 1  # one connection
    connection_timeout = network_timeout = DEADLINE_S
    default_headers = {"Accept-Encoding": "identity"}  # noqa: RUF012 # locust reads it as a class attribute

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        address, _, _ = target(self)
        self.host = f"http://{address}"
        super().__init__(environment)
        # geventhttpclient silently sends a request again, size + 1 times, if its connection breaks. The lab counts that
        # as what it is: a request that failed.
        self.client.client.clientpool.get_client(self.host)._connection_pool.size = -1

    @task  # type: ignore[untyped-decorator]
    def exchange(self) -> None:
        """One request and its whole response."""
        start_ns = time.perf_counter_ns()
        try:
            with self.client.get("/", catch_response=True, allow_redirects=False) as response:
                if cause := _flaw(response):
                    response.failure(ExchangeError(cause))
        except GreenletExit:  # the run is over and waits no longer
            self.environment.events.censored.fire(start_ns=start_ns)
            raise


def _flaw(response: Any) -> str:
    """The cause why this response is a failure; empty if it is as it should be."""
    if response.status_code not in (0, 200):
        return f"status {response.status_code}"
    error = response.request_meta["exception"]
    if error is None:
        announced = response.headers.get("content-length", "")
        return CLOSED_EARLY if announced and int(announced) != len(response.content or b"") else ""
    error = getattr(error, "original", None) or error  # of RetriesExceeded
    if isinstance(error, HTTPConnectionClosed):
        return RESET if isinstance(error.__context__, ConnectionResetError) else CLOSED_EARLY
    if isinstance(error, HTTPParseError):
        return CLOSED_EARLY if str(error.args[0]).startswith(_CUT_SHORT) else WRONG_REPLY
    return cause_of(error)
