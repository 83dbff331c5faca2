"""Whether the workers of a server share connections evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from tests.support.server import RunningServer

MOST_RATIO = 1.2
ROUNDS = 6  # a busy machine holds up workers between two turns; an unfair server fails every round


def share_evenly(server: RunningServer, how: Callable[[RunningServer, int], Counter[int]], count: int) -> None:
    """Fail unless the workers share so many connections evenly, in one of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        served = how(server, count)
        assert set(served) == server.worker_pids()
        rounds.append(sorted(served.values()))
        if max(served.values()) <= MOST_RATIO * min(served.values()):
            print(f"{how.__name__}: {rounds}")
            return
    raise AssertionError(f"busiest over least busy is above {MOST_RATIO} in each round: {rounds}")
