"""WORKER. The asyncio engine: one loop (uvloop, or asyncio's own) that holds all connections of the worker.

A service does what is to be done with a connection, by the kind of the app: streams.py (coroutine handlers),
protocols.py (asyncio.Protocol classes), or engines/asgi. Here is what they have in common: how connections come in
(accept.py), how the worker retires, and what the master hears of it (heartbeat.py).

To retire: stop accepting, tell the clients as far as their protocol allows, wait for at most the graceful timeout,
close the connections that are left, and let the application shut down.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import importlib
import socket
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from prefork.core.listener import Listener
from prefork.engines import service_of
from prefork.engines.accept import AcceptBalance
from prefork.engines.aio.accept import Acceptor, LoopAcceptor, UvloopAcceptor
from prefork.engines.aio.connections import ConnectionSet, ignore
from prefork.engines.aio.heartbeat import Heartbeat
from prefork.engines.aio.service import AcceptedSocket, LoopContext, Service
from prefork.engines.aio.tasks import tasks_of
from prefork.engines.aio.waiting import LoopTimers
from prefork.engines.context import WorkerContext
from prefork.engines.error_log import RateLimitedLog
from prefork.engines.handover import AGAIN_S
from prefork.engines.peer import note_wait, peer_of
from prefork.errors import BootError
from prefork.runtime.forks import OURS, open_descriptors

_LOOK_S = 0.1  # between looks at what does not end by an event
_CUT_S = 0.5  # how long cancelled calls may take to clean up; the least for the application's shutdown
# Past the graceful timeout the worker leaves by itself, whatever the application does; the master kills it after 1 s.
_LAST_S = 0.8
_LEAST_S = 0.1  # for each step of the end, however late it is


class AioEngine:
    """WORKER. Serves kinds `streams`, `protocol` and `asgi`."""

    name = "aio"

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._link = worker.link
        before = open_descriptors()
        self._loop = _new_loop(worker.config.loop)
        OURS.own_loop(before)
        asyncio.set_event_loop(self._loop)
        self._errors = RateLimitedLog(worker.log)
        self._loop.set_exception_handler(self._on_unhandled)
        may_exceed = worker.app.kind == "asgi" and not worker.inherited.tls
        balance = AcceptBalance(worker.board, worker.orders, worker.group, worker.wake_fd, may_exceed=may_exceed)
        self._heartbeat = Heartbeat(worker, self._loop, balance)
        self._connections = ConnectionSet(worker, balance, self._heartbeat)
        self._service = self._new_service()
        self._acceptor = self._new_acceptor(balance)
        self._drains = all(listener.owned for listener in worker.listeners)  # the accept queue is ours alone
        self._retiring = asyncio.Event()

    def run(self) -> None:
        """Serve until told to retire, finish what is in flight, return. Raises BootError if it cannot begin."""
        serving = self._own_task(self._run(open_descriptors()))
        while not serving.done():
            try:
                self._loop.run_until_complete(serving)
            except (RuntimeError, SystemExit) as error:
                if OURS.forked:
                    OURS.end(error)
                if serving.done() or isinstance(error, SystemExit):
                    raise
                self._worker.log.warning("the application has stopped the event loop; it goes on")

    def _own_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of the engine, which asyncio.all_tasks() does not show: some applications cancel all."""
        task = self._loop.create_task(coroutine)
        asyncio.tasks._unregister_task(task)  # documented for those who extend asyncio
        return task

    async def _run(self, before: set[int]) -> None:
        OURS.own_loop(before)  # once more, as uvloop opens some descriptors when it begins to run
        OURS.on_fork.append(self._forked)
        self._thread = threading.get_ident()
        self._link.listen()
        self._link.tasks = lambda: tasks_of(self._loop, self._service.names())
        for fd in self._link.fds:
            self._loop.add_reader(fd, self._on_master, fd)
        starting = self._loop.create_task(self._service.begin())
        retiring = self._own_task(self._retiring.wait())
        await asyncio.wait((starting, retiring), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return  # told to stop while the application started up
        await starting
        self._heartbeat.on_beat += [self._check_orders, self._connections.publish]
        self._heartbeat.start()
        self._link.ready(self._worker.app.kind, self.name)  # before the first connection, which may end the process
        self._acceptor.open()
        self._connections.publish()
        await retiring
        until_s = self._link.leave_by_s
        await self._retire(until_s)
        self._heartbeat.stop()
        self._worker.end()
        left_s = until_s - time.monotonic()
        await self._service.end(max(left_s, min(_CUT_S, left_s + _LAST_S - _LEAST_S), _LEAST_S))
        await self._cancel_tasks(until_s + _LAST_S)

    def _new_service(self) -> Service:
        worker = self._worker
        config, app, tls = worker.config, worker.app, worker.inherited.tls
        if tls:
            tls.on_failure(AcceptedSocket.tell)
        context = LoopContext(
            worker=worker,
            loop=self._loop,
            connections=self._connections,
            heartbeat=self._heartbeat,
            timers=LoopTimers(self._loop),
            errors=self._errors,
            ssl={"ssl": tls.context, "ssl_handshake_timeout": config.header_timeout_s} if tls else {},
        )
        service: Service = service_of(app.kind)(context)
        if config.proxy_protocol and not service.takes_proxy_header:
            raise BootError(f"--proxy-protocol is for HTTP, but {config.app!r} is a {app.kind} handler; leave it out")
        return service

    def _new_acceptor(self, balance: AcceptBalance) -> Acceptor:
        worker, config = self._worker, self._worker.config
        own = LoopAcceptor(
            worker,
            self._loop,
            connections=self._connections,
            balance=balance,
            errors=self._errors,
            admit=self._admit,
        )
        self._heartbeat.on_sleep.append(own.end_turn)
        # A PROXY header, and the first byte of TLS, are read from the socket before it becomes a transport.
        if config.accept != "per-worker" or config.loop != "uvloop" or config.proxy_protocol or worker.inherited.tls:
            return own
        acceptor = UvloopAcceptor(
            worker, self._loop, connections=self._connections, own=own, protocol=self._service.protocol
        )
        self._connections.on_change = acceptor.on_change
        return acceptor

    def _admit(self, fd: int, sockaddr: Any, listener: Listener) -> None:
        family = listener.sock.family
        sock = socket.socket(family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        queue_ms = note_wait(sock, family, self._worker.rows[0].cells)
        self._connections.arrive()
        self._service.accept(sock, listener, sockaddr, queue_ms)

    def _on_unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an uncaught exception, in the application or in a library that it uses."""
        error, transport = context.get("exception"), context.get("transport")
        if OURS.forked:
            OURS.end(error)
        if error is not None and transport is not None:  # in a protocol: the loop has closed its connection
            self._errors.add(error, peer_of(transport))
        elif not isinstance(error, ConnectionError) or isinstance(context.get("future"), asyncio.Task):
            self._errors.note("callback failed", exc=error, message=context.get("message"))

    def _forked(self) -> None:
        """In a child of the application: end it, once it comes back to the loop, if it is this thread that goes on."""
        if threading.get_ident() == self._thread:
            self._loop.call_soon(OURS.end)

    # --- the end

    def _on_master(self, fd: int) -> None:
        self._link.on_readable(fd)
        self._check_orders()
        self._heartbeat.check()

    def _check_orders(self) -> None:
        """Also with each heartbeat: an application may have taken our descriptors out of the loop, or the signals."""
        self._link.look()
        if self._link.retiring:
            self._retiring.set()

    async def _retire(self, until_s: float) -> None:
        """Stop accepting; let every connection end by itself until the graceful timeout is over."""
        connections, service = self._connections, self._service
        connections.accepting = False
        connections.on_change = ignore
        self._acceptor.close()
        connections.publish()
        service.retire(stopping=self._link.stopping)
        if self._drains and self._link.stopping:
            while not self._acceptor.drain() and time.monotonic() < until_s:
                await asyncio.sleep(_LOOK_S)
        handover = connections.handover
        while await connections.wait_empty(max(0.0, until_s - time.monotonic())) and time.monotonic() < until_s:
            if service.busy:
                await asyncio.sleep(_LOOK_S)  # what applications still do after their responses
            elif handover and not handover.done:
                await asyncio.sleep(AGAIN_S)  # it may come back
            else:
                return
        if count := max(connections.held(), service.busy):
            after = f"{self._worker.config.graceful_timeout_s:g}s"
            self._worker.log.warning("connections cut", count=count, after=after)
            service.cut()
            connections.abort_all()
            await connections.wait_empty(_CUT_S)

    async def _cancel_tasks(self, until_s: float) -> None:
        """Cancel what the application has left running, as asyncio.run() does, so that its `finally` clauses run."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=max(_LEAST_S, min(_CUT_S, until_s - time.monotonic())))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._loop.shutdown_asyncgens(), max(_LEAST_S, until_s - time.monotonic()))


def _new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return loop


ENGINE = AioEngine
