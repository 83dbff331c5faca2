"""--max-memory: who is marked, and when. The figures are passed in."""

from __future__ import annotations

from prefork.master.loop import MEMORY_EVERY_S, MEMORY_SAMPLES, MemoryLimit
from prefork.master.roster import Roster, WorkerHandle


def roster(*pids: int) -> Roster:
    made = Roster()
    for slot, pid in enumerate(pids):
        made.add(WorkerHandle(pid=pid, slot=slot, generation=1, group=slot, spawned_s=0.0, ready_s=0.0))
    return made


def test_a_worker_is_marked_after_several_samples_in_a_row():
    workers = roster(1, 2)
    limit = MemoryLimit(limit=100, rss=lambda _pid: 300, pss=lambda pid: 150 if pid == 1 else 90)
    for sample in range(MEMORY_SAMPLES):
        assert workers.workers[1].stale is None
        assert limit.check(workers, sample * MEMORY_EVERY_S) == (sample + 1) * MEMORY_EVERY_S
    assert workers.workers[1].stale == "max-memory"
    assert workers.workers[2].stale is None


def test_a_peak_that_passes_marks_nobody():
    workers = roster(1)
    sizes = iter([150, 150, 90, 150, 150])
    limit = MemoryLimit(limit=100, rss=lambda _pid: 300, pss=lambda _pid: next(sizes))
    for sample in range(5):
        limit.check(workers, sample * MEMORY_EVERY_S)
    assert workers.workers[1].stale is None


def test_the_costly_figure_is_read_only_of_who_may_be_above():
    asked: list[int] = []
    limit = MemoryLimit(limit=100, rss=lambda pid: 50 if pid == 1 else 150, pss=asked.append)
    limit.check(roster(1, 2), 0.0)
    assert asked == [2]


def test_a_look_before_its_time_changes_nothing():
    asked: list[int] = []
    limit = MemoryLimit(limit=100, rss=lambda _pid: 150, pss=asked.append)
    workers = roster(1)
    limit.check(workers, 10.0)
    assert limit.check(workers, 10.5) == 10.0 + MEMORY_EVERY_S
    assert asked == [1]


def test_without_a_limit_nobody_is_looked_at():
    assert MemoryLimit(limit=0).check(roster(1), 0.0) == float("inf")
