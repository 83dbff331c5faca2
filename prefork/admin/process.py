"""ADMIN. The process of --admin: tells operators and their programs how the server is, while everybody else is busy.

Forked by the master, it reads what that writes (bulletin.py), the scoreboard and the listeners' queues, all shared
memory or a look at a socket: no worker and no master is asked, or waited for. One thread, one loop, few clients, each
with a deadline; where too many come, the one that has been here longest makes room, so that a probe of the service
manager is heard beside any number of clients that say nothing.
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
LEAVE = signal.SIGUSR2  # the master's word to go; not TERM, which a service manager sends to everybody
LEAVE_S = 1.0  # for clients it has, once it was told to go
NO_IDENTITY = 3  # exit code
_NEVER = float("inf")


@dataclass(slots=True, kw_only=True)
class Admin:
    """ADMIN. Everything it was given before the fork, and its clients."""

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
    _leave_s: float = _NEVER  # when to be gone

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
        for signum in (*NOT_OURS, signal.SIGTERM):  # a stop is the master's business: we answer until it has ended
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
                    self._attend(client)
                elif fd == self._sock.fileno() and self._leave_s == _NEVER:
                    self._accept_all()
            came = inbox.take()
            if signal.SIGUSR1 in came:
                self.log.reopen()
            if LEAVE in came and self._leave_s == _NEVER:
                self._leave()
        return 0

    def _wake_s(self, now_s: float) -> float:
        """Do what is due; return when something is, if nothing happens before."""
        for fd, client in list(self._clients.items()):
            if now_s >= min(client.until_s, self._leave_s):
                self._forget(fd)
        if now_s >= self._resume_s and self._leave_s == _NEVER:
            self._resume_s = _NEVER
            self._epoll.modify(self._sock, select.EPOLLIN)
        deadlines = (client.until_s for client in self._clients.values())
        return min([self.answers.tick(now_s), self._resume_s, self._leave_s, *deadlines])

    def _accept_all(self) -> None:
        """Take everybody who waits, but no more than a turn's worth."""
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
                self._forget(next(iter(self._clients)))
            client = AdminClient(sock, time.monotonic())
            self._clients[sock.fileno()] = client
            self._epoll.register(sock, client.interest)
            self._attend(client)  # most have said what they want

    def _attend(self, client: AdminClient) -> None:
        fd, before = client.sock.fileno(), client.interest
        try:
            client.attend(self.answers, time.monotonic())
        except Exception as error:  # noqa: BLE001 - the admin's border: a fault of ours costs one answer
            self.log.error("admin cannot answer", exc=error)
            client.fail(time.monotonic())
        if client.over:
            self._forget(fd)
        elif client.interest != before:
            self._epoll.modify(fd, client.interest)

    def _forget(self, fd: int) -> None:
        self._clients.pop(fd).close()  # which ends the watch, too: nobody else has the descriptor

    def _leave(self) -> None:
        """Accept no more; whoever was accepted is heard out, as what it asks may be on its way."""
        self._leave_s = time.monotonic() + LEAVE_S
        self._epoll.unregister(self._sock)
