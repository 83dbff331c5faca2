"""How a configuration's workers shared the work, and where its exchanges were while they were in flight. Pure.

Shares are taken by the requests that the server counted for each worker; where it told nothing, by their CPU time.

Little's law on both ends: an exchange that is in flight for its client is with a worker, or waits in the accept queue,
or is elsewhere: in the kernel's hands, or not yet seen by a generator that is busy. The three counts come from three
witnesses (the generator, the server, the kernel). Where they leave more than TOLERANCE unexplained, or the server has
more than all clients together, a reader must know. An exchange is a connection for this, so it is left out where
clients keep connections. It is left out, too, where the kernel had to count for the server: that lists connections
first and looks for their processes then, and some of those that live for a few ms are gone by then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from loadtest.analysis.inference import busiest_to_least, jain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadtest.data.records import Client, Round, Signals, Worker

REQUESTS = "requests"
CPU = "CPU"
TOLERANCE = 0.05  # of what the clients have in flight
_SLACK = 0.5  # connections: means of a few looks are not finer
CONNECTION_EACH = ("talkback", "nap")
_UNEVEN = 1.5  # times its fair share of the connections
_UNEVEN_BY = 4  # and so many more than that share


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How workers shared the work: medians over rounds. None is "not known"."""

    workers: int
    by: str  # REQUESTS or CPU
    jain: float | None  # of several workers
    busiest_to_least: float | None  # None too when the least had nothing
    in_flight: float | None  # at the clients, mean
    in_workers: float | None  # of those, with a worker
    in_queue: float | None  # waiting to be accepted
    elsewhere: float | None  # neither; below 0 when the server has more than these clients
    held_least: float | None = None  # connections that the worker with the fewest had, at a time
    held_most: float | None = None  # and the one with the most
    uneven: str = ""  # what is to be said of that

    @property
    def doubt(self) -> str:
        """A line that says what the three counts leave unexplained; empty when they agree."""
        if self.elsewhere is None or self.in_flight is None:
            return ""
        if abs(self.elsewhere) <= max(TOLERANCE * self.in_flight, _SLACK):
            return ""
        if self.elsewhere < 0:
            return (
                f"the server counts {-self.elsewhere:.1f} connections more than these clients have: "
                "it has others, or a count is wrong"
            )
        return (
            f"{self.elsewhere:.1f} of {self.in_flight:.1f} exchanges in flight were neither with a worker nor in the "
            "accept queue: in the kernel's hands, or the generator's"
        )


def sharing(rounds: Sequence[Round]) -> Sharing | None:
    """Summarise rounds of one configuration; None when their workers are not known."""
    seen = [(done.client, done.signals, done.signals.workers) for done in rounds if done.client and done.signals]
    known = [(client, signals, workers) for client, signals, workers in seen if workers]
    if not known:
        return None
    if all(len(workers) == 1 and workers[0].requests is None for _, _, workers in known):
        return None  # there is nobody to share with, and both ends are not known either
    by = REQUESTS if all(_counted(workers) for _, _, workers in known) else CPU
    shares = [_shares(workers, by) for _, _, workers in known if len(workers) > 1]
    ends = [found for client, signals, workers in known if (found := _both_ends(client, signals, workers))]
    in_flight, in_workers, in_queue, elsewhere = zip(*ends, strict=True) if ends else ((), (), (), ())
    return Sharing(
        workers=max(len(workers) for _, _, workers in known),
        by=by,
        jain=_median(map(jain, shares)),
        busiest_to_least=_median(map(busiest_to_least, shares)),
        in_flight=_median(in_flight),
        in_workers=_median(in_workers),
        in_queue=_median(in_queue),
        elsewhere=_median(elsewhere),
        held_least=_median(min(held) for held in _held(known)),
        held_most=_median(max(held) for held in _held(known)),
        uneven=_usual(
            "" if client.scenario in CONNECTION_EACH else unevenly_held(workers) for client, _, workers in known
        ),
    )


def _held(known: Sequence[tuple[Client, Signals, tuple[Worker, ...]]]) -> list[list[float]]:
    """Return the connections held by each worker, of the rounds where they are known."""
    found = [[worker.connections for worker in workers] for _, _, workers in known]
    return [[count for count in held if count is not None] for held in found if None not in held]


def _usual(texts: Iterable[str]) -> str:
    """Return a text of the rounds if most of them have one."""
    found = list(texts)
    some = [text for text in found if text]
    return some[-1] if len(some) > len(found) / 2 else ""


def unevenly_held(workers: Sequence[Worker]) -> str:
    """Say how many connections the worker with the most holds, if it is far more than its share; else nothing."""
    held = [worker.connections for worker in workers if worker.connections is not None]
    if len(held) < len(workers) or len(held) < 2:
        return ""
    most, fair = max(held), sum(held) / len(held)
    if most < max(_UNEVEN * fair, fair + _UNEVEN_BY):
        return ""
    return f"{most:.0f} of {sum(held):.0f} connections were held by one of {len(held)} workers"


def _counted(workers: Iterable[Worker]) -> bool:
    return all(worker.requests is not None for worker in workers)


def _shares(workers: Iterable[Worker], by: str) -> list[float]:
    found = [worker.requests if by == REQUESTS else worker.cpu_ns for worker in workers]
    return [] if None in found else [float(share) for share in found if share is not None]


def _both_ends(client: Client, signals: Signals, workers: Sequence[Worker]) -> tuple[float, ...] | None:
    """Return the mean number of exchanges in flight: at the clients, with workers, in the accept queue, elsewhere."""
    held = [worker.connections for worker in workers]
    if client.scenario not in CONNECTION_EACH or not _counted(workers) or None in held or signals.queue is None:
        return None
    in_flight = client.busy_s / client.duration_s
    in_queue = signals.queue.depth_mean
    in_workers = sum(count for count in held if count is not None)
    return in_flight, in_workers, in_queue, in_flight - in_workers - in_queue


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    middle = median(known) if known else math.inf
    return middle if math.isfinite(middle) else None
