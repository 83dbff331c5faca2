"""Whether the workers of a server share connections evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection

    from tests.support.server import RunningServer

ROUNDS = 6  # a busy machine holds up workers between two turns; an unfair server fails every round


def even(held: Collection[int]) -> bool:
    """Whether nobody holds more than the mean and 2, or a quarter of it: beyond that, connections change hands."""
    mean = sum(held) / len(held)
    return max(held) <= mean + max(2, mean / 4)


def by_turns(served: Collection[int]) -> bool:
    """Whether the workers have served connections that did not stay one after the other."""
    return max(served) <= 1.2 * min(served)


def share_evenly(
    server: RunningServer,
    how: Callable[[RunningServer, int], Counter[int]],
    count: int,
    *,
    fair: Callable[[Collection[int]], bool],
) -> None:
    """Fail unless the workers share so many connections evenly, in one of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        served = how(server, count)
        assert set(served) == server.worker_pids()
        rounds.append(sorted(served.values()))
        if fair(served.values()):
            print(f"{how.__name__}: {rounds}")
            return
    raise AssertionError(f"not {fair.__name__} in any round: {rounds}")
