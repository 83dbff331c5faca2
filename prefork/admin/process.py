"""ADMIN. The process of --admin: it answers over HTTP how the server is, while workers and master are busy.

The master forks it. It reads the state that the master writes (status/snapshot.py), the scoreboard, and the queues of
the listeners: shared memory and the kernel, so it never asks or waits for another process. One thread, one loop, few
clients, each with a deadline. When there are too many, the oldest one is closed, so that a health probe is answered
beside any number of idle connections.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import setproctitle

from prefork.admin.http import AdminClient, Answers
from prefork.core.listener import Listener
from prefork.core.log import Log
from prefork.core.privileges import Identity
from prefork.core.process import ORPHANED, die_with_parent
from prefork.core.signals import NOT_OURS, SignalInbox, ignore
from prefork.errors import ACCEPT_IGNORED, ACCEPT_PAUSE, ACCEPT_PAUSE_S

CLIENTS_MOST = 64
LEAVE = signal.SIGUSR2  # the master's order to stop; not TERM, which a service manager sends to every process
LEAVE_S = 1.0  # for the clients that it has, once it was told to stop
NO_IDENTITY = 3  # exit code
_NEVER = float("inf")


@dataclass(slots=True, kw_only=True)
class Admin:
    """ADMIN. What it was given before the fork, and its clients."""

    listener: Listener
    answers: Answers
    log: Log
    lifeline: int  # read end of the pipe whose EOF is the master's death
    master: int  # pid
    libc: ctypes.CDLL  # loaded before the fork: dlopen takes locks
    identity: Identity | None
    drop: Callable[[], None]  # closes what only the master may hold
    _clients: dict[int, AdminClient] = field(default_factory=dict)  # by descriptor, the oldest first
    _sock: socket.socket = field(init=False)  # listens
    _epoll: select.epoll = field(init=False)
    _resume_s: float = _NEVER  # accepting pauses until then
    _leave_s: float = _NEVER  # when to exit

    def run(self) -> int:
        """Answer until told to leave. Returns the exit code."""
        self._sock = self.listener.copy()  # the master's own is dropped, as in every child
        self.drop()
        self.log.identify(admin=os.getpid())
        try:
            if self.identity is not None:
                self.identity.assume()
        except OSError as error:
            self.log.error("admin cannot change its user", uid=self.identity and self.identity.uid, reason=error)
            return NO_IDENTITY
        if not die_with_parent(self.master, self.libc):
            return ORPHANED
        for signum in (*NOT_OURS, signal.SIGTERM):  # the master stops us: we answer until it has ended
            ignore(signum)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        inbox = SignalInbox([LEAVE, signal.SIGUSR1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        setproctitle.setproctitle("prefork: admin")
        self._sock.setblocking(False)
        self._epoll = select.epoll()
        for fd in (inbox.fd, self.lifeline, self._sock.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        return self._serve(inbox)

    def _serve(self, inbox: SignalInbox) -> int:
        while self._clients or self._leave_s == _NEVER:
            now_s = time.monotonic()
            for fd, _events in self._epoll.poll(max(0.0, self._wake_s(now_s) - now_s)):
                if fd == self.lifeline:
                    return ORPHANED
                if client := self._clients.get(fd):
                    self._handle(client)
                elif fd == self._sock.fileno() and self._leave_s == _NEVER:
                    self._accept_all()
            signals = inbox.take()
            if signal.SIGUSR1 in signals:
                self.log.reopen()
            if LEAVE in signals and self._leave_s == _NEVER:
                self._stop_accepting()
        return 0

    def _wake_s(self, now_s: float) -> float:
        """Keep deadlines; return the next one (monotonic seconds)."""
        for fd, client in list(self._clients.items()):
            if now_s >= min(client.until_s, self._leave_s):
                self._close(fd)
        if now_s >= self._resume_s and self._leave_s == _NEVER:
            self._resume_s = _NEVER
            self._epoll.modify(self._sock, select.EPOLLIN)
        deadlines = (client.until_s for client in self._clients.values())
        return min([self.answers.tick(now_s), self._resume_s, self._leave_s, *deadlines])

    def _accept_all(self) -> None:
        """Accept all clients that wait, at most CLIENTS_MOST in a turn."""
        for _ in range(CLIENTS_MOST):
            try:
                sock, _address = self._sock.accept()
            except OSError as error:
                if error.errno in ACCEPT_PAUSE:
                    self._resume_s = time.monotonic() + ACCEPT_PAUSE_S
                    self._epoll.modify(self._sock, 0)
                elif error.errno not in ACCEPT_IGNORED:
                    raise
                return
            if len(self._clients) >= CLIENTS_MOST:
                self._close(next(iter(self._clients)))
            client = AdminClient(sock, time.monotonic())
            self._clients[sock.fileno()] = client
            self._epoll.register(sock, client.interest)
            self._handle(client)  # most have sent their request already

    def _handle(self, client: AdminClient) -> None:
        fd, before = client.sock.fileno(), client.interest
        try:
            client.on_ready(self.answers, time.monotonic())
        except Exception as error:  # noqa: BLE001 - the admin's border: a fault of ours costs one answer
            self.log.error("admin cannot answer", exc=error)
            client.fail(time.monotonic())
        if client.over:
            self._close(fd)
        elif client.interest != before:
            self._epoll.modify(fd, client.interest)

    def _close(self, fd: int) -> None:
        self._clients.pop(fd).close()  # epoll drops it, too: no other process has the descriptor

    def _stop_accepting(self) -> None:
        """Accept no more clients; those that were accepted get their answer, as their request may be on its way."""
        self._leave_s = time.monotonic() + LEAVE_S
        self._epoll.unregister(self._sock)
