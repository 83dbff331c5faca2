"""What a load generator process keeps of its exchanges, and the result document that is made of it.

The window. It opens `warmup_s` after the first spawn and closes when the run begins to stop, before the users hear of
it.
- An exchange belongs to the window in which it STARTS. One that starts in the window and ends during the drain counts
  with its whole latency: cutting it off would hide the slow ones, and in the closed model each completion starts the
  next exchange, so starts per second are completions per second.
- An exchange that the end of the drain cuts off is `censored`: its latency is unknown, it is in no histogram.
- `busy_s` is the time that all exchanges, failed, censored and warm-up ones too, spent INSIDE the window, whenever they
  started: busy_s / duration_s is the mean number in flight, for Little's law.
- `per_second` counts by the second of the window in which exchanges started; the last may be a part of one (span_s).

The hot path appends one integer to an array; histograms are made once, after the run. This costs 8 bytes a sample, so
that the recorder is only in place when a result file was asked for.

A process makes an Account; the accounts of several processes (`--processes`, workers) are merged, each with its own
clock.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefork.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1
CONNECT = "CONNECT"
"""locust's request type for a connect that is timed on its own. One that fails counts as the exchange it prevented."""

_SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class Second:
    """The exchanges that started in one second of the window."""

    latencies_ns: array[int] = field(default_factory=lambda: array("Q"))  # of those that went well
    failed: int = 0


class Recorder:
    """Records the exchanges of one run. All times are CLOCK_MONOTONIC (on Linux also `time.perf_counter_ns`), in ns."""

    def __init__(self, *, first_spawn_ns: int, warmup_s: float) -> None:
        self.opens_ns = first_spawn_ns + round(warmup_s * 1e9)
        self._closes_ns: int | None = None
        self._seconds: dict[int, Second] = {}
        self._failures: Counter[str] = Counter()
        self._busy_ns = 0
        self._censored = 0

    def completed(self, start_ns: int, end_ns: int) -> None:
        """An exchange went well."""
        if second := self._second(start_ns, end_ns):
            second.latencies_ns.append(end_ns - start_ns)

    def failed(self, start_ns: int, end_ns: int, cause: str) -> None:
        """An exchange failed."""
        if second := self._second(start_ns, end_ns):
            second.failed += 1
            self._failures[cause] += 1

    def censored(self, start_ns: int, end_ns: int) -> None:
        """An exchange was cut off by the end of the run."""
        self._second(start_ns, end_ns)
        self._censored += 1

    def close(self, now_ns: int) -> None:
        """Close the window: the run begins to stop. What started before may still end."""
        self._closes_ns = now_ns

    def account(self, *, connections: int, cpu_s: float, wall_s: float) -> Account:
        """What was recorded, when the window is closed and all exchanges have ended or were cut off."""
        assert self._closes_ns is not None, "the window is still open"
        length_ns = max(0, self._closes_ns - self.opens_ns)
        slices = [self._seconds.get(number, Second()) for number in range(math.ceil(length_ns / _SECOND_NS))]
        return Account(
            connections=connections,
            cpu_s=cpu_s,
            wall_s=wall_s,
            opens_ns=self.opens_ns,
            duration_s=length_ns / 1e9,
            busy_s=self._busy_ns / 1e9,
            censored=self._censored,
            failures=self._failures,
            latencies=[_histogram(second.latencies_ns) for second in slices],
            failed=[second.failed for second in slices],
        )

    def _second(self, start_ns: int, end_ns: int) -> Second | None:
        """Count the time inside the window; return the second of the window that the exchange belongs to."""
        inside_from = max(start_ns, self.opens_ns)
        inside_to = end_ns if self._closes_ns is None else min(end_ns, self._closes_ns)
        if inside_to > inside_from:
            self._busy_ns += inside_to - inside_from
        if start_ns < self.opens_ns or (self._closes_ns is not None and start_ns >= self._closes_ns):
            return None
        return self._seconds.setdefault((start_ns - self.opens_ns) // _SECOND_NS, Second())


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one process, or several together, recorded."""

    connections: int  # users when the window closed
    cpu_s: float  # CPU time from the first spawn to the window's end
    wall_s: float  # the same span by the clock
    opens_ns: int  # when the window opened, CLOCK_MONOTONIC: the first one of several processes
    duration_s: float  # length of the window
    busy_s: float
    censored: int
    failures: Counter[str]
    latencies: list[Histogram]  # one for each second of the window
    failed: list[int]  # also

    def to_message(self) -> dict[str, object]:
        """The account as plain lists and numbers, as one process sends it to another."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "failures": dict(self.failures),
            "latencies": [histogram.to_json() for histogram in self.latencies],
            "failed": self.failed,
        }

    @classmethod
    def from_message(cls, message: dict[str, object]) -> Account:
        """The account that `to_message` made."""
        values: dict[str, object] = {
            **message,
            "failures": Counter(message["failures"]),  # type: ignore[call-overload]
            "latencies": [Histogram.from_json(found) for found in message["latencies"]],  # type: ignore[attr-defined]
        }
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def merged(cls, accounts: Sequence[Account]) -> Account:
        """The account of processes that ran side by side: their exchanges together, over the mean of their windows."""
        seconds = max(len(account.latencies) for account in accounts)
        latencies = [Histogram() for _ in range(seconds)]
        failed = [0] * seconds
        for account in accounts:
            for number, latency in enumerate(account.latencies):
                latencies[number].merge(latency)
                failed[number] += account.failed[number]
        return cls(
            connections=sum(account.connections for account in accounts),
            cpu_s=sum(account.cpu_s for account in accounts),
            wall_s=max(account.wall_s for account in accounts),
            opens_ns=min(account.opens_ns for account in accounts),
            duration_s=sum(account.duration_s for account in accounts) / len(accounts),
            busy_s=sum(account.busy_s for account in accounts),
            censored=sum(account.censored for account in accounts),
            failures=sum((account.failures for account in accounts), Counter()),
            latencies=latencies,
            failed=failed,
        )

    def to_result(self) -> dict[str, object]:
        """The measured part of the result document, for `json.dumps`."""
        latency = Histogram()
        for histogram in self.latencies:
            latency.merge(histogram)
        return {
            "connections": self.connections,
            "window_start_ns": self.opens_ns,
            "duration_s": self.duration_s,
            "completed": latency.n,
            "failures": dict(self.failures.most_common()),
            "censored": self.censored,
            "latency": latency.to_json(),
            "service_time": latency.to_json(),  # the closed model sends as soon as it may: both clocks start together
            "per_second": [
                {
                    "t_s": number,
                    "span_s": min(1.0, self.duration_s - number),
                    "completed": second.n,
                    "failed": failed,
                    "p50_ns": second.quantile(0.5) if second.n else None,
                    "p99_ns": second.quantile(0.99) if second.n else None,
                }
                for number, (second, failed) in enumerate(zip(self.latencies, self.failed, strict=True))
            ],
            "busy_s": self.busy_s,
        }


_NUMBERS = ("connections", "cpu_s", "wall_s", "opens_ns", "duration_s", "busy_s", "censored")


def _histogram(latencies_ns: array[int]) -> Histogram:
    made = Histogram()
    made.record_many(latencies_ns)
    return made
