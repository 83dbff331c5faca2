"""What generator processes recorded: sent from one to another, merged, made into the result document.

Processes that run side by side have a window each, from when they were told to begin until they were told to end, some
ms apart. Merged, exchanges are added up, second by second, over the mean of these windows. A process that joined late,
by the clock of the one that merges, or left early adds what it did; the window is that of those who were there.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefork.status.histogram import Histogram

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping, Sequence


SCHEMA = 2
_SCRAP = 0.1  # of a slice, at the end of a window, is no slice of its own: a rate over some ms says nothing
_TOGETHER_S = 0.5  # windows that end further apart were not all there to the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The exchanges of the open model that came due in the window."""

    offered: int  # all of them
    missed: int  # those that never started
    lag: Histogram  # how late the generator saw each of them
    service: Histogram  # of those that went well: the time from the send

    def to_message(self) -> dict[str, Any]:
        """Return the arrivals as plain numbers and lists."""
        plain = {"offered": self.offered, "missed": self.missed}
        return {**plain, "lag": self.lag.to_json(), "service": self.service.to_json()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Arrivals:
        """Read the arrivals that `to_message` made."""
        histograms = {name: Histogram.from_json(message[name]) for name in ("lag", "service")}
        return cls(offered=message["offered"], missed=message["missed"], **histograms)

    @classmethod
    def merged(cls, parts: Sequence[Arrivals]) -> Arrivals:
        """Add up several schedules."""
        return cls(
            offered=sum(part.offered for part in parts),
            missed=sum(part.missed for part in parts),
            lag=_merged(part.lag for part in parts),
            service=_merged(part.service for part in parts),
        )


@dataclass(slots=True)
class Slice:
    """A second of the window, or several."""

    latency: Histogram = field(default_factory=Histogram)  # of what came due in it and went well
    failed: int = 0  # of what came due in it
    ended: int = 0  # went well and ended in it, whenever it came due

    def add(self, other: Slice) -> None:
        """Add the exchanges of another slice."""
        self.latency.merge(other.latency)
        self.failed += other.failed
        self.ended += other.ended

    def to_message(self) -> list[Any]:
        """Return the slice as plain numbers and lists."""
        return [self.latency.to_json(), self.failed, self.ended]

    @classmethod
    def from_message(cls, message: Sequence[Any]) -> Slice:
        """Read the slice that `to_message` made."""
        latency, failed, ended = message
        return cls(Histogram.from_json(latency), failed, ended)


def slices_of(duration_s: float, width_s: float = 1.0) -> int:
    """Return the number of slices of a window. The last may be shorter, or up to a tenth longer."""
    return max(math.ceil(duration_s / width_s - _SCRAP), int(duration_s > 0))


def joined(slices: Iterable[Slice], count: int) -> list[Slice]:
    """Join each `count` slices that follow one another to one."""
    made: list[Slice] = []
    for number, found in enumerate(slices):
        if number % count == 0:
            made.append(Slice())
        made[-1].add(found)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one process recorded in its window, or several processes together."""

    connections: int  # users when the window closed
    cpu_s: float  # CPU time from the first spawn to the window's end
    wall_s: float  # the same span by the clock
    gap_ns: int | None  # the longest time that sockets were not looked at; None for users that wait for one each
    opens_ns: int  # when the window opened, CLOCK_MONOTONIC; of several processes on one machine: on average
    duration_s: float  # length of the window
    done: float  # exchanges that went well, each with the part of its time that lies in the window
    busy_s: float
    longest_ns: int  # the longest exchange that was in flight in the window, whenever it came due
    censored: int
    ended_failed: int  # exchanges that failed in the window, whenever they came due
    retried: int  # exchanges that were sent once more
    outside: int  # exchanges that went well and began before or after the window
    outside_failed: int  # also, that failed
    failures: Counter[str]
    width_s: float  # of a slice
    slices: list[Slice]  # of the window
    arrivals: Arrivals | None  # None in the closed model
    began_s: float = 0.0  # when this process began, after the start of the run

    def to_message(self) -> dict[str, Any]:
        """Return the account as plain lists and numbers, as one process sends it to another."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "failures": dict(self.failures),
            "slices": [found.to_message() for found in self.slices],
            "arrivals": self.arrivals.to_message() if self.arrivals else None,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Account:
        """Read the account that `to_message` made."""
        values = {
            **message,
            "failures": Counter(message["failures"]),
            "slices": [Slice.from_message(found) for found in message["slices"]],
            "arrivals": Arrivals.from_message(found) if (found := message["arrivals"]) else None,
        }
        return cls(**values)

    @classmethod
    def merged(cls, accounts: Sequence[Account]) -> Account:
        """Merge the accounts of processes that ran side by side."""
        first_s = min(account.began_s for account in accounts)
        width_s = max(account.width_s for account in accounts)
        late_s = [round(account.began_s - first_s) for account in accounts]
        late = [round(seconds / width_s) for seconds in late_s]  # in slices
        ends_s = [seconds + account.duration_s for seconds, account in zip(late_s, accounts, strict=True)]
        stayed_s = [end for end in ends_s if end > max(ends_s) - _TOGETHER_S]
        duration_s = sum(stayed_s) / len(stayed_s)
        slices = [Slice() for _ in range(slices_of(duration_s, width_s))]
        for slot, account in zip(late, accounts, strict=True):
            for number, found in enumerate(joined(account.slices, round(width_s / account.width_s)), slot):
                slices[min(number, len(slices) - 1)].add(found)
        gaps_ns = [account.gap_ns for account in accounts if account.gap_ns is not None]
        arrivals = [account.arrivals for account in accounts if account.arrivals]
        return cls(
            connections=sum(account.connections for account in accounts),
            cpu_s=sum(account.cpu_s for account in accounts),
            gap_ns=max(gaps_ns, default=None),
            arrivals=Arrivals.merged(arrivals) if arrivals else None,
            wall_s=max(account.wall_s for account in accounts),
            opens_ns=sum(account.opens_ns for account in accounts) // len(accounts),
            duration_s=duration_s,
            done=sum(account.done for account in accounts),
            busy_s=sum(account.busy_s for account in accounts),
            longest_ns=max(account.longest_ns for account in accounts),
            censored=sum(account.censored for account in accounts),
            ended_failed=sum(account.ended_failed for account in accounts),
            retried=sum(account.retried for account in accounts),
            outside=sum(account.outside for account in accounts),
            outside_failed=sum(account.outside_failed for account in accounts),
            began_s=first_s,
            failures=sum((account.failures for account in accounts), Counter()),
            width_s=width_s,
            slices=slices,
        )

    @property
    def latency(self) -> Histogram:
        """The latencies of all exchanges that came due in the window and went well."""
        return _merged(found.latency for found in self.slices)

    @property
    def rate_per_s(self) -> float:
        """The throughput in the window: what ended in it, or in the closed model what was done of it in the window."""
        done = sum(found.ended for found in self.slices) if self.arrivals else self.done
        return done / self.duration_s if self.duration_s else 0.0

    def to_result(self) -> dict[str, Any]:
        """Return the measured part of the result document, for `json.dumps`."""
        latency = self.latency
        # The closed model sends as soon as it may: both clocks start together.
        arrivals = self.arrivals.to_message() if self.arrivals else None
        service = arrivals.pop("service") if arrivals else latency.to_json()
        return {
            "connections": self.connections,
            "window_start_ns": self.opens_ns,
            "duration_s": self.duration_s,
            "rate_per_s": self.rate_per_s,
            "ended": sum(found.ended for found in self.slices),
            "ended_failed": self.ended_failed,
            "completed": latency.n,
            "failures": dict(self.failures.most_common()),
            "censored": self.censored,
            "retried": self.retried,
            "outside": {"completed": self.outside, "failed": self.outside_failed},
            "latency": latency.to_json(),
            "service_time": service,
            "arrivals": arrivals,
            "per_second": [
                {
                    "t_s": round(number * self.width_s),
                    "span_s": self.width_s
                    if number + 1 < len(self.slices)
                    else self.duration_s - number * self.width_s,
                    "ended": found.ended,
                    "completed": found.latency.n,
                    "failed": found.failed,
                    "p50_ns": found.latency.quantile(0.5) if found.latency.n else None,
                    "p99_ns": found.latency.quantile(0.99) if found.latency.n else None,
                }
                for number, found in enumerate(self.slices)
            ],
            "busy_s": self.busy_s,
            "longest_ns": self.longest_ns,
        }


_NUMBERS = (
    "connections",
    "cpu_s",
    "wall_s",
    "gap_ns",
    "opens_ns",
    "duration_s",
    "width_s",
    "done",
    "busy_s",
    "longest_ns",
    "censored",
    "ended_failed",
    "retried",
    "outside",
    "outside_failed",
)


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


# --- The generator processes of one run, and how their users divide the load: connections, rate, exchanges in flight.
#
# At the start of a run the master, or the only process, notes the number of users and the order in which locust hands
# them out: to one worker after the other, and around again. So the worker at place p of w gets the users number p, p +
# w, p + 2w and so on, and each process can number its own users without asking. The notes travel with the options. A
# user that starts later, because the number of users was raised or a worker came or went, gets a number that was used
# before; the sums may then be off by one.


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessAccounts:
    """The accounts of all processes of a run, by process name; empty without a result file."""

    accounts: Mapping[str, Account]
    lost: tuple[str, ...] = ()  # those that ended without telling what they had measured

    @property
    def account(self) -> Account | None:
        """The accounts of all processes, merged; None when there is none."""
        return Account.merged(list(self.accounts.values())) if self.accounts else None

    def to_result(self) -> dict[str, Any]:
        """Return the part of the result document that lists the processes."""
        return {
            "processes": [
                {
                    "name": name,
                    "began_s": account.began_s,
                    "duration_s": account.duration_s,
                    "connections": account.connections,
                    "completed": account.latency.n,
                    "failed": account.failures.total(),
                    "cpu_s": account.cpu_s,
                }
                for name, account in self.accounts.items()
            ],
            "lost": list(self.lost),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One of `of` equal shares; the remainder of what cannot be divided goes to the first ones."""

    index: int
    of: int

    def part(self, whole: int) -> int:
        """Return this user's share of a whole number. The shares of all users add up to it."""
        return whole // self.of + (self.index < whole % self.of)

    def first_ns(self, now_ns: int, rate_per_s: float) -> int:
        """Return when this user's arrivals begin, in ns: users take turns by the clock of the machine."""
        turn = math.ceil((now_ns * rate_per_s / 1e9 - self.index) / self.of)
        return round((turn * self.of + self.index) * 1e9 / rate_per_s)


def note(options: argparse.Namespace, *, users: int, workers: Sequence[str]) -> None:
    """Store the number of users, and the workers in the order of their turns, in the options of the run."""
    options.users_in_all = max(1, users)
    options.workers_in_turn = list(workers)


def shares(options: argparse.Namespace, worker: str) -> Iterator[Share]:
    """Yield the shares of this worker's users, without end, from what `note` stored."""
    workers = options.workers_in_turn
    users = options.users_in_all
    place = workers.index(worker) if worker in workers else 0
    numbers = itertools.count(place, max(1, len(workers)))
    return (Share(index=number % users, of=users) for number in numbers)
