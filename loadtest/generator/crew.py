"""The generator processes of one run, and how their users divide the load: connections, rate, exchanges in flight.

At the start of a run the master, or the only process, notes the number of users and the order in which locust hands
them out: to one worker after the other, and around again. So the worker at place p of w gets the users number p, p + w,
p + 2w and so on, and each process can number its own users without asking. The notes travel with the options. A user
that starts later, because the number of users was raised or a worker came or went, gets a number that was used before;
the sums may then be off by one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadtest.generator.account import Account

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
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
                    "completed": sum(second.n for second in account.latencies),
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
