"""TEMPLATE. The process that imports the app once, with --preload, and forks workers from there on the master's order.

Memory is shared by copy on write, and a worker starts in milliseconds however long the app takes to import. A worker
is forked twice: the process in between exits at once, so that the worker becomes the child of the master, which is a
subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), and is reaped and judged like any other. gc.freeze() keeps the collector
from writing to the pages that are shared.

One order, one answer, over a SOCK_SEQPACKET pair: {slot, generation, group}, the worker's ends of its
pipes (SCM_RIGHTS) in, {pid} or {errno} out. The template dies with the master, or when the master closes its end.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import waitpid  # bound now: gevent replaces it by one that needs its own loop
from select import POLLIN, poll
from time import monotonic_ns
from typing import Any

import setproctitle

from prefork.core.address import format_sockaddr
from prefork.core.process import ORPHANED, die_with_parent, prefer_as_victim, spawn
from prefork.core.signals import NOT_OURS, SignalInbox, ignore
from prefork.errors import AppLoadError
from prefork.runtime.forks import OURS
from prefork.runtime.loader import App
from prefork.runtime.master_link import Kind, Sender
from prefork.status.scoreboard import heartbeat_s
from prefork.worker.exit import end_processes, forget_callers, forget_processes
from prefork.worker.process import APP_FAILED, Worker, load_app

ORDER_MOST = 4096  # bytes of an order or an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """TEMPLATE. `prototype` is a worker whose place is not known yet."""

    generation: int
    prototype: Worker
    orders: socket.socket
    report: int  # write end of the pipe to the master
    beat: memoryview  # one cell of memory that it shares with the master: when it last waited for orders (ns)
    close_in_child: Callable[[], None]  # closes what only the master may hold

    def run(self) -> int:
        """Import the app, then fork workers until the master is gone. Returns the exit code."""
        self.close_in_child()
        prefer_as_victim(self.prototype.master)
        if not self.prototype.inherited.assume_identity(Sender(self.report)):
            return APP_FAILED
        if not die_with_parent(self.prototype.master):
            return ORPHANED
        for signum in (*NOT_OURS, signal.SIGTERM):
            ignore(signum)  # its end is the master's business
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        inbox = SignalInbox([signal.SIGUSR1])
        forget_callers()
        forget_processes()
        prototype = self.prototype
        OURS.begin(f"template gen={self.generation}", prototype.log, prototype.listeners)
        OURS.own(*self._mine(), *inbox.fds, prototype.wake_fd)
        OURS.own_memory(prototype.board.memory)
        OURS.own_handlers((*NOT_OURS, signal.SIGTERM, signal.SIGUSR1))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        prototype.log.identify(template=self.generation, pid=os.getpid())
        setproctitle.setproctitle(f"prefork: template gen={self.generation}")
        sender = Sender(self.report)
        try:
            app = load_app(self.prototype.config, self.prototype.inherited, self.prototype.log)
            self.prototype.inherited.hooks.template_loaded()
        except AppLoadError as error:
            sender.send(Kind.FAILED, code=APP_FAILED, message=str(error), detail=error.detail[-32_000:])
            return APP_FAILED
        for warning in unsafe(self._mine()):
            self.prototype.log.warning("forking is unsafe", reason=warning)
        gc.collect()
        gc.freeze()
        sender.send(Kind.PREPARED, generation=self.generation)
        return self._serve(app, inbox)

    def _mine(self) -> set[int]:
        """Descriptors that are prefork's own."""
        return {
            self.orders.fileno(),
            self.report,
            self.prototype.lifeline,
            *self.prototype.transfer.fds,
            *(listener.sock.fileno() for listener in self.prototype.listeners),
        }

    def _serve(self, app: App, inbox: SignalInbox) -> int:
        told = poll()
        for fd in (inbox.fd, self.orders.fileno(), self.prototype.lifeline):
            told.register(fd, POLLIN)
        period_ms = heartbeat_s(self.prototype.config.timeout_s) * 1000
        while True:
            self.beat[0] = monotonic_ns()
            ready = {fd for fd, _events in told.poll(period_ms)}
            if self.prototype.lifeline in ready:
                return ORPHANED
            if signal.SIGUSR1 in inbox.take():
                self.prototype.log.reopen()
            if self.orders.fileno() not in ready:
                continue
            try:
                data, fds, _flags, _address = socket.recv_fds(self.orders, ORDER_MOST, 2)
                if not data:
                    end_processes()
                    return 0  # the master closed its end
                order = json.loads(data)
                answer = self._fork(order, *fds, app=app, inbox=inbox)
                for fd in fds:
                    os.close(fd)
                self.orders.send(json.dumps(answer).encode())
            except ConnectionError:  # ECONNRESET, EPIPE: the master died before it had read our last answer
                return ORPHANED

    def _fork(
        self, order: dict[str, Any], report: int, orders_fd: int, *, app: App, inbox: SignalInbox
    ) -> dict[str, int]:
        answer, answer_end = os.pipe2(os.O_CLOEXEC)

        def close_in_child() -> None:
            inbox.close()
            self.orders.close()
            for fd in (self.report, answer, answer_end):
                os.close(fd)
            gc.enable()

        worker = replace(self.prototype, **order, report=report, orders_fd=orders_fd, app=app)
        worker = replace(worker, close_in_child=close_in_child)

        def between() -> int:
            try:
                pid = spawn(worker.run)
            except OSError as error:
                os.write(answer_end, json.dumps({"errno": error.errno}).encode())
                return 1
            os.write(answer_end, json.dumps({"pid": pid}).encode())
            return 0

        try:
            pid = spawn(between)
        except OSError as error:
            os.close(answer)
            return {"errno": error.errno or 0}
        finally:
            os.close(answer_end)
        waitpid(pid, 0)  # it lives for one fork
        text = os.read(answer, ORDER_MOST)
        os.close(answer)
        return dict(json.loads(text)) if text else {"errno": 11}  # killed in between: EAGAIN, try again


def unsafe(mine: set[int]) -> list[str]:
    """What of the app does not survive a fork: threads, which exist in one process only, and connections, which all
    workers would share."""
    main = threading.main_thread().name  # eventlet makes another object for it
    threads = [thread.name for thread in threading.enumerate() if thread.name != main]
    found = [f"thread {name!r} runs: workers will not have it" for name in threads]
    native = len(os.listdir("/proc/self/task")) - 1 - len(threads)
    if native > 0:
        found.append(f"{native} threads of C libraries run: workers will not have them")
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd not in mine and fd > 2 and (peer := _connected(fd)):
            found.append(f"a connection to {peer} is open: all workers would share it")
    return found


def _connected(fd: int) -> str | None:
    """Who the descriptor is connected to, if it is a connected socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        with socket.socket(fileno=os.dup(fd)) as sock:
            return format_sockaddr(sock.family, sock.getpeername()) or "a peer"
    except OSError:
        return None  # closed meanwhile, or not connected
