"""The clients of the fast engine (links), and the two models that say when they begin an exchange.

A Link is one client: at most one connection, and at most one exchange on it. Its methods never wait: `begin` starts an
exchange, `ready` handles the events that epoll reports for the connection, `expire` ends an exchange that took too
long, `drop` closes the connection. A link that cannot continue right now puts a callback on the engine's list `again`.
A successful exchange is added to the engine's Batch and the link to the list `freed`; a failed one is reported with its
cause, and its connection is closed.

This is the generator's hot path, where a microsecond is a tenth of an exchange. The usual case is therefore tried first
and handled in place; an unusual one (a reply in pieces, a send that would block, an error) goes through methods of its
own. `connection` is always a socket; without a connection it is a closed one, whose descriptor is -1.

Closed model: a client begins its next exchange as soon as the one before has ended. A slow server gets fewer exchanges.
Latency counts from the send.

Open model: exchanges come due by an absolute schedule, whatever the server does, like the requests of people who do not
know of each other. An exchange that comes due takes a free link; when all are busy it waits for one, in order. Its
latency counts from when it was due, so a server that stalls is charged for everything that came due meanwhile; the
service time counts from the send. The exchanges in flight, waiting ones included, are capped: an arrival above the cap
is counted as missed. So is an arrival that the engine notices more than 0.1 s late (the generator was stopped, or is
overloaded): sending what piled up would be a burst that the schedule does not have. The lag of each arrival is kept.
"""

from __future__ import annotations

import itertools
import select
from _socket import socket as Socket  # noqa: N812 # a class, as in the socket module
from collections import deque
from dataclasses import dataclass, field
from ssl import SSLWantReadError
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING, Protocol

from loadtest.generator.failure import TIMEOUT, cause_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from loadtest.generator.dialer import Connection, Dialer


IN, OUT, HUNG_UP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
CHUNK = 65536  # bytes to read at once
_NO_CONNECTION = Socket()
_NO_CONNECTION.close()


@dataclass(slots=True)
class Batch:
    """What the engine notes between two reports. All times are CLOCK_MONOTONIC in ns.

    `sent_ns`, `end_ns` and `due_ns` have one entry for each exchange that succeeded.
    """

    sent_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)
    due_ns: list[int] = field(default_factory=list)  # when it should have started; the closed model keeps none
    received: int = 0  # bytes
    connects: list[tuple[int, int]] = field(default_factory=list)  # start and end of those with a clock of their own
    gap_ns: int = 0  # the longest time without a look at the sockets
    gap_at_ns: int = 0  # when that began
    offered: list[tuple[int, int]] = field(default_factory=list)  # arrivals of the open model: when due, how late seen
    missed_ns: list[int] = field(default_factory=list)  # those of them that never started: when due
    retried_ns: list[int] = field(default_factory=list)  # exchanges sent once more: when they started

    @property
    def start_ns(self) -> Sequence[int]:
        """The times from which latency counts: when due in the open model, when sent in the closed one."""
        return self.due_ns or self.sent_ns


class EngineApi(Protocol):
    """What a link and a model need of the engine that drives them (engine.py)."""

    links: list[Link]
    batch: Batch
    dialer: Dialer
    handlers: dict[int, Callable[[int], None]]  # by descriptor
    freed: list[Link]  # their exchanges have ended well, and they may begin the next ones
    again: list[Callable[[], None]]  # what could not go on, to be tried once more

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch a descriptor for events."""

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Watch the descriptor for other events."""

    def failed(self, link: Link, sent_ns: int, cause: str, *, connecting: bool) -> None:
        """Report that the link's exchange failed now."""


class Link:
    """What the links of all scenarios share: connecting, sending the request, success and failure."""

    __slots__ = ("_handler", "_rest", "connection", "due_ns", "engine", "request", "sent_ns")

    interest = IN  # the events to wait for once all is sent
    connecting = False  # whether a failure now is one of a connect that is timed on its own

    def __init__(self, engine: EngineApi, request: bytes) -> None:
        self.engine = engine
        self.request = request
        self.connection: Connection = _NO_CONNECTION
        self.sent_ns = 0  # when the clock of the exchange in flight started; 0: there is none
        self.due_ns = 0  # when it should have started; 0 in the closed model
        self._rest = b""  # of the request, not yet sent
        self._handler = self.ready

    def begin(self) -> None:
        """Start an exchange now."""
        raise NotImplementedError

    def ready(self, mask: int) -> None:
        """Handle the events of the connection that epoll's mask names."""
        raise NotImplementedError

    def expire(self) -> None:
        """Fail the exchange, which took too long."""
        self.fail(TIMEOUT)

    def drop(self) -> None:
        """Close the connection, if there is one, and forget the exchange in flight."""
        self.sent_ns = 0
        self._rest = b""
        self.connection.close()  # which takes it out of the epoll too

    def note(self, received: int) -> None:
        """Note that the exchange succeeded now. What follows (closing, the next exchange) is not on its clock."""
        batch = self.engine.batch
        batch.end_ns.append(clock())
        batch.sent_ns.append(self.sent_ns)
        batch.received += received

    def fail(self, cause: str, *, keep: bool = False) -> None:
        """Report that the exchange in flight, if any, failed now. Close the connection unless `keep`."""
        start_ns, connecting = self.sent_ns, self.connecting
        if keep:
            self.sent_ns = 0
        else:
            self.drop()
        if start_ns:
            self.engine.failed(self, start_ns, cause, connecting=connecting)

    def broken(self, cause: str, *, unsent: bool = False) -> None:  # noqa: ARG002 # for links that can do better
        """Handle a connection that ended. `unsent`: before any byte of the request in flight was sent on it."""
        self.fail(cause)

    def connect(self) -> None:
        """Make a connection and send the request on it."""
        try:
            connection = self.connection = self.engine.dialer()
        except BlockingIOError:  # a Unix server's accept queue is full, and no event tells when it is not
            self.engine.again.append(self._connect_again)
            return
        except OSError as error:
            self.fail(cause_of(error))
            return
        fd = connection.fileno()
        self.engine.handlers[fd] = self._handler
        self.engine.register(fd, self.interest)
        self.send()

    def _connect_again(self) -> None:
        if self.sent_ns and self.connection.fileno() < 0:  # else it has expired meanwhile
            self.connect()

    def send(self) -> None:
        """Send as much of the request as there is room for; before the handshake is over there is none."""
        try:
            sent = self.connection.send(self.request)
        except BlockingIOError:
            sent = 0
        except SSLWantReadError:  # the rest goes when something came, for which the epoll waits anyway
            self._rest = self.request
            return
        except OSError as error:
            self.broken(cause_of(error), unsent=True)
            return
        if sent < len(self.request):
            self._rest = self.request[sent:]
            self.engine.modify(self.connection.fileno(), self.interest | OUT)

    def send_rest(self) -> bool:
        """Send more of what is left. Return whether the exchange goes on."""
        if self._rest:
            interest = self.interest | OUT
            try:
                self._rest = self._rest[self.connection.send(self._rest) :]
            except BlockingIOError:
                pass
            except SSLWantReadError:
                interest = self.interest
            except OSError as error:
                self.broken(cause_of(error), unsent=len(self._rest) == len(self.request))
                return False
            self.engine.modify(self.connection.fileno(), interest if self._rest else self.interest)
        return True


NEVER = 1 << 63
LATE_NS = 100_000_000
_AT_ONCE = 256  # arrivals to look at before the sockets are looked at again


class RepeatingLink(Link):
    """A link that sends the same request again and again on one connection.

    The replies of a server are alike: `_usual` is the last good one, and a reply that equals it byte for byte, as it
    does nearly always, needs no parser.
    """

    __slots__ = ("_ended", "_exchanges", "_keeps", "_left", "_size", "_usual")

    def __init__(self, engine: EngineApi, request: bytes, exchanges: int) -> None:
        """`exchanges` on one connection; 0: as many as the server allows."""
        super().__init__(engine, request)
        self._exchanges = exchanges
        self._left = 0  # exchanges that this connection still takes; never 0 again if that is not limited
        self._keeps = True  # whether the usual reply leaves the connection open
        self._ended = False  # whether the end of the stream had come, though not been read, with the last data
        self._usual: bytes | None = None  # None while no reply is expected that would need no parser
        self._size = CHUNK  # bytes to read at once: one more than the usual, as a small buffer is made faster

    def ready(self, mask: int) -> None:
        """Take the usual reply, or examine another one.

        Reading comes before sending: a server that takes no more of a request (413) says so, and resets. If the end of
        the stream has come with the reply (HUNG_UP, if the link waits for it), nothing more is sent there.
        """
        try:
            data = self.connection.recv(self._size)
        except (BlockingIOError, SSLWantReadError):
            self.send_rest()
            return
        except OSError as error:
            self.broken(cause_of(error))
            return
        if data == self._usual and self.sent_ns and not self._rest:
            engine = self.engine
            batch = engine.batch  # `note`, without the call
            batch.end_ns.append(clock())
            batch.sent_ns.append(self.sent_ns)
            batch.received += len(data)
            self._left -= 1
            if not self._left or not self._keeps or mask & HUNG_UP:
                self.hang_up()
            engine.freed.append(self)
        else:
            self._ended = bool(mask & HUNG_UP)
            self.examine(data)

    def examine(self, data: bytes) -> None:
        """Read what is not the usual reply, or only a part of it."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """End the connection after its last exchange."""
        self.connection.close()


class Model:
    """Decides when links begin exchanges. After `stop` nothing begins that is not already due."""

    next_ns = NEVER  # when `arrive` wants to be called

    def __init__(self, engine: EngineApi) -> None:
        self.engine = engine
        self.stopping = False

    def start(self) -> None:
        """Begin the run."""
        raise NotImplementedError

    def stop(self) -> None:
        """Let exchanges in flight end, and begin no new ones."""
        self.stopping = True

    @property
    def ended(self) -> bool:
        """Whether the model was stopped and nothing is in flight."""
        return self.stopping and not any(link.sent_ns for link in self.engine.links)

    def arrive(self, now_ns: int) -> None:
        """Begin the exchanges that are due."""
        raise NotImplementedError

    def finished(self, links: Sequence[Link]) -> None:
        """Continue with these links, whose exchanges succeeded and are noted."""
        raise NotImplementedError

    def go_on(self, link: Link) -> None:
        """Continue with a link whose exchange failed, which was reported."""
        raise NotImplementedError

    def unfinished_ns(self) -> list[int]:
        """Return the start of each exchange that has not ended, in ns."""
        return [link.due_ns or link.sent_ns for link in self.engine.links if link.sent_ns]


class ClosedModel(Model):
    """The closed model: every link always has an exchange in flight."""

    def start(self) -> None:
        """Begin an exchange on every link."""
        self.engine.again.extend(link.begin for link in self.engine.links)

    def finished(self, links: Sequence[Link]) -> None:
        """Begin the next exchanges at once."""
        for link in links:
            if self.stopping:
                link.drop()
            else:
                link.begin()

    def go_on(self, link: Link) -> None:
        """Begin the link's next exchange at once."""
        self.finished([link])


class OpenModel(Model):
    """The open model: exchanges begin by the schedule (times in ns, ascending, without end), on any free link."""

    def __init__(self, engine: EngineApi, schedule: Iterator[int], max_in_flight: int) -> None:
        super().__init__(engine)
        self._schedule = schedule
        self._cap = max_in_flight
        self._free: deque[Link] = deque()
        self._waiting: deque[int] = deque()  # when they were due

    def start(self) -> None:
        """Make all links free, and wait for the first arrival."""
        self._free.extend(self.engine.links)
        self.next_ns = next(self._schedule)

    def stop(self) -> None:
        """Let the exchanges that came due end."""
        super().stop()
        self.next_ns = NEVER

    @property
    def ended(self) -> bool:
        """Whether the model was stopped and every exchange that came due has ended."""
        return self.stopping and not self._waiting and len(self._free) == len(self.engine.links)

    def arrive(self, now_ns: int) -> None:
        """Begin each exchange that is due, or queue it; count it as missed when it is late or above the cap."""
        batch = self.engine.batch
        for _ in range(_AT_ONCE):
            due_ns = self.next_ns
            if due_ns > now_ns:
                return
            self.next_ns = next(self._schedule)
            late_ns = clock() - due_ns
            batch.offered.append((due_ns, late_ns))
            busy = len(self.engine.links) - len(self._free)
            if late_ns > LATE_NS or busy + len(self._waiting) >= self._cap:
                batch.missed_ns.append(due_ns)
            elif self._free:
                self._begin(self._free.popleft(), due_ns)
            else:
                self._waiting.append(due_ns)

    def finished(self, links: Sequence[Link]) -> None:
        """Note when the exchanges were due, and continue with their links."""
        for link in links:
            self.engine.batch.due_ns.append(link.due_ns)
            self.go_on(link)

    def go_on(self, link: Link) -> None:
        """Begin the exchange that has waited longest, or make the link free."""
        if self._waiting:
            self._begin(link, self._waiting.popleft())
        else:
            link.sent_ns = 0
            self._free.append(link)

    def unfinished_ns(self) -> list[int]:
        """Return the start of each exchange that has not ended, waiting ones included, in ns."""
        return super().unfinished_ns() + list(self._waiting)

    def _begin(self, link: Link, due_ns: int) -> None:
        link.due_ns = due_ns
        link.begin()


def constant(start_ns: int, rate_per_s: float) -> Iterator[int]:
    """Yield arrivals at equal distances, without end; each is computed from the start, so no error adds up."""
    return (start_ns + round(number * 1e9 / rate_per_s) for number in itertools.count())


def poisson(start_ns: int, rate_per_s: float, chance: random.Random) -> Iterator[int]:
    """Yield arrivals with exponential gaps, without end, as of people who do not know of each other."""
    at_ns = float(start_ns)
    while True:
        at_ns += chance.expovariate(rate_per_s) * 1e9
        yield round(at_ns)
