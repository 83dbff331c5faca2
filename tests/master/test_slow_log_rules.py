"""The slow log: when the master looks, whom it asks, and what it writes, on a clock of the test's own."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from prefork.core.log import Log
from prefork.master.roster import Roster, WorkerHandle
from prefork.master.slow_log import SlowLog
from prefork.master.workers import Message
from prefork.status.scoreboard import HEARTBEAT, OLDEST, SINCE, Scoreboard, heartbeat_s

SLOW_S = 0.5
STACK = '  File "/app.py", line 3, in app\n    sleep()\n'


class Lines:
    """Stands for the log."""

    def __init__(self) -> None:
        self.written: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.written.append((event, {name: value for name, value in fields.items() if value is not None}))


class Scene:
    """Two workers of two threads, and who has been asked."""

    def __init__(self, slow_s: float = SLOW_S) -> None:
        self.board = Scoreboard(groups=2, threads=2)
        self.roster = Roster()
        self.workers = [
            WorkerHandle(pid=100 + group, slot=group, generation=1, group=group, spawned_s=1.0, ready_s=2.0)
            for group in range(2)
        ]
        for worker in self.workers:
            self.roster.add(worker)
        self.asked: list[int] = []
        self.lines = Lines()
        self.slow_log = SlowLog(
            slow_s=slow_s, timeout_s=30, roster=self.roster, board=self.board, log=cast("Log", self.lines),
            ask=lambda worker: self.asked.append(worker.pid),
        )  # fmt: skip

    def work(self, group: int, thread: int, since_s: float, text: str = "a client") -> None:
        row = self.board.row(group, thread)
        row.serve(text)
        row.cells[SINCE] = round(since_s * 1e9)

    def answer(self, group: int, now_s: float, text: str) -> None:
        message = Message(self.workers[group], "stacks", {"kind": "stacks", "text": text, "current": ""}, now_s)
        self.slow_log.message_received(message)


def test_off_it_never_looks() -> None:
    scene = Scene(0)
    scene.work(0, 0, 1.0)
    assert scene.slow_log.check(100.0) == float("inf")
    assert not scene.asked


def test_who_is_slow_is_asked_once_and_its_own_thread_is_shown() -> None:
    scene = Scene()
    scene.work(1, 1, 10.0, "127.0.0.1:40000 GET /reports/42")
    assert scene.slow_log.check(10.2) == 10.5
    assert scene.slow_log.check(10.4) == 10.5
    wake_s = scene.slow_log.check(10.5)
    assert scene.asked == [101]
    assert wake_s == 10.75
    scene.answer(1, 10.6, f"thread serve-0:\n  other\nthread serve-1:\n{STACK}thread MainThread:\n  main\n")
    assert scene.lines.written == [
        ("slow request", {
            "worker": 1, "gen": 1, "pid": 101, "serving": "127.0.0.1:40000 GET /reports/42", "elapsed": "0.60s",
            "detail": STACK,
        }),
    ]  # fmt: skip
    scene.slow_log.check(30.0)
    assert scene.asked == [101], "one for each request"
    scene.work(1, 1, 30.0)
    scene.slow_log.check(30.6)
    assert scene.asked == [101, 101]


def test_who_does_not_answer_is_said_to_be_so() -> None:
    scene = Scene()
    scene.work(0, 0, 10.0)
    scene.slow_log.check(10.5)
    scene.slow_log.check(10.8)
    ((event, fields),) = scene.lines.written
    assert event == "slow request"
    assert fields["reason"] == "no answer in 250 ms: C code holds the GIL, or the worker is stopped"
    scene.answer(0, 11.0, f"thread serve-0:\n{STACK}")
    assert len(scene.lines.written) == 1


def test_the_stack_of_another_request_is_not_shown() -> None:
    scene = Scene()
    scene.work(0, 0, 10.0)
    scene.slow_log.check(10.5)
    scene.work(0, 0, 10.55)
    scene.answer(0, 10.6, f"thread serve-0:\n{STACK}")
    ((_, fields),) = scene.lines.written
    assert fields["reason"] == "it ended before its stack was taken"
    assert not fields["detail"]


def test_one_line_a_second_and_the_others_are_counted() -> None:
    scene = Scene()
    for group in range(2):
        for thread in range(2):
            scene.work(group, thread, 10.0)
    scene.slow_log.check(10.5)
    assert scene.asked == [100]
    scene.answer(0, 10.6, f"thread serve-0:\n{STACK}")
    said = {"serving": "x", "elapsed_s": 0.7, "stack": STACK, "also": 4}
    scene.slow_log.message_received(Message(scene.workers[1], "slow", said, 10.9))
    scene.slow_log.message_received(Message(scene.workers[1], "slow", said, 11.7))
    assert [fields.get("also") for _, fields in scene.lines.written] == [3, 9]


def test_a_loop_is_judged_by_its_turns() -> None:
    scene = Scene()
    row = scene.board.row(0, 0)
    row.cells[HEARTBEAT] = round(10.0e9)
    row.cells[OLDEST] = round(1.0e9)  # its oldest request, which waits for something
    limit_s = SLOW_S + heartbeat_s(30, SLOW_S)
    scene.slow_log.check(10.0 + limit_s - 0.01)
    assert not scene.asked
    scene.slow_log.check(10.0 + limit_s)
    assert scene.asked == [100]
    answer = {"text": f"thread MainThread:\n{STACK}", "current": "a GET /b"}
    scene.slow_log.message_received(Message(scene.workers[0], "stacks", answer, 10.8))
    assert scene.lines.written[0][0] == "event loop blocked"
    assert scene.lines.written[0][1]["serving"] == "a GET /b"


def test_a_worker_that_stands_still_while_it_is_idle_is_told_like_a_loop() -> None:
    scene = Scene()
    scene.board.row(0, 0).cells[HEARTBEAT] = round(10.0e9)
    scene.slow_log.check(11.0)
    assert scene.asked == [100]
    scene.slow_log.check(11.3)
    ((event, fields),) = scene.lines.written
    assert (event, fields["elapsed"]) == ("event loop blocked", "1.30s")


@pytest.mark.parametrize("seed", range(20))
def test_nobody_who_is_slow_goes_unnoticed_and_nobody_else_is_asked(seed: int) -> None:
    """However units begin and end, the master that wakes when it is told to sees each slow one as it gets slow."""
    draw = random.Random(seed)
    scene = Scene()
    units = []  # (thread, beginning, end)
    for thread in range(2):
        at_s = 10.0
        while at_s < 40.0:
            began_s = at_s + draw.uniform(0.01, 3)
            at_s = began_s + draw.choice([0.1, 0.49, 0.6, 5.0])
            units.append((thread, began_s, at_s))
    begin = [(began_s, thread, began_s) for thread, began_s, _ in units]
    end = [(ended_s, thread, 0.0) for thread, _, ended_s in units]
    noticed: set[tuple[int, int]] = set()
    wake_s = scene.slow_log.check(10.0)
    for at_s, thread, since_s in sorted(begin + end):
        while wake_s < at_s:
            now_s, wake_s = wake_s, scene.slow_log.check(wake_s)
            assert wake_s > now_s
            noticed |= {(key[1], began_ns) for key, began_ns in scene.slow_log._seen.items()}
        scene.work(0, thread, since_s)
    assert noticed == {(thread, round(began * 1e9)) for thread, began, ended in units if ended - began > SLOW_S}
