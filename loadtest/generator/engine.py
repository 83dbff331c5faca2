"""The fast engine: many clients in one thread, on one epoll that is asked in a loop.

The loop gives way: `run` is an iterator that yields after 10 ms at the latest, with the number of seconds for which it
has nothing to do, or 0 when it wants to go on at once. So it can live in a greenlet among others, whose heartbeats and
timers need their turn, without knowing of them. Before it says that it has nothing to do it waits `patience_s` in the
epoll itself, which is several times cheaper than to give way and come back. Nobody else runs meanwhile, so patience
has to be 0 where others cannot be some ms late.

What came is read from all sockets before anything is sent: so nothing that has come waits for the sends of others with
its clock running, and the server, which gets its requests in a row, needs not be woken for each.

Exchanges that went well are noted in a Batch, which is reported four times a second or when it holds 250: to sort and
record one takes over a microsecond for each exchange, in which no socket is looked at and no arrival is seen. With
2,000 in a batch 1 in 100 arrivals at 15,000/s was seen 4 ms late, with 250 less than 1 ms; the most that the engine can
do is the same. The longest time without a look is in the batch too (gap_ns). Failures are reported one by one; they are
meant to be rare.

What links do, and when, is in link.py.
"""

from __future__ import annotations

from time import perf_counter_ns as clock
from typing import TYPE_CHECKING, Protocol

from loadtest.generator.link import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtest.generator.dialer import Dialer
    from loadtest.generator.link import Link, Model

PATIENCE_S = 0.004
_SLICE_NS = 10_000_000
_REPORT_NS = 250_000_000
_REPORT_SIZE = 250
_RETRY_S = 0.001  # before what could not go on is tried again
_EVENTS = 256  # to take from the epoll at once
_IMPRECISE_NS = 2_000_000  # a wait elsewhere may take so much longer than it should


class Poller(Protocol):
    """What the engine needs of select.epoll."""

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        """Wait for events, at most `timeout` seconds, to the millisecond."""

    def register(self, fd: int, eventmask: int) -> None:
        """Watch a descriptor for these events."""

    def modify(self, fd: int, eventmask: int) -> None:
        """Watch the descriptor for other events."""


class Observer(Protocol):
    """Gets what the engine reports."""

    def on_batch(self, batch: Batch) -> None:
        """Take the exchanges that succeeded since the last batch."""

    def on_failure(self, start_ns: int, cause: str, *, connecting: bool) -> None:
        """Take an exchange that failed just now, or a connect that is timed on its own."""


class Engine:
    """Drives links. Create it, fill `links`, set `model`, then iterate over `run`."""

    model: Model

    def __init__(
        self, *, poller: Poller, wait: Callable[[float], object], dialer: Dialer, deadline_s: float, observer: Observer
    ) -> None:
        """`wait(seconds)` waits until the poller has events, at most so long, to the microsecond."""
        self.dialer = dialer
        self.patience_s = 0.0
        self.links: list[Link] = []
        self.handlers: dict[int, Callable[[int], None]] = {}  # by descriptor; those of closed ones stay, unused
        self.register = poller.register
        self.modify = poller.modify
        self.freed: list[Link] = []  # their exchanges have ended well, and they may begin the next ones
        self.again: list[Callable[[], None]] = []  # what could not go on, to be tried once more
        self.batch = Batch()
        self._poller = poller
        self._wait = wait
        self._deadline_ns = round(deadline_s * 1e9)
        self._observer = observer
        self._check_ns = 0  # when to report, and to look for exchanges that take too long

    def failed(self, link: Link, sent_ns: int, cause: str, *, connecting: bool) -> None:
        """Report that the link's exchange failed.

        The link continues a moment later, as the next exchange may fail at once.
        """
        self._observer.on_failure(link.due_ns or sent_ns, cause, connecting=connecting)
        self.again.append(lambda: self.model.go_on(link))

    def run(self) -> Iterator[float]:
        """Drive the links until the model has ended."""
        handlers = self.handlers
        freed = self.freed
        again = self.again
        model = self.model
        poll = self._poller.poll
        model.start()
        now_ns = clock()
        while not model.ended:
            patience_s = self.patience_s
            slice_ns = now_ns + _SLICE_NS
            busy = True
            while busy and now_ns < slice_ns:
                left_s = _RETRY_S if again else (model.next_ns - now_ns) / 1e9
                if left_s < patience_s:
                    self._wait(max(0.0, left_s))
                    ready = poll(0, _EVENTS)
                else:
                    ready = poll(patience_s, _EVENTS)
                looked_ns = clock()
                for fd, mask in ready:
                    handlers[fd](mask)
                if freed:
                    model.finished(freed)
                    freed.clear()
                if again:
                    self._try_again()
                if model.next_ns <= looked_ns:
                    model.arrive(looked_ns)
                busy = bool(ready)
                now_ns = self._note_gap(looked_ns)
            self._check(now_ns)
            idle_s = 0.0 if busy else self._idle_s(now_ns)
            yield idle_s
            # With nothing to do there is no gap before the wait should have ended: then others had held us up.
            now_ns = self._note_gap(looked_ns if busy else now_ns + round(idle_s * 1e9))

    def report(self) -> None:
        """Report the batch and start a new one."""
        batch, self.batch = self.batch, Batch()
        self._observer.on_batch(batch)

    def _try_again(self) -> None:
        todo = self.again[:]
        self.again.clear()
        for action in todo:
            action()

    def _note_gap(self, looked_ns: int) -> int:
        """Note the time since the sockets were looked at; return the time now, in ns."""
        now_ns = clock()
        if now_ns - looked_ns > self.batch.gap_ns:
            self.batch.gap_ns = now_ns - looked_ns
            self.batch.gap_at_ns = looked_ns
        return now_ns

    def _check(self, now_ns: int) -> None:
        """Report, and end exchanges that took too long; only a few times a second."""
        if now_ns >= self._check_ns:
            self._check_ns = now_ns + min(_REPORT_NS, self._deadline_ns // 4)
            for link in self.links:
                if 0 < link.sent_ns < now_ns - self._deadline_ns:
                    link.expire()
            self.report()
        elif len(self.batch.end_ns) >= _REPORT_SIZE:
            self.report()

    def _idle_s(self, now_ns: int) -> float:
        """Return for how many seconds there is nothing to do unless a socket has an event."""
        if self.again:
            return _RETRY_S
        return max(0, min(self._check_ns, self.model.next_ns - _IMPRECISE_NS) - now_ns) / 1e9
