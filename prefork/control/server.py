"""MASTER. The control socket, served from the master's own loop.

The master polls one descriptor, `fd`: an epoll of the socket and its clients. Its loop calls `read_requests` when it
reads its input and `maintain` when it has acted, so that commands take effect and are answered at once.
No call blocks; protocol.py has the protocol and the deadlines.

Who is allowed: the user the master runs as, and root. File modes keep others out of the default place; for a socket
elsewhere, the user of the peer is checked (SO_PEERCRED).
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from functools import partial

from prefork.control.path import AUTO, NONE, candidates, is_alive, new_path
from prefork.control.protocol import CommandSteps, Conversation, Peer, Request
from prefork.core.address import Address
from prefork.core.listener import Listener, open_listener
from prefork.core.log import Log
from prefork.errors import ACCEPT_IGNORED, ACCEPT_PAUSE, ACCEPT_PAUSE_S, BindError

CLIENTS_MOST = 32
_CREDENTIALS = struct.Struct("=3i")  # struct ucred: pid, uid, gid
_NEVER = float("inf")


class Control:
    """MASTER. `fd` is readable when `read_requests` has something to do; it exists without a socket, too."""

    def __init__(self, execute: Callable[[Request, Peer], CommandSteps], log: Log) -> None:
        self._execute = execute
        self._log = log
        self._allowed = frozenset({0, os.geteuid()})
        self._listener: Listener | None = None
        self._clients: dict[int, Conversation] = {}  # by descriptor
        self._interests: dict[int, int] = {}  # what epoll has been told, by descriptor
        self._resume_s = _NEVER  # accepting pauses until then
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()

    @property
    def path(self) -> str | None:
        """Where the socket is, if there is one."""
        return self._listener.address.removeprefix("unix:") if self._listener else None

    def open(self, place: str, environ: Mapping[str, str] = os.environ) -> None:
        """Make the socket at `place`: auto, none or a path. Where that fails, one line in the log says why."""
        if place == NONE:
            return
        say = self._log.info if place == AUTO else self._log.warning  # the default is not worth a warning
        try:
            path = _default_path(environ) if place == AUTO else os.path.abspath(place)
            address = Address.of_path(path)
        except (OSError, ValueError) as error:
            say("no control socket", reason=error)
            return
        before = os.umask(0o177)
        try:
            self._listener = open_listener(address, backlog=CLIENTS_MOST)
        except BindError as error:
            say("no control socket", reason=error)
            return
        finally:
            os.umask(before)
        self._listener.sock.setblocking(False)
        self._watch(self._listener.sock.fileno(), select.EPOLLIN)
        self._log.debug("control socket", path=path)

    # --- each turn of the master's loop

    def read_requests(self, now_s: float) -> None:
        """Accept clients, read their requests, and start their commands."""
        for fd, events in self._epoll.poll(0):
            if client := self._clients.get(fd):
                if events & select.EPOLLIN:
                    self._guarded(client, partial(client.receive, self._execute), now_s)
                elif events & (select.EPOLLHUP | select.EPOLLERR):
                    client.over = True
            elif self._listener is not None:
                self._accept_all(self._listener, now_s)

    def maintain(self, now_s: float) -> float:
        """Send progress and answers, keep deadlines; return the next one (monotonic seconds)."""
        if self._listener is not None and now_s >= self._resume_s:
            self._resume_s = _NEVER
            self._watch(self._listener.sock.fileno(), select.EPOLLIN)
        for fd, client in list(self._clients.items()):
            if not client.over:
                self._guarded(client, client.step, now_s)
            if client.over:
                self._remove(fd)
            else:
                self._watch(fd, client.interest)
        return min([self._resume_s, *(client.wake_s for client in self._clients.values())])

    def _guarded(self, client: Conversation, act: Callable[[float], None], now_s: float) -> None:
        try:
            act(now_s)
        except Exception as error:  # noqa: BLE001 - the control border: a fault of ours here must not end the service
            self._log.error("control command failed", exc=error)
            client.refuse("the command failed; the server's log says why", now_s)

    def _accept_all(self, listener: Listener, now_s: float) -> None:
        """Accept all clients that wait, at most CLIENTS_MOST in a turn."""
        for _ in range(CLIENTS_MOST):
            try:
                sock, _address = listener.sock.accept()
            except OSError as error:
                if error.errno in ACCEPT_PAUSE:  # no descriptor left: the client waits in the queue
                    self._resume_s = now_s + ACCEPT_PAUSE_S
                    self._watch(listener.sock.fileno(), 0)
                elif error.errno not in ACCEPT_IGNORED:
                    raise
                return
            self._add(sock, now_s)

    def _add(self, sock: socket.socket, now_s: float) -> None:
        size = _CREDENTIALS.size
        pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        client = Conversation(sock, Peer(pid, uid), now_s)
        self._clients[sock.fileno()] = client
        self._watch(sock.fileno(), select.EPOLLIN)
        if uid not in self._allowed:
            allowed = " and ".join(f"uid {each}" for each in sorted(self._allowed, reverse=True))
            client.refuse(f"this server is controlled by {allowed}; you are uid {uid}", now_s)
        elif len(self._clients) > CLIENTS_MOST:
            client.refuse(f"{CLIENTS_MOST} control clients are connected already; try again", now_s)

    def _watch(self, fd: int, interest: int) -> None:
        if self._interests.get(fd) != interest:
            (self._epoll.modify if fd in self._interests else self._epoll.register)(fd, interest)
            self._interests[fd] = interest

    def _remove(self, fd: int) -> None:
        # A child that was forked a moment ago may hold a copy, and then close() alone would not end the watch.
        self._epoll.unregister(fd)
        del self._interests[fd]
        self._clients.pop(fd).close()

    # --- the end

    def stop_accepting(self) -> None:
        """Remove the socket and accept no new clients: from now on another master answers."""
        if self._listener is not None:
            self._epoll.unregister(self._listener.sock)
            del self._interests[self._listener.sock.fileno()]
            self._listener.unlink()
            self._listener.close()
            self._listener = None
        self._resume_s = _NEVER

    def close(self, now_s: float) -> None:
        """Answer those that wait for the end of the server, close every connection, and remove the socket."""
        self.stop_accepting()
        self.maintain(now_s)
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._epoll.close()

    def close_in_child(self) -> None:
        """CHILD: close the copies of the master's descriptors."""
        self._epoll.close()
        if self._listener is not None:
            self._listener.close()
        for client in self._clients.values():
            client.sock.close()


def _default_path(environ: Mapping[str, str]) -> str:
    """The default path of this server's socket. Sockets that killed servers left there are removed."""
    path = new_path(environ, os.geteuid(), os.getpid())
    for other in candidates(environ, os.geteuid()):
        is_alive(other)
    return path
