"""What a load generator process keeps of its exchanges.

The window. It opens `warmup_s` after the first spawn and closes after `window_s`, at the latest when the run begins to
stop, before the users hear of it. Processes that run side by side so have windows of one length, in which all of them
are at work, though they begin and end some ms apart.
- Latency is of the exchanges that came due in the window, whenever they ended: one that ends during the drain counts
  with its whole latency, as cutting it off would hide the slow ones.
- Throughput is of what was done in the window, whenever it came due. In the open model these are the exchanges that
  ended in it: what a slow server ends later must not pass for a rate that it kept. In the closed model an exchange
  counts with the part of its time that lies in the window. So it does not matter that each client does a whole number
  of exchanges; where clients are in step, one exchange more or less of each would be an error of a fifth.
- In the open model an exchange starts when it is due, and its latency counts from there; the service time counts from
  the send. In the closed model the two are one.
- An exchange that the end of the drain cuts off is `censored`: its latency is unknown, it is in no histogram.
- `busy_s` is the time that all exchanges, failed, censored and warm-up ones too, spent INSIDE the window, whenever they
  started: busy_s / duration_s is the mean number in flight, for Little's law.
- The window is divided into seconds, and one of more than 512 s into slices of 2, 4, 8 s and so on. So a run of hours
  needs no more memory than one of minutes. The last slice may be shorter, or up to a tenth longer.
- What began `outside` the window is only counted: with it, the sums are those of locust's own tables.

The readable users record exchanges one by one, the fast engine records batches that have been made into a histogram
already. The recorder is only in place when a result file was asked for.

A process makes an Account (account.py); the accounts of several processes (`--processes`, workers) are merged, each
with its own clock.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from loadtest.generator.account import Account, Arrivals, Slice, joined, slices_of
from prefork.status.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.generator.link import Batch

CONNECT = "CONNECT"
"""locust's request type for a connect that is timed on its own. One that fails counts as the exchange it prevented."""

_SECOND_NS = 1_000_000_000
_NEVER = 1 << 63
_MOST_SLICES = 512
_AT_ONCE = 1000  # latencies to make into a histogram together, which is several times cheaper than one by one


class Recorder:
    """Records the exchanges of one run. All times are CLOCK_MONOTONIC (on Linux also `time.perf_counter_ns`), in ns."""

    def __init__(self, *, first_spawn_ns: int, warmup_s: float, window_s: float = 0.0) -> None:
        """`window_s`: the length of the window; 0 for until the run begins to stop."""
        self.opens_ns = first_spawn_ns + round(warmup_s * 1e9)
        self._closes_ns = self.opens_ns + round(window_s * 1e9) if window_s else _NEVER  # at the latest
        self._width_ns = _SECOND_NS
        self._slices: dict[int, Slice] = {}
        self._recent = Slice()  # to which these latencies belong, that are not in its histogram yet
        self._latencies_ns: list[int] = []
        self._failures: Counter[str] = Counter()
        self._ended_failed = 0
        self._done = 0.0  # exchanges that went well, each with the part of its time that lies in the window
        self._busy_ns = 0
        self._longest_ns = 0  # of the exchanges that were in flight in the window
        self._censored = 0
        self._outside = 0
        self._outside_failed = 0
        self._gap_ns: int | None = None  # the longest that the fast engine did not look at its sockets
        self._service = Histogram()  # the open model: service times
        self._lag: Histogram | None = None  # and how late each arrival was seen; None in the closed model
        self._missed = 0
        self._retried = 0

    def completed(self, start_ns: int, end_ns: int) -> None:
        """Record an exchange that succeeded."""
        inside_ns = self._spend(start_ns, end_ns)
        if self._inside(end_ns):
            self._slice(end_ns).ended += 1
        if inside_ns:
            self._done += inside_ns / (end_ns - start_ns)
        elif start_ns == end_ns:
            self._done += self._inside(start_ns)
        if not self._inside(start_ns):
            self._outside += 1
            return
        found = self._slice(start_ns)
        if found is not self._recent or len(self._latencies_ns) >= _AT_ONCE:
            self._flush()
            self._recent = found
        self._latencies_ns.append(end_ns - start_ns)

    def completed_batch(self, batch: Batch, latency: Histogram) -> None:
        """Record a batch of exchanges that succeeded, with their latencies, and the engine's longest gap."""
        starts_ns = batch.start_ns
        ends_ns = batch.end_ns
        if starts_ns:
            # They were noted as they ended. All starts are between these two, and to look at each would take longer.
            earliest_ns = ends_ns[0] - latency.max_ns
            latest_ns = ends_ns[-1]
            if latest_ns < self.opens_ns:
                self._outside += len(ends_ns)
            elif self._inside(earliest_ns) and self._inside(latest_ns) and self._together(earliest_ns, latest_ns):
                found = self._slice(latest_ns)
                found.latency.merge(latency)
                found.ended += latency.n
                self._done += latency.n
                self._busy_ns += latency.sum_ns
                self._longest_ns = max(self._longest_ns, latency.max_ns)
            else:
                self._completed_apart(starts_ns, ends_ns)
        looked_ns = max(batch.gap_at_ns, self.opens_ns)
        gap_ns = min(batch.gap_at_ns + batch.gap_ns, self._closes_ns) - looked_ns
        self._gap_ns = max(self._gap_ns or 0, gap_ns)
        self._schedule(batch)
        for start_ns in batch.retried_ns:
            self.retried(start_ns)

    def _completed_apart(self, starts_ns: Sequence[int], ends_ns: Sequence[int]) -> None:
        """Record a batch that does not lie in one slice: what lies in the window together, the rest one by one.

        One by one takes ten times as long, in which no socket is looked at: 5 ms for each 1,000 exchanges, once a
        second. A rate of 4,000/s then saw 1 in 100 arrivals 1.5 ms late.
        """
        opens_ns, closes_ns = self.opens_ns, self._closes_ns
        inside = [(start, end) for start, end in zip(starts_ns, ends_ns, strict=True) if opens_ns <= start]
        if ends_ns[-1] >= closes_ns:
            inside = [(start, end) for start, end in inside if end < closes_ns]
        if len(inside) < len(ends_ns):
            for start_ns, end_ns in zip(starts_ns, ends_ns, strict=True):
                if end_ns < opens_ns:
                    self._outside += 1
                elif start_ns < opens_ns or end_ns >= closes_ns:
                    self.completed(start_ns, end_ns)
        if not inside:
            return
        self._slice(inside[-1][1])  # which may make slices wider
        width_ns = self._width_ns
        latencies_ns: dict[int, list[int]] = {}
        for start_ns, end_ns in inside:
            latencies_ns.setdefault((start_ns - opens_ns) // width_ns, []).append(end_ns - start_ns)
        for number, found in latencies_ns.items():
            self._slices.setdefault(number, Slice()).latency.record_many(found)
            self._busy_ns += sum(found)
            self._longest_ns = max(self._longest_ns, *found)
        for number, count in Counter([(end_ns - opens_ns) // width_ns for _, end_ns in inside]).items():
            self._slices.setdefault(number, Slice()).ended += count
        self._done += len(inside)

    def _schedule(self, batch: Batch) -> None:
        """Record what only the open model has: service times, arrivals, missed ones."""
        if not batch.offered and not batch.due_ns:
            return
        opens_ns, closes_ns = self.opens_ns, self._closes_ns
        times = zip(batch.due_ns, batch.sent_ns, batch.end_ns, strict=bool(batch.due_ns))
        self._service.record_many(
            [end_ns - sent_ns for due_ns, sent_ns, end_ns in times if opens_ns <= due_ns < closes_ns]
        )
        if batch.offered:
            self._lag = self._lag or Histogram()
            self._lag.record_many([lag_ns for due_ns, lag_ns in batch.offered if opens_ns <= due_ns < closes_ns])
        self._missed += sum(self._inside(due_ns) for due_ns in batch.missed_ns)

    def failed(self, start_ns: int, end_ns: int, cause: str) -> None:
        """Record an exchange that failed."""
        self._spend(start_ns, end_ns)
        self._ended_failed += self._inside(end_ns)
        if self._inside(start_ns):
            self._slice(start_ns).failed += 1
            self._failures[cause] += 1
        else:
            self._outside_failed += 1

    def censored(self, start_ns: int, end_ns: int) -> None:
        """Record an exchange that the end of the run cut off."""
        self._spend(start_ns, end_ns)
        self._censored += self._inside(start_ns)

    def retried(self, start_ns: int) -> None:
        """Record that an exchange is sent once more; it is still one exchange, whatever becomes of it."""
        self._retried += self._inside(start_ns)

    def close(self, now_ns: int) -> None:
        """Close the window, if it is still open: the run begins to stop.

        Exchanges that started before may still end.
        """
        self._closes_ns = min(self._closes_ns, now_ns)

    def account(self, *, connections: int, cpu_s: float, wall_s: float) -> Account:
        """Return what was recorded. The window is closed, and all exchanges have ended or were cut off."""
        assert self._closes_ns != _NEVER, "the window is still open"
        self._flush()
        length_ns = max(0, self._closes_ns - self.opens_ns)
        slices = [Slice() for _ in range(slices_of(length_ns / 1e9, self._width_ns / 1e9))]
        for number, found in self._slices.items():
            slices[min(number, len(slices) - 1)].add(found)
        arrivals = None
        if self._lag is not None:
            arrivals = Arrivals(offered=self._lag.n, missed=self._missed, lag=self._lag, service=self._service)
        return Account(
            connections=connections,
            cpu_s=cpu_s,
            wall_s=wall_s,
            gap_ns=self._gap_ns,
            opens_ns=self.opens_ns,
            duration_s=length_ns / 1e9,
            done=self._done,
            busy_s=self._busy_ns / 1e9,
            longest_ns=self._longest_ns,
            censored=self._censored,
            retried=self._retried,
            failures=self._failures,
            ended_failed=self._ended_failed,
            outside=self._outside,
            outside_failed=self._outside_failed,
            width_s=self._width_ns / 1e9,
            slices=slices,
            arrivals=arrivals,
        )

    def _inside(self, at_ns: int) -> bool:
        return self.opens_ns <= at_ns < self._closes_ns

    def _spend(self, start_ns: int, end_ns: int) -> int:
        """Add the part of an exchange's time that lies in the window to `busy_s`; return it, in ns."""
        inside_ns = max(0, min(end_ns, self._closes_ns) - max(start_ns, self.opens_ns))
        if inside_ns:
            self._busy_ns += inside_ns
            self._longest_ns = max(self._longest_ns, end_ns - start_ns)
        return inside_ns

    def _together(self, first_ns: int, last_ns: int) -> bool:
        """Return whether two times in the window belong to one slice."""
        return (first_ns - self.opens_ns) // self._width_ns == (last_ns - self.opens_ns) // self._width_ns

    def _slice(self, at_ns: int) -> Slice:
        """Return the slice of the window that contains this time."""
        while (number := (at_ns - self.opens_ns) // self._width_ns) >= _MOST_SLICES:
            self._flush()
            self._width_ns *= 2
            self._slices = dict(enumerate(joined([self._slices.get(n, Slice()) for n in range(_MOST_SLICES)], 2)))
        return self._slices.setdefault(number, Slice())

    def _flush(self) -> None:
        self._recent.latency.record_many(self._latencies_ns)
        self._latencies_ns = []
