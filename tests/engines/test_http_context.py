"""What all HTTP connections of a worker share: the times of the configuration, and when each response is the last."""

from __future__ import annotations

import socket
from select import EPOLLIN
from time import monotonic_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from prefork.config.config import resolve
from prefork.engines.asgi.connection import HttpConnection as AsgiConnection
from prefork.engines.http_context import HttpContext
from prefork.engines.timers import NEVER, Deadlines
from prefork.engines.wsgi.connection import HttpConnection
from tests.support.web import request

if TYPE_CHECKING:
    import asyncio

    from prefork.engines.asgi.app import AsgiApp, AsgiPeer
    from prefork.engines.asgi.request import RequestResponseCycle
    from prefork.engines.wsgi.app import WsgiPeer
    from prefork.engines.wsgi.connection import ConnectionHost

SECOND_NS = 1_000_000_000
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def context(**flags: str) -> HttpContext:
    return HttpContext(resolve("talkback", {name.replace("_", "-"): text for name, text in flags.items()}, {}))


def test_by_default_a_client_has_75_seconds_for_its_next_request_and_10_for_its_first() -> None:
    found = context()
    assert found.idle_ns(served=True) == found.keep_alive_ns == 75_000_000_000
    assert found.idle_ns(served=False) == found.header_ns == 10_000_000_000
    assert not found.draining


def test_each_of_these_times_can_be_given() -> None:
    found = context(keep_alive="1500ms", header_timeout="3")
    assert (found.idle_ns(served=True), found.idle_ns(served=False)) == (1_500_000_000, 3_000_000_000)


def test_without_keep_alive_every_response_is_the_last_whatever_becomes_of_the_worker() -> None:
    found = context(keep_alive="0")
    assert found.draining
    found.drain(last=False)
    assert found.draining


def test_a_worker_that_retires_may_have_nobody_to_give_to_and_then_somebody() -> None:
    found = context()
    found.drain()
    assert found.draining
    found.drain(last=False)
    assert not found.draining


def test_the_time_for_the_next_request_begins_when_the_kernel_has_the_response() -> None:
    """As a connection of the WSGI loop has it, on that loop's clock."""
    answered = SimpleNamespace(done=True, keep_alive=True)
    app = SimpleNamespace(call=lambda *_: answered, run=lambda *_: HELLO)
    host = SimpleNamespace(
        app=app, context=context(), now_ns=SECOND_NS, bytes_in=0, bytes_out=0, row=object(), deadlines=Deadlines()
    )
    peer = SimpleNamespace(served=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        connection = HttpConnection(cast("ConnectionHost", host), ours, cast("WsgiPeer", peer))
        assert connection.deadline_ns == 11 * SECOND_NS
        theirs.sendall(request())
        host.now_ns = 9 * SECOND_NS
        connection.ready(EPOLLIN)
        assert theirs.recv(100) == HELLO
        assert connection.idle
        assert connection.deadline_ns == host.deadlines.next_ns() == (9 + 75) * SECOND_NS


def test_on_an_asyncio_loop_as_well() -> None:
    cycles: dict[RequestResponseCycle, None] = {}
    app = SimpleNamespace(
        heartbeat=SimpleNamespace(awake=True, bytes_in=0),
        context=context(),
        connections=SimpleNamespace(join=lambda _: None),
        timers=Deadlines(),
        requests=cycles,
        most_in_flight=0,
        task=lambda call: call.close(),
        state=None,
        tls=None,
        look_ns=NEVER,
    )
    peer = SimpleNamespace(served=False, trusted=False, app_view=SimpleNamespace(of=lambda *_: {}))
    connection = AsgiConnection(cast("AsgiApp", app), None, cast("AsgiPeer", peer))
    began_ns = monotonic_ns()
    connection.connection_made(cast("asyncio.Transport", SimpleNamespace()))
    assert began_ns <= connection.deadline_ns - 10 * SECOND_NS <= monotonic_ns()
    connection.data_received(request())
    (cycle,) = cycles
    assert connection.deadline_ns == NEVER
    connection.finished(cycle, 9 * SECOND_NS)
    assert connection.deadline_ns == app.timers.next_ns() == (9 + 75) * SECOND_NS
