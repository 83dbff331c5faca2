"""ADMIN. The process of --admin: it answers over HTTP how the server is, while workers and master are busy.

The master forks it. It reads the state that the master writes (status/snapshot.py), the scoreboard, and the queues of
the listeners: shared memory and the kernel, so it never asks or waits for another process. One thread, one loop, few
clients, each with a deadline. When there are too many, the oldest one is closed, so that a health probe is answered
beside any number of idle connections.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import setproctitle

from prefork.core.listener import Listener
from prefork.core.log import Log
from prefork.core.privileges import Identity
from prefork.core.process import ORPHANED, die_with_parent
from prefork.core.signals import NOT_OURS, SignalInbox, ignore
from prefork.engines.linger import LINGER_BYTES, LINGER_S, discard
from prefork.errors import ACCEPT_IGNORED, ACCEPT_PAUSE, ACCEPT_PAUSE_S
from prefork.http.head import Request
from prefork.http.limits import Limits, phrase
from prefork.http.parser import RequestParser
from prefork.http.response import error_response, stamp
from prefork.status import prometheus
from prefork.status.collect import Collector, ServerSnapshot
from prefork.status.server_state import MasterState
from prefork.status.snapshot import SharedSnapshot

# --- The answers: the server's health, its figures, and a page that shows them.
#
# All figures come from one snapshot, taken at most once in FRESH_S, however many clients ask. It is taken again if the
# master has written a new state meanwhile: the rows of a worker that has died may belong to another one by then.

FRESH_S = 0.1
HUNG_S = 10.0  # the master has a heartbeat every second, and waits for nothing as long as this
_TRIES = 20
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, before it is written as HTTP."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    fields: tuple[tuple[str, str], ...] = ()


class Answers:
    """ADMIN. Answers requests from shared memory, and never waits for the master."""

    def __init__(self, *, shared: SharedSnapshot, collector: Collector, page: bytes) -> None:
        self._shared = shared
        self._collector = collector
        self._page = page
        self._names: frozenset[str] | None = None
        self._version = 0  # of `_state`
        self._state: MasterState | None = None
        self._snapshot: ServerSnapshot | None = None
        self._stale_s = 0.0  # when to take another snapshot
        self._texts: dict[str, bytes] = {}  # of the snapshot, by name
        self._paths: dict[bytes, Callable[[], Answer]] = {
            b"/": self._show,
            b"/healthz": self._health,
            b"/readyz": self._readiness,
            b"/metrics": self._metrics,
            b"/status.json": self._status,
        }

    def restrict(self, names: frozenset[str] | None) -> None:
        """Answer only requests for an IP address or for these names; None: for any."""
        self._names = names

    def answer(self, method: str, path: bytes, authority: bytes) -> Answer:
        """The answer to a request. `authority`: host and port that it is for."""
        host = host_of(authority)
        if self._names is not None and not is_own(host, self._names):
            why = f"{host[:100]} is not a name of this server: use an IP address, localhost, or the name of --admin\n"
            return Answer(421, why.encode("latin-1"))
        if method not in ("GET", "HEAD"):
            return Answer(405, b"405 Method Not Allowed\n", fields=(("Allow", "GET, HEAD"),))
        found = self._paths.get(path)
        return found() if found else Answer(404, b"404 Not Found\n")

    def tick(self, now_s: float) -> float:
        """Tell the master that this process lives, and follow the server; return when to call again (monotonic s)."""
        self._shared.reader_ns = time.monotonic_ns()
        return min(now_s + self._collector.beat_s, self._collector.tick(now_s, self._master_state))

    # --- the paths

    def _show(self) -> Answer:
        return Answer(200, self._page, "text/html; charset=utf-8", (("Content-Security-Policy", _POLICY),))

    def _health(self) -> Answer:
        silent_s = self._silent_s()
        if silent_s < HUNG_S:
            return Answer(200, b"ok\n")
        return Answer(503, f"the master has not been heard of for {silent_s:.0f} s\n".encode())

    def _readiness(self) -> Answer:
        unready = self._collector.unready(self._master_state())
        return Answer(503, f"{unready}\n".encode()) if unready else Answer(200, b"ready\n")

    def _metrics(self) -> Answer:
        alive = self._silent_s() < HUNG_S
        text = self._text("metrics", lambda snapshot: prometheus.render(snapshot, alive=alive))
        return Answer(200, text, prometheus.CONTENT_TYPE)

    def _status(self) -> Answer:
        return Answer(200, self._text("status", lambda snapshot: _json(snapshot.document)), "application/json")

    # --- the state and the snapshot

    def _silent_s(self) -> float:
        return (time.monotonic_ns() - self._shared.heartbeat_ns) / 1e9

    def _master_state(self) -> MasterState:
        """The latest that the master has written."""
        if self._state is None or self._shared.version != self._version:
            try:
                self._version, text = self._shared.read()
                self._state = MasterState.from_text(text)
            except (ValueError, TypeError, KeyError, RecursionError):
                if self._state is None:
                    raise
                # A worker has spoiled it: what was known holds until the master writes again.
        return self._state

    def _text(self, name: str, write: Callable[[ServerSnapshot], bytes]) -> bytes:
        """A text about the server, at most FRESH_S old."""
        now_s = time.monotonic()
        if self._snapshot is None or now_s >= self._stale_s or self._shared.version != self._version:
            self._snapshot = self._take_snapshot() or self._snapshot
            self._stale_s = now_s + FRESH_S
            self._texts.clear()
        assert self._snapshot is not None
        if name not in self._texts:
            self._texts[name] = write(self._snapshot)
        return self._texts[name]

    def _take_snapshot(self) -> ServerSnapshot | None:
        """Take a snapshot during which the master wrote nothing; None after _TRIES attempts."""
        for _ in range(_TRIES):
            snapshot = self._collector.snapshot(self._master_state())
            if self._shared.version == self._version:
                return snapshot
        return None


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


# --- Whom a request is for. The page of a stranger in the browser of somebody on this machine can have the stranger's
# name lead to a loopback address, and then read all answers (DNS rebinding); but the browser names the stranger.


def own_names(listener: Listener, wanted: str) -> frozenset[str] | None:
    """The names to answer for on the listener, in small letters; None if it is not on loopback: for all.

    `wanted` is the host of --admin.
    """
    if listener.sock.family == socket.AF_UNIX:
        return None
    address = ipaddress.ip_address(listener.sock.getsockname()[0].partition("%")[0])
    if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
        return None
    return frozenset({name.lower().rstrip(".") for name in ("localhost", socket.gethostname(), wanted) if name})


def host_of(authority: bytes) -> str:
    """The host of `host:port`, without the brackets of an IPv6 address."""
    text = authority.decode("latin-1")
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def is_own(host: str, names: frozenset[str]) -> bool:
    """True for an IP address, one of the names, or what is below localhost. HTTP/1.0 may name nobody."""
    name = host.lower().rstrip(".")
    if not name or name in names or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# --- One HTTP client: a request in, an answer out, the end. Nothing here blocks; every client has a deadline.

CLIENT_S = 5.0  # for the request, and again for the answer
_CHUNK = 16384


class AdminClient:
    """ADMIN. One connection. `until_s`: its deadline; `interest`: the events to wait for; `over`: close it."""

    def __init__(self, sock: socket.socket, now_s: float) -> None:
        self.sock = sock
        self.until_s = now_s + CLIENT_S
        self.interest = select.EPOLLIN
        self.over = False
        self.asked = False  # its request was understood, or refused
        self._parser = RequestParser(Limits())
        self._unsent = b""
        self._left = LINGER_BYTES
        sock.setblocking(False)

    def on_ready(self, answers: Answers, now_s: float) -> None:
        """Read or write, as its socket is ready. Raises what goes wrong with an answer."""
        try:
            if self.interest == select.EPOLLOUT:
                self._send(now_s)
                return
            if self.asked:
                self._left = discard(self.sock, self._left)
                self.over = not self._left
                return
            data = self.sock.recv(_CHUNK)
            if not data:
                self.over = True
            elif events := self._parser.feed(data):
                self._answer(events[0], answers, now_s)
        except BlockingIOError:
            pass
        except OSError:
            self.over = True  # it has gone

    def fail(self, now_s: float) -> None:
        """Answer with 500, after a fault of ours."""
        self._say(error_response(500, stamp(time.time())), now_s)

    def close(self) -> None:
        """Close its socket."""
        self.sock.close()

    def _answer(self, event: object, answers: Answers, now_s: float) -> None:
        self.asked = True
        if isinstance(event, Request):
            head = event.method == "HEAD"
            self._say(_written(answers.answer(event.method, event.path, event.authority), head=head), now_s)
        else:
            status, head = getattr(event, "status", 400), getattr(event, "head", False)
            self._say(error_response(status, stamp(time.time()), head=head), now_s)

    def _say(self, response: bytes, now_s: float) -> None:
        self.asked = True
        self._unsent = response
        self.until_s = now_s + CLIENT_S
        self.interest = select.EPOLLOUT
        try:
            self._send(now_s)
        except BlockingIOError:
            pass
        except OSError:
            self.over = True

    def _send(self, now_s: float) -> None:
        self._unsent = self._unsent[self.sock.send(self._unsent) :]
        if not self._unsent:
            self.sock.shutdown(socket.SHUT_WR)
            self.until_s = now_s + LINGER_S
            self.interest = select.EPOLLIN


def _written(answer: Answer, *, head: bool) -> bytes:
    fields = [
        ("Content-Type", answer.kind),
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *answer.fields,
    ]
    lines = [f"HTTP/1.1 {answer.status} {phrase(answer.status)}", *(f"{name}: {value}" for name, value in fields), ""]
    return "\r\n".join(lines).encode("latin1") + stamp(time.time()) + (b"" if head else answer.body)


CLIENTS_MOST = 64
LEAVE = signal.SIGUSR2  # the master's order to stop; not TERM, which a service manager sends to every process
LEAVE_S = 1.0  # for the clients that it has, once it was told to stop
NO_IDENTITY = 3  # exit code
_NEVER = float("inf")


@dataclass(slots=True, kw_only=True)
class Admin:
    """ADMIN. What it was given before the fork, and its clients."""

    listener: Listener
    host: str  # of --admin
    answers: Answers
    log: Log
    lifeline: int  # read end of the pipe whose EOF is the master's death
    master: int  # pid
    identity: Identity | None
    close_in_child: Callable[[], None]  # closes what only the master may hold
    _clients: dict[int, AdminClient] = field(default_factory=dict)  # by descriptor, the oldest first
    _sock: socket.socket = field(init=False)  # listens
    _epoll: select.epoll = field(init=False)
    _resume_s: float = _NEVER  # accepting pauses until then
    _leave_s: float = _NEVER  # when to exit

    def run(self) -> int:
        """Answer until told to stop. Returns the exit code."""
        self.answers.restrict(own_names(self.listener, self.host))
        self._sock = self.listener.sock
        self.close_in_child()
        self.log.identify(admin=os.getpid())
        try:
            if self.identity is not None:
                self.identity.assume()
        except OSError as error:
            self.log.error("admin cannot change its user", uid=self.identity and self.identity.uid, reason=error)
            return NO_IDENTITY
        if not die_with_parent(self.master):
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
