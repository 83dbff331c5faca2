"""What the master knows of its workers, with pids that belong to nobody."""

from __future__ import annotations

from prefork.master.roster import Roster, WorkerHandle


def handle(pid: int, *, slot: int = 0, group: int = 0, **state: float) -> WorkerHandle:
    """A worker of generation 1, pending unless `ready_s` is given."""
    return WorkerHandle(pid=pid, slot=slot, generation=1, group=group, spawned_s=100.0, **state)  # type: ignore[arg-type]


def roster_of(*workers: WorkerHandle) -> Roster:
    roster = Roster()
    for worker in workers:
        roster.add(worker)
    return roster


def test_the_life_of_a_worker() -> None:
    worker = handle(7)
    assert (worker.pending, worker.serving) == (True, False)
    worker.ready_s = 101.0
    assert (worker.pending, worker.serving) == (False, True)
    worker.retiring_s = 102.0
    assert (worker.pending, worker.serving) == (False, False)


def test_a_worker_is_named_alike_everywhere() -> None:
    assert handle(4242, slot=2).identity == {"worker": 2, "gen": 1, "pid": 4242}
    assert list(handle(4242).identity) == ["worker", "gen", "pid"]


def test_a_worker_that_was_reaped_is_removed() -> None:
    worker = handle(7)
    roster = roster_of(worker, handle(8))
    assert roster.remove(7) is worker
    assert list(roster.workers) == [8]


def test_the_workers_of_a_slot_are_those_that_stay_oldest_first() -> None:
    old, new = handle(9, slot=1), handle(3, slot=1)
    roster = roster_of(handle(1, slot=0), old, new, handle(5, slot=1, ready_s=1.0, retiring_s=2.0))
    assert roster.in_slot(1) == [old, new]
    assert roster.in_slot(2) == []


def test_who_serves() -> None:
    roster = roster_of(
        handle(1), handle(2, ready_s=1.0), handle(3, ready_s=1.0), handle(4, ready_s=1.0, retiring_s=2.0)
    )
    assert roster.serving() == 2


def test_a_group_of_rows_is_free_once_its_owner_is_gone() -> None:
    roster = roster_of(handle(1, group=0), handle(2, group=2, retiring_s=1.0))
    assert roster.free_group(4) == 1
    roster.add(handle(3, group=1))
    assert roster.free_group(4) == 3
    assert roster.free_group(3) is None
    roster.remove(1)
    assert roster.free_group(3) == 0


def test_workers_may_leave_while_the_roster_is_walked() -> None:
    roster = roster_of(*(handle(pid) for pid in range(1, 5)))
    assert [roster.remove(worker.pid) for worker in roster] == [handle(pid) for pid in range(1, 5)]
    assert not roster.workers
