"""A server of known behaviour, which counts exactly what it did: `server.py ADDRESS LOG MODE [NUMBER ...]`.

ADDRESS is HOST:PORT or the path of a Unix socket. Each exchange is noted when it is read and when its answer is sent,
on CLOCK_MONOTONIC, the clock of the lab's windows on the same machine. SIGTERM ends the server: it then writes all it
noted to the file LOG, as JSON (see `Log.written`).

Service times are waits, not work, so a busy machine changes them little; what it does change is in the notes. A queue
is computed, not played: an answer in it is due at a time that is known when its request arrives, so that the capacity
of `mutex 5` is 200 per second however late single wake-ups are.

MODES below has the modes. The first exchanges are the lab's looks at a server without load: whether it is ready, and
how long it takes. Where a mode has a time of its own, that begins with the load: with the first request after a pause.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from time import monotonic_ns as clock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Mode = Callable[["Request"], "Answer"]

MS_NS = 1_000_000
LOOKS = 20  # the most requests of the lab before the load
PAUSE_NS = 200 * MS_NS  # the least time between these and the load
OK = "ok"  # every other outcome is the cause by which the lab counts that failure
GONE = "gone"  # the client had closed its connection before the answer
KEEP, CLOSE, RESET = "keep", "close", "reset"  # what becomes of the connection after an answer

BODY = b"hello\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n"
GOOD = HEAD + b"\r\n" + BODY
LAST = HEAD + b"Connection: close\r\n\r\n" + BODY
GREETING = b"hello from prefork\n"
PREFIX = b"you said: "


@dataclass(frozen=True, slots=True)
class Request:
    """What a mode may decide by."""

    number: int  # of all requests, from 1
    on_connection: int  # of those on this connection, from 1
    arrived_ns: int
    age_ns: int  # since the load began
    text: bytes


@dataclass(slots=True)
class Answer:
    """What is sent, and when. `pieces`: each with its time; the answer counts as sent with the last one."""

    pieces: list[tuple[int, bytes]]
    outcome: str = OK
    then: str = KEEP


def at(due_ns: int, data: bytes = GOOD, outcome: str = OK, then: str = KEEP) -> Answer:
    return Answer([(due_ns, data)], outcome, then)


# --- The modes: each makes a function from a request to its answer. Times are in ms unless the name says otherwise.


def fixed(ms: float) -> Mode:
    """Answer after exactly so long."""
    return lambda request: at(request.arrived_ns + _ns(ms))


def pool(places: float, ms: float) -> Mode:
    """Serve so many at a time, so long each, in the order of their arrival."""
    free_ns = [0] * int(places)

    def answer(request: Request) -> Answer:
        due_ns = max(request.arrived_ns, free_ns[0]) + _ns(ms)
        heapq.heapreplace(free_ns, due_ns)
        return at(due_ns)

    return answer


def mutex(ms: float) -> Mode:
    """Hold one lock for so long for each request."""
    return pool(1, ms)


def first(count: float, ms: float = 0) -> Mode:
    """Answer so many well, and the others with 500."""
    bad = _status(500)
    return lambda request: (
        at(request.arrived_ns + _ns(ms))
        if request.number <= count
        else at(request.arrived_ns + _ns(ms), bad, "status 500")
    )


def leak(ms: float, more_ms: float) -> Mode:
    """Take `ms`, and with every second `more_ms` longer."""
    return lambda request: at(request.arrived_ns + _ns(ms + more_ms * request.age_ns / 1e9))


def warm(seconds: float, ms: float) -> Mode:
    """Take twice as long for the first `seconds`."""
    return lambda request: at(request.arrived_ns + _ns(ms) * (2 if request.age_ns < seconds * 1e9 else 1))


def bimodal(ms: float) -> Mode:
    """Take `ms`, and every hundredth time 200."""
    return lambda request: at(request.arrived_ns + _ns(ms if request.number % 100 else 200))


def stall(after_s: float, for_s: float, ms: float) -> Mode:
    """Take `ms`, but send nothing for `for_s`, once, beginning `after_s` after the load."""

    def answer(request: Request) -> Answer:
        due_ns = request.arrived_ns + _ns(ms)
        age_ns = request.age_ns + _ns(ms)
        if after_s * 1e9 <= age_ns < (after_s + for_s) * 1e9:
            due_ns += round((after_s + for_s) * 1e9) - age_ns
        return at(due_ns)

    return answer


def errors(percent: float, ms: float) -> Mode:
    """Answer an exact share with 503, evenly spread."""
    bad = _status(503)

    def answer(request: Request) -> Answer:
        fails = request.number * percent // 100 > (request.number - 1) * percent // 100
        due_ns = request.arrived_ns + _ns(ms)
        return at(due_ns, bad, "status 503") if fails else at(due_ns)

    return answer


def reset(every: float, ms: float) -> Mode:
    """Reset the connection instead of each so many-th answer."""
    return lambda request: (
        at(request.arrived_ns + _ns(ms), b"", "reset", RESET)
        if request.number % every == 0
        else at(request.arrived_ns + _ns(ms))
    )


def short(every: float, ms: float) -> Mode:
    """Send half of the body in each so many-th answer, and close."""
    half = GOOD[: -len(BODY) // 2]
    return lambda request: (
        at(request.arrived_ns + _ns(ms), half, "closed early", CLOSE)
        if request.number % every == 0
        else at(request.arrived_ns + _ns(ms))
    )


def close(answers: float, ms: float) -> Mode:
    """Close each connection after so many answers, and say so in the last one."""
    return lambda request: (
        at(request.arrived_ns + _ns(ms), LAST, OK, CLOSE)
        if request.on_connection >= answers
        else at(request.arrived_ns + _ns(ms))
    )


def hangup(answers: float, ms: float) -> Mode:
    """Close each connection after so many answers, and say nothing."""
    return lambda request: at(
        request.arrived_ns + _ns(ms), GOOD, OK, CLOSE if request.on_connection >= answers else KEEP
    )


def chunked(ms: float) -> Mode:
    """Send the body in two chunks."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return lambda request: at(request.arrived_ns + _ns(ms), head + b"3\r\nhel\r\n3\r\nlo\n\r\n0\r\n\r\n")


def slowbody(ms: float) -> Mode:
    """Send the head at once and the body in pieces, the last after `ms`."""

    def answer(request: Request) -> Answer:
        step_ns = _ns(ms) // len(BODY)
        body = [
            (request.arrived_ns + step_ns * number, BODY[number - 1 : number]) for number in range(1, 1 + len(BODY))
        ]
        return Answer([(request.arrived_ns, HEAD + b"\r\n"), *body])

    return answer


def lf(ms: float) -> Mode:
    """End lines with a bare LF, as RFC 9112 section 2.2 lets a recipient take them."""
    return lambda request: at(request.arrived_ns + _ns(ms), GOOD.replace(b"\r\n", b"\n"))


def double_length(ms: float) -> Mode:
    """Send Content-Length twice, with one value, as RFC 9110 section 8.6 lets a recipient take it."""
    twice = HEAD + b"Content-Length: 6\r\n\r\n" + BODY
    return lambda request: at(request.arrived_ns + _ns(ms), twice)


def cpu(us: float) -> Mode:
    """Use so much CPU time for each request, by the thread's own clock, and answer."""

    def answer(request: Request) -> Answer:
        until_ns = time.thread_time_ns() + us * 1000
        while time.thread_time_ns() < until_ns:
            pass
        return at(clock())

    return answer


def talkback(ms: float) -> Mode:
    """Greet, wait for a line, answer it `ms` later, and close: the lab's scenarios talkback and nap."""
    return lambda request: at(request.arrived_ns + _ns(ms), PREFIX + request.text, OK, CLOSE)


def echo(ms: float) -> Mode:
    """Send each line back after `ms`."""
    return lambda request: at(request.arrived_ns + _ns(ms), request.text)


MODES = {
    made.__name__.replace("_", "-"): made
    for made in (
        fixed, pool, mutex, first, leak, warm, bimodal, stall, errors, reset, short, close, hangup, chunked, slowbody,
        lf, double_length, cpu, talkback, echo,
    )
}  # fmt: skip
ACCEPT_LATE = "accept-late"  # answers at once, but takes connections only every so many ms


# --- The server: one thread, one epoll, and a heap of what is due.


@dataclass(slots=True)
class Log:
    """What was done; a list of [connection, arrived_ns, answered_ns, outcome, CPU time of the process so far in ns]."""

    mode: Sequence[str]
    began_ns: int = field(default_factory=clock)
    exchanges: list[tuple[int, int, int, str, int]] = field(default_factory=list)
    connections: int = 0

    def written(self, waiting: list[int]) -> str:
        """Return the log as JSON. `waiting`: when the requests arrived that have no answer yet."""
        return json.dumps(
            {
                "mode": self.mode,
                "began_ns": self.began_ns,
                "ended_ns": clock(),
                "connections": self.connections,
                "exchanges": self.exchanges,
                "waiting": waiting,
            }
        )


@dataclass(slots=True)
class Connection:
    sock: socket.socket
    number: int
    accepted_ns: int
    received: bytes = b""
    requests: int = 0


class Server:
    def __init__(self, listener: socket.socket, mode: Mode, log: Log, *, protocol: str, accept_ns: int = 0) -> None:
        """`protocol`: talkback, echo, or http, whose requests have no body here. `accept_ns`: accept only so often."""
        self.log = log
        self.waiting: dict[int, int] = {}  # request -> when it arrived
        self._listener = listener
        self._mode = mode
        self._protocol = protocol
        self._accept_ns = accept_ns
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._requests = 0
        self._load_ns = 0  # when the load began
        self._last_ns = 0  # when the last request arrived
        if accept_ns:
            self._accept_at(clock())
        else:
            self._epoll.register(listener, select.EPOLLIN)

    def run(self, stop: int) -> None:
        """Serve until there is something to read at `stop`."""
        self._epoll.register(stop, select.EPOLLIN)
        while True:
            if not self._due:
                ready = self._epoll.poll()
            else:  # select waits to the microsecond, poll to the millisecond
                if (left_ns := self._due[0][0] - clock()) > 0:
                    select.select([self._epoll], (), (), left_ns / 1e9)
                ready = self._epoll.poll(0)
            for fd, _ in ready:
                if fd == stop:
                    return
                if fd == self._listener.fileno():
                    self._accept()
                elif connection := self._connections.get(fd):
                    self._read(connection)
            while self._due and self._due[0][0] <= clock():
                heapq.heappop(self._due)[2]()

    def _later(self, due_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (due_ns, next(self._order), action))

    def _accept_at(self, due_ns: int) -> None:
        """Accept what waits, now, which was due then, and again later; so lateness does not add up."""
        self._later(due_ns + self._accept_ns, lambda: self._accept_at(due_ns + self._accept_ns))
        self._accept()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.log.connections += 1
            connection = Connection(sock, self.log.connections, clock())
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock, select.EPOLLIN)
            if self._protocol == "talkback":
                sock.send(GREETING)
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(connection)
            return
        connection.received += data
        end = b"\r\n\r\n" if self._protocol == "http" else b"\n"
        while (found := connection.received.find(end)) >= 0:
            size = found + len(end)
            request, connection.received = connection.received[:size], connection.received[size:]
            self._take(connection, request)

    def _take(self, connection: Connection, text: bytes) -> None:
        now_ns = clock()
        self._requests += 1
        connection.requests += 1
        number = self._requests
        if number <= LOOKS and now_ns - self._last_ns > PAUSE_NS:
            self._load_ns = now_ns
        self._last_ns = now_ns
        age_ns = now_ns - self._load_ns
        self.waiting[number] = connection.accepted_ns if self._protocol == "talkback" else now_ns
        answer = self._mode(Request(number, connection.requests, now_ns, age_ns, text))
        if self._protocol == "http":
            _persist(text.lower(), answer)
        for place, (due_ns, data) in enumerate(answer.pieces, 1):
            last = answer if place == len(answer.pieces) else None
            self._later(due_ns, lambda data=data, last=last: self._send(connection, number, data, last))

    def _send(self, connection: Connection, number: int, data: bytes, last: Answer | None) -> None:
        """Send a piece of an answer; `last`: the answer that it ends."""
        now_ns = clock()
        outcome = last.outcome if last else ""
        then = last.then if last else KEEP
        if last:  # before the client can know of it
            exchange = (connection.number, self.waiting.pop(number), now_ns, outcome, time.process_time_ns())
        try:
            connection.sock.send(data)
        except OSError:
            outcome = GONE
        if last:
            self.log.exchanges.append(exchange if outcome != GONE else (*exchange[:3], GONE, exchange[4]))
        if then == RESET and connection.sock.fileno() >= 0:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if then != KEEP:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if (fd := connection.sock.fileno()) >= 0:
            del self._connections[fd]
            connection.sock.close()


def _persist(text: bytes, answer: Answer) -> None:
    """Close the connection after the answer if the request wants that; tell an HTTP/1.0 client that it is kept."""
    old = b" http/1.0\r\n" in text
    if b"connection: close" in text or (old and b"keep-alive" not in text):
        answer.then = CLOSE if answer.then == KEEP else answer.then
    elif old and answer.then == KEEP:
        due_ns, data = answer.pieces[0]
        answer.pieces[0] = due_ns, data.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1)


def listening(address: str) -> socket.socket:
    """Listen at HOST:PORT or at a path."""
    if "/" in address:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    else:
        host, _, port = address.rpartition(":")
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
    listener.listen(4096)
    listener.setblocking(False)
    return listener


def main(arguments: Sequence[str]) -> None:
    address, path, name, *numbers = arguments
    values = [float(number) for number in numbers]
    late = name == ACCEPT_LATE
    mode = fixed(0) if late else MODES[name](*values)
    log = Log([name, *numbers])
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGTERM, lambda *_: None)
    protocol = name if name in ("talkback", "echo") else "http"
    server = Server(listening(address), mode, log, protocol=protocol, accept_ns=_ns(values[0]) if late else 0)
    server.run(woken)
    written = log.written(list(server.waiting.values()))
    with open(path.replace("{pid}", str(os.getpid())), "w") as file:
        file.write(written)


def _ns(ms: float) -> int:
    return round(ms * MS_NS)


def _status(number: int) -> bytes:
    return GOOD.replace(b"200 OK", b"%d No" % number)


if __name__ == "__main__":
    main(sys.argv[1:])
