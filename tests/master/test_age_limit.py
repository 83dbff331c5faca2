"""--max-age: who is marked, and when. The clock is passed in."""

from __future__ import annotations

from prefork.master.policy import AGE_SPREAD, AgeLimit
from prefork.master.roster import Roster, WorkerHandle

NEVER = float("inf")


def roster(*pids: int) -> Roster:
    made = Roster()
    for slot, pid in enumerate(pids):
        made.add(WorkerHandle(pid=pid, slot=slot, generation=1, group=slot, spawned_s=0.0, ready_s=0.0))
    return made


def test_each_worker_has_an_age_of_its_own_which_is_never_above_the_limit() -> None:
    workers, drawn = roster(1, 2), iter([0.0, 1.0])
    limit = AgeLimit(limit_s=100, jitter=lambda: next(drawn))
    first_s = 100 * (1 - AGE_SPREAD)
    assert limit.check(workers, 5.0) == first_s
    assert [worker.stale for worker in workers] == [None, None]
    assert limit.check(workers, first_s) == 100
    assert [worker.stale for worker in workers] == [None, "max-age"]
    assert limit.check(workers, 100.0) == NEVER
    assert [worker.stale for worker in workers] == ["max-age", "max-age"]


def test_the_age_counts_from_when_a_worker_is_ready() -> None:
    workers = roster(1)
    worker = workers.workers[1]
    worker.ready_s = None
    limit = AgeLimit(limit_s=10, jitter=lambda: 0.0)
    assert limit.check(workers, 500.0) == NEVER
    worker.ready_s = 500.0
    assert limit.check(workers, 505.0) == 510.0


def test_who_is_marked_or_retires_already_keeps_its_reason() -> None:
    workers = roster(1, 2)
    workers.workers[1].stale, workers.workers[2].retiring_s = "max-memory", 1.0
    assert AgeLimit(limit_s=10).check(workers, 50.0) == NEVER
    assert workers.workers[1].stale == "max-memory"


def test_without_a_limit_nobody_gets_too_old() -> None:
    assert AgeLimit(limit_s=0).check(roster(1), 1e9) == NEVER
