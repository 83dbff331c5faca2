"""WORKER. The asyncio engine: one loop (uvloop, or asyncio's own) that holds all connections of the worker.

What is done with a connection is a service, by the kind of the app: coroutine handlers (streams.py), protocols
(protocols.py), ASGI (asgi.py). Here is what they have in common: how connections come in (door.py), how the worker
retires, and what the master hears of it (pulse.py).

To retire: take no more, tell the clients as far as their protocol can, wait for at most the graceful timeout, cut who
is left, and have the application shut down.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from prefork.engines.accept import Balance
from prefork.engines.aio.accept import CarefulDoor, Door, QuickDoor
from prefork.engines.aio.connections import Crowd, nothing
from prefork.engines.aio.heartbeat import Pulse
from prefork.engines.aio.service import Premises, Service
from prefork.engines.aio.tasks import tasks_of
from prefork.engines.error_log import Complaints
from prefork.engines.peer import note_wait, peer_of
from prefork.errors import BootError

if TYPE_CHECKING:
    from prefork.core.listener import Listener
    from prefork.engines.asgi.app import AsgiPeer
    from prefork.engines.asgi.service import AsgiService
    from prefork.engines.context import Station


# --- A connection that was accepted here becomes a transport of the loop.


class Adoption:
    """WORKER. Drives `loop.connect_accepted_socket` without a task (measured: 4 of 41 us a connection)."""

    __slots__ = ("_coroutine", "_failed")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], failed: Callable[[BaseException], None]) -> None:
        self._coroutine = coroutine
        self._failed = failed
        self._step()

    def _step(self, _waited_for: Any = None) -> None:
        try:
            future: asyncio.Future[Any] = self._coroutine.send(None)
        except StopIteration:
            return
        except (OSError, RuntimeError, asyncio.CancelledError) as error:
            self._failed(error)  # it left meanwhile (to uvloop a RuntimeError), or cannot speak TLS
            return
        future._asyncio_future_blocking = False  # what a task does with a future that it is given to wait for
        future.add_done_callback(self._step)


_SERVICES = {
    "streams": ("prefork.engines.aio.streams", "StreamsService"),
    "protocol": ("prefork.engines.aio.protocols", "ProtocolService"),
    "asgi": ("prefork.engines.asgi.service", "AsgiService"),
}
_AGAIN_S = 0.1  # between looks at what does not end by an event
_CUT_S = 0.5  # how long who is cut may take to clean up; the least for the application's shutdown
# Past the graceful timeout the worker leaves by itself, whatever the application does; the master kills it after 1 s.
_LAST_S = 0.8
_LEAST_S = 0.1  # for each step of the end, however late it is


class AioEngine:
    """WORKER. Serves kinds `streams`, `protocol` and `asgi`."""

    name = "aio"

    def __init__(self, station: Station) -> None:
        config, kind = station.config, station.app.kind
        self._station = station
        self._life = station.life
        self._log = station.log
        self._kind = kind
        self._proxied = config.proxy_protocol
        self._tls = station.terms.tls
        if self._proxied and kind != "asgi":
            raise BootError(f"--proxy-protocol is for HTTP, but {config.app!r} is a {kind} handler; leave it out")
        self._loop = _new_loop(config.loop)
        asyncio.set_event_loop(self._loop)
        self._complaints = Complaints(station.log)
        self._loop.set_exception_handler(self._astray)
        balance = Balance(station.board, station.group, station.nudge)
        self._pulse = Pulse(station, self._loop, balance)
        self._crowd = Crowd(station, balance, self._pulse)
        self._service = self._serve(station)
        self._ssl: dict[str, Any] = {}
        if self._tls is not None:
            self._ssl = {"ssl": self._tls.context, "ssl_handshake_timeout": config.header_timeout_s}
        self._protocol = self._service.protocol
        self._door = self._build(station, balance)
        self._drains = all(listener.owned for listener in station.listeners)  # the accept queue is ours alone
        self._told = asyncio.Event()

    def run(self) -> None:
        """Serve until told to retire, finish what is in flight, return. Raises BootError if it cannot begin."""
        self._loop.run_until_complete(self._run())

    async def _run(self) -> None:
        self._life.listen()
        own: set[Any] = set()  # tasks that are of no interest to anybody else
        self._life.tasks = lambda: tasks_of(self._loop, self._service.names(), without=own)
        for fd in self._life.fds:
            self._loop.add_reader(fd, self._heed, fd)
        starting = self._loop.create_task(self._service.begin())
        told = self._loop.create_task(self._told.wait())
        own |= {asyncio.current_task(), told}
        await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return  # told to stop while the application started up
        await starting
        self._life.ready(self._kind, self.name)  # before the first connection, which may end the process
        self._pulse.beats.append(self._look)
        self._pulse.start()
        self._door.open()
        self._crowd.changed = self._door.heed
        self._crowd.announce()
        await told
        until_s = time.monotonic() + self._station.config.graceful_timeout_s
        await self._retire(until_s)
        left_s = until_s - time.monotonic()
        await self._service.end(max(left_s, min(_CUT_S, left_s + _LAST_S - _LEAST_S), _LEAST_S))
        await self._dismiss(until_s + _LAST_S)
        self._pulse.stop()

    def _serve(self, station: Station) -> Service:
        module, name = _SERVICES[self._kind]
        make = getattr(importlib.import_module(module), name)
        return cast(
            "Service",
            make(
                Premises(
                    station=station,
                    loop=self._loop,
                    crowd=self._crowd,
                    pulse=self._pulse,
                    complaints=self._complaints,
                )
            ),
        )

    def _build(self, station: Station, balance: Balance) -> Door:
        """The way in."""
        config, crowd, complaints = station.config, self._crowd, self._complaints
        careful = CarefulDoor(
            station, self._loop, crowd=crowd, balance=balance, complaints=complaints, admit=self._admit
        )
        if config.accept != "per-worker" or config.loop != "uvloop" or self._proxied or self._tls:
            return careful
        return QuickDoor(
            station,
            self._loop,
            crowd=crowd,
            careful=careful,
            factory=self._factory,
        )

    # --- connections

    def _factory(self, listener: Listener) -> Callable[[], asyncio.BaseProtocol]:
        """What the loop calls when it has taken a connection by itself."""
        crowd, protocol = self._crowd, self._protocol

        def invite() -> asyncio.BaseProtocol:
            crowd.arriving += 1
            return protocol(listener)

        return invite

    def _admit(self, fd: int, sockaddr: Any, listener: Listener) -> None:
        """A connection was taken."""
        sock = socket.socket(listener.sock.family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        queue_ms = note_wait(sock, listener.sock.family, self._station.rows[0].cells)
        self._crowd.arriving += 1
        self._crowd.announce()
        if self._kind != "asgi":
            self._adopt(sock, partial(self._protocol, listener, sockaddr))
            return
        peer = cast("AsgiService", self._service).site.peer(listener, sockaddr)
        peer.queue_ms = queue_ms
        if self._proxied or self._tls:
            self._guard(sock, peer, listener)
        else:
            self._let_in(sock, listener, peer)

    def _guard(self, sock: socket.socket, peer: AsgiPeer, listener: Listener) -> None:
        """Let it in when it has said what comes before HTTP."""
        gate = importlib.import_module("prefork.engines.asgi.phases").Gate
        site = cast("AsgiService", self._service).site
        if self._proxied and not peer.trusted:
            site.complain(PermissionError("it may not send a PROXY header; see --trusted-proxies"), peer)
            self._crowd.lose()
            sock.close()
            return
        gate(site, sock, peer, listener, proxied=self._proxied, adopt=self._let_in)

    def _let_in(self, sock: socket.socket, listener: Listener, peer: AsgiPeer) -> None:
        service = cast("AsgiService", self._service)
        self._adopt(sock, partial(service.protocol, listener, peer))

    def _adopt(self, sock: socket.socket, factory: Any) -> None:
        Adoption(self._loop.connect_accepted_socket(factory, sock, **self._ssl), self._stray)

    def _stray(self, error: BaseException) -> None:
        """A connection has failed before anybody served it."""
        self._crowd.lose()
        self._complaints.note("connection failed", ours=False, error=str(error) or type(error).__name__)

    def _astray(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody awaits has failed, in the application or in a library of its."""
        error, transport = context.get("exception"), context.get("transport")
        if error is not None and transport is not None:  # in a protocol: the loop has closed its connection
            self._complaints.add(error, peer_of(transport))
        elif not isinstance(error, ConnectionError) or isinstance(context.get("future"), asyncio.Task):
            self._complaints.note("callback failed", exc=error, message=context.get("message"))

    # --- the end

    def _heed(self, fd: int) -> None:
        self._life.attend(fd)
        self._look()

    def _look(self) -> None:
        """With each beat as well: signals do not wake us if the application has had the loop handle any."""
        self._life.heed()
        if self._life.retiring:
            self._told.set()

    async def _retire(self, until_s: float) -> None:
        """Take no more; let everyone have an end until the graceful timeout is over."""
        crowd, service = self._crowd, self._service
        crowd.able = False
        crowd.changed = nothing
        self._door.shut()
        crowd.announce()
        service.retire(stopping=self._life.stopping)
        if self._drains and self._life.stopping:
            while not self._door.drain() and time.monotonic() < until_s:
                await asyncio.sleep(_AGAIN_S)
        gone = await crowd.gone(max(0.0, until_s - time.monotonic()))
        while gone and service.busy and time.monotonic() < until_s:
            await asyncio.sleep(_AGAIN_S)  # what applications still do after their responses
        if not gone or service.busy:
            cut = max(crowd.held(), service.busy)
            self._log.warning("connections cut", count=cut, after=f"{self._station.config.graceful_timeout_s:g}s")
            service.cut()
            crowd.cut()
            await crowd.gone(_CUT_S)

    async def _dismiss(self, until_s: float) -> None:
        """Cancel what the application has left running, as asyncio.run() does, so that its `finally` clauses run."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=max(_LEAST_S, min(_CUT_S, until_s - time.monotonic())))


def _new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return loop


ENGINE = AioEngine
