"""What other processes see of workers: whether they are busy, and how much, by the kind of their engine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import pytest

from prefork.config.config import resolve
from prefork.status.collect import FOLLOW_S, UNSERVED_S, Collector
from prefork.status.scoreboard import ACCEPTED, BUSY_NS, HEARTBEAT, OLDEST, SINCE, Scoreboard
from tests.status.test_server_state import state, worker

SECOND = 1_000_000_000


def seen(cells: dict[int, int], *, engine: str) -> tuple[str, float]:
    """State and busy_ratio of a worker that has been ready for 100 s."""
    board = Scoreboard(groups=8, threads=1)
    for cell, value in cells.items():
        board.row(7).cells[cell] = value
    collector = Collector(config=resolve("shop:app", {"workers": "1"}, {}), board=board, listeners=[])
    known = worker(pid=1 << 30, spawned_s=time.monotonic() - 101, ready_s=time.monotonic() - 100)
    (entry,) = collector.snapshot(state(workers=(known,), engine=engine, gone={})).document["workers"]
    return entry["state"], entry["busy_ratio"]


def ago(seconds: float) -> int:
    return time.monotonic_ns() - round(seconds * SECOND)


def test_a_thread_is_busy_with_what_it_has_in_hand() -> None:
    state, ratio = seen({SINCE: ago(40), BUSY_NS: 10 * SECOND, ACCEPTED: 1}, engine="blocking")
    assert (state, ratio) == ("BUSY", pytest.approx(0.5, abs=0.02))


def test_a_loop_whose_request_waits_is_not_busy_meanwhile() -> None:
    state, ratio = seen({OLDEST: ago(90), HEARTBEAT: ago(0.5), BUSY_NS: 10 * SECOND, ACCEPTED: 1}, engine="aio")
    assert (state, ratio) == ("BUSY", pytest.approx(0.1, abs=0.02))


def test_a_loop_that_is_stuck_is_busy_for_whomever() -> None:
    state, ratio = seen({HEARTBEAT: ago(40), BUSY_NS: 10 * SECOND, ACCEPTED: 1}, engine="aio")
    assert (state, ratio) == ("BUSY", pytest.approx(0.5, abs=0.02))


def test_a_loop_that_is_late_by_a_beat_is_not_stuck() -> None:
    assert seen({HEARTBEAT: ago(0.75), ACCEPTED: 1}, engine="aio") == ("IDLE", 0)


class Queue:
    """Stands for a listener: so many clients wait."""

    def __init__(self, slot: int | None = None) -> None:
        self.waiting = 0
        self.slot = slot  # of the worker whose queue it is

    def queue(self) -> tuple[int, int]:
        return self.waiting, 128


@pytest.mark.parametrize(("timeout", "limit_s"), [("30", 5.0), ("3", 3.0), ("0", 5.0)])
def test_clients_that_wait_and_nobody_accepts_make_it_unready(
    monkeypatch: pytest.MonkeyPatch, timeout: str, limit_s: float
) -> None:
    now_s = 5000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    board, queue, known = Scoreboard(groups=8, threads=1), Queue(), state(gone={0: {"accepted": 3}})
    config = resolve("shop:app", {"workers": "1", "timeout": timeout}, {})
    collector = Collector(config=config, board=board, listeners=cast("Any", [queue]))
    assert collector.unready(known) == ""
    now_s += 100
    queue.waiting = 2
    assert collector.tick(now_s, lambda: known) <= now_s + FOLLOW_S
    assert collector.unready(known).startswith("clients wait"), "seen by whoever asks after a long time"
    queue.waiting = 0
    assert collector.unready(known) == ""
    queue.waiting = 2
    now_s += limit_s - 0.1
    assert collector.unready(known) == ""
    now_s += 0.2
    assert collector.unready(known) == f"clients wait and nobody has accepted for {limit_s + 0.1:.1f} s"
    assert collector.unready(replace(known, stopping=True)) == "the server is stopping"
    board.row(7).cells[ACCEPTED] += 1
    assert collector.unready(known) == ""


def test_where_each_worker_has_a_queue_the_others_do_not_serve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    board, queues = Scoreboard(groups=8, threads=1), [Queue(0), Queue(1)]
    known = state(workers=(worker(slot=0, group=3), worker(slot=1, group=4)), gone={1: {"accepted": 3}})
    config = resolve("shop:app", {"workers": "2", "accept": "per-worker"}, {})
    collector = Collector(config=config, board=board, listeners=cast("Any", queues))
    queues[1].waiting = 1
    assert collector.unready(known) == ""
    now_s += UNSERVED_S
    board.row(3).cells[ACCEPTED] += 1
    assert collector.unready(known) == "clients wait and nobody has accepted for 5.0 s"
    board.row(4).cells[ACCEPTED] += 1
    assert collector.unready(known) == ""
