"""What a load generator process keeps of its exchanges.

The window. It opens `warmup_s` after the first spawn and closes after `window_s`, at the latest when the run begins to
stop, before the users hear of it. Processes that run side by side so have windows of one length, in which all of them
are at work, though they begin and end some ms apart.
- An exchange belongs to the window in which it STARTS. One that starts in the window and ends during the drain counts
  with its whole latency: cutting it off would hide the slow ones, and in the closed model each completion starts the
  next exchange, so starts per second are completions per second.
- In the open model an exchange starts when it is due, and its latency counts from there; the service time counts from
  the send. In the closed model the two are one.
- An exchange that the end of the drain cuts off is `censored`: its latency is unknown, it is in no histogram.
- `busy_s` is the time that all exchanges, failed, censored and warm-up ones too, spent INSIDE the window, whenever they
  started: busy_s / duration_s is the mean number in flight, for Little's law.
- `per_second` counts by the second of the window in which exchanges started; the last may be a part of one, or up to
  0.1 s longer (span_s).
- What began `outside` the window is only counted: with it, the sums are those of locust's own tables.

The readable users record exchanges one by one: an integer into an array, which costs 8 bytes each until the histograms
are made, after the run; so the recorder is only in place when a result file was asked for. The fast engine records
batches that have been made into a histogram already.

A process makes an Account (account.py); the accounts of several processes (`--processes`, workers) are merged, each
with its own clock.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.generator.account import Account, Arrivals, seconds_of
from prefork.status.histogram import Histogram

if TYPE_CHECKING:
    from loadtest.generator.link import Batch

CONNECT = "CONNECT"
"""locust's request type for a connect that is timed on its own. One that fails counts as the exchange it prevented."""

_SECOND_NS = 1_000_000_000
_NEVER = 1 << 63


@dataclass(slots=True)
class Second:
    """The exchanges that started in one second of the window."""

    latencies_ns: array[int] = field(default_factory=lambda: array("Q"))  # of those that went well, one by one
    latency: Histogram = field(default_factory=Histogram)  # of those that were recorded in batches
    failed: int = 0

    def add(self, other: Second) -> None:
        """Add the exchanges of another second."""
        self.latencies_ns.extend(other.latencies_ns)
        self.latency.merge(other.latency)
        self.failed += other.failed

    def whole(self) -> Histogram:
        """Return the latencies of all exchanges that succeeded."""
        made = _histogram(self.latencies_ns)
        made.merge(self.latency)
        return made


class Recorder:
    """Records the exchanges of one run. All times are CLOCK_MONOTONIC (on Linux also `time.perf_counter_ns`), in ns."""

    def __init__(self, *, first_spawn_ns: int, warmup_s: float, window_s: float = 0.0) -> None:
        """`window_s`: the length of the window; 0 for until the run begins to stop."""
        self.opens_ns = first_spawn_ns + round(warmup_s * 1e9)
        self._closes_ns = self.opens_ns + round(window_s * 1e9) if window_s else _NEVER  # at the latest
        self._seconds: dict[int, Second] = {}
        self._failures: Counter[str] = Counter()
        self._busy_ns = 0
        self._censored = 0
        self._outside = 0
        self._outside_failed = 0
        self._gap_ns: int | None = None  # the longest that the fast engine did not look at its sockets
        self._services_ns: array[int] = array("Q")  # the open model: service times
        self._lags_ns: array[int] | None = None  # and how late each arrival was seen; None in the closed model
        self._missed = 0

    def completed(self, start_ns: int, end_ns: int) -> None:
        """Record an exchange that succeeded."""
        if second := self._second(start_ns, end_ns):
            second.latencies_ns.append(end_ns - start_ns)
        else:
            self._outside += 1

    def completed_batch(self, batch: Batch, latency: Histogram) -> None:
        """Record a batch of exchanges that succeeded, with their latencies, and the engine's longest gap."""
        starts_ns = batch.start_ns
        ends_ns = batch.end_ns
        if starts_ns:
            # They were noted as they ended. All starts are between these two, and to look at each would take longer.
            earliest_ns = ends_ns[0] - latency.max_ns
            latest_ns = ends_ns[-1]
            first = self._number(earliest_ns)
            last = self._number(latest_ns)
            if latest_ns < self.opens_ns:
                self._outside += len(ends_ns)
            elif first == last >= 0 and latest_ns <= self._closes_ns:
                self._seconds.setdefault(first, Second()).latency.merge(latency)
                self._busy_ns += latency.sum_ns
            else:
                for start_ns, end_ns in zip(starts_ns, ends_ns, strict=True):
                    self.completed(start_ns, end_ns)
        looked_ns = max(batch.gap_at_ns, self.opens_ns)
        gap_ns = min(batch.gap_at_ns + batch.gap_ns, self._closes_ns) - looked_ns
        self._gap_ns = max(self._gap_ns or 0, gap_ns)
        self._schedule(batch)

    def _schedule(self, batch: Batch) -> None:
        """Record what only the open model has: service times, arrivals, missed ones."""
        for due_ns, sent_ns, end_ns in zip(batch.due_ns, batch.sent_ns, batch.end_ns, strict=bool(batch.due_ns)):
            if self._inside(due_ns):
                self._services_ns.append(end_ns - sent_ns)
        if batch.offered:
            if self._lags_ns is None:
                self._lags_ns = array("Q")
            self._lags_ns.extend(lag_ns for due_ns, lag_ns in batch.offered if self._inside(due_ns))
        self._missed += sum(self._inside(due_ns) for due_ns in batch.missed_ns)

    def failed(self, start_ns: int, end_ns: int, cause: str) -> None:
        """Record an exchange that failed."""
        if second := self._second(start_ns, end_ns):
            second.failed += 1
            self._failures[cause] += 1
        else:
            self._outside_failed += 1

    def censored(self, start_ns: int, end_ns: int) -> None:
        """Record an exchange that the end of the run cut off."""
        if self._second(start_ns, end_ns):
            self._censored += 1

    def close(self, now_ns: int) -> None:
        """Close the window, if it is still open: the run begins to stop.

        Exchanges that started before may still end.
        """
        self._closes_ns = min(self._closes_ns, now_ns)

    def account(self, *, connections: int, cpu_s: float, wall_s: float) -> Account:
        """Return what was recorded. The window is closed, and all exchanges have ended or were cut off."""
        assert self._closes_ns != _NEVER, "the window is still open"
        length_ns = max(0, self._closes_ns - self.opens_ns)
        slices = [Second() for _ in range(seconds_of(length_ns / 1e9))]
        for number, second in self._seconds.items():
            slices[min(number, len(slices) - 1)].add(second)
        arrivals = None
        if self._lags_ns is not None:
            lag = _histogram(self._lags_ns)
            arrivals = Arrivals(offered=lag.n, missed=self._missed, lag=lag, service=_histogram(self._services_ns))
        return Account(
            connections=connections,
            cpu_s=cpu_s,
            wall_s=wall_s,
            gap_ns=self._gap_ns,
            opens_ns=self.opens_ns,
            duration_s=length_ns / 1e9,
            busy_s=self._busy_ns / 1e9,
            censored=self._censored,
            failures=self._failures,
            outside=self._outside,
            outside_failed=self._outside_failed,
            latencies=[second.whole() for second in slices],
            failed=[second.failed for second in slices],
            arrivals=arrivals,
        )

    def _inside(self, start_ns: int) -> bool:
        return self.opens_ns <= start_ns < self._closes_ns

    def _number(self, start_ns: int) -> int:
        """Return the number of the window's second that contains this time; -1 outside."""
        return (start_ns - self.opens_ns) // _SECOND_NS if self._inside(start_ns) else -1

    def _second(self, start_ns: int, end_ns: int) -> Second | None:
        """Add the time inside the window to `busy_s`; return the second of the window in which the exchange started."""
        inside_from = max(start_ns, self.opens_ns)
        inside_to = min(end_ns, self._closes_ns)
        if inside_to > inside_from:
            self._busy_ns += inside_to - inside_from
        if not self._inside(start_ns):
            return None
        return self._seconds.setdefault(self._number(start_ns), Second())


def _histogram(latencies_ns: array[int]) -> Histogram:
    made = Histogram()
    made.record_many(latencies_ns)
    return made
