"""prefork, but its workers write nothing about requests on the scoreboard, and do not ask how long connections waited.

For the plans `overhead-wsgi` and `overhead-asgi`. Usage: without_rows.py serve APP ... What is replaced stands here as
it is there, less the writes: compare the two when it is changed there.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

from prefork.cli.main import main
from prefork.engines.aio import engine as aio
from prefork.engines.aio.heartbeat import Heartbeat
from prefork.engines.asgi.app import AsgiApp
from prefork.engines.asgi.request import RequestResponseCycle
from prefork.engines.wsgi import loop as reactor
from prefork.engines.wsgi.app import WsgiApp


def run(self: Any, _row: Any, _peer: Any, call: Any) -> Any:
    """WsgiApp.run: the clients' clock needs to know how long the application took."""
    began_ns = monotonic_ns()
    part = call.step()
    took_ns = monotonic_ns() - began_ns
    self.busy_ns += took_ns
    call.busy_ns += took_ns
    return part


def finish(_self: Any) -> int:
    """RequestResponseCycle._finish: the next deadline needs the time."""
    return monotonic_ns()


def end(self: Any, call: Any) -> None:
    """AsgiApp.end: a worker has to know who is being served."""
    del self.requests[call]


def ignore(*_: Any) -> None:
    """Write nothing."""


def patch() -> None:
    """Before anything is served."""
    replaced = [
        (WsgiApp, "run", run),
        (RequestResponseCycle, "_finish", finish),
        (AsgiApp, "begin", ignore),
        (AsgiApp, "end", end),
        (Heartbeat, "_flush", ignore),
        (reactor.Reactor, "_flush", ignore),
        *((engine, "note_wait", ignore) for engine in (aio, reactor)),
    ]
    for owner, name, substitute in replaced:
        getattr(owner, name)  # or it is called something else by now
        setattr(owner, name, substitute)


if __name__ == "__main__":
    patch()
    main()
