"""The shared memory: rows that do not touch each other, sums, and what a row can be told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.address import format_sockaddr
from prefork.status.scoreboard import (
    ACCEPTED,
    BEGAN,
    CELLS,
    CLOSED,
    COUNTERS,
    CUT,
    GIVEN,
    HEARTBEAT,
    HISTOGRAM,
    OLDEST,
    PID,
    QUEUE,
    QUEUE_BUCKETS,
    RECEIVED,
    SINCE,
    Scoreboard,
    Work,
    held,
    publish_held,
    request_text,
    row_prefix,
    row_text,
)

LARGEST = 2**63 - 1
NOW = time.monotonic_ns()


def test_a_new_board_is_empty() -> None:
    board = Scoreboard(groups=3, threads=2)
    for group in range(3):
        reading = board.read(group)
        assert (reading.since_ns, reading.serving, reading.held) == (0, "", 0)
        assert reading.counters == dict.fromkeys(COUNTERS, 0)


@pytest.mark.parametrize(("group", "thread"), [(-1, 0), (3, 0), (0, -1), (0, 2), (3, 2)])
def test_there_are_no_other_rows(group: int, thread: int) -> None:
    with pytest.raises(IndexError, match=f"row {group}.{thread} of 3.2"):
        Scoreboard(groups=3, threads=2).row(group, thread)


def test_every_cell_of_every_row_is_its_own() -> None:
    board = Scoreboard(groups=3, threads=2)
    rows = [board.row(group, thread) for group in range(3) for thread in range(2)]
    value = 0
    for cells in (row.cells for row in rows):
        for index in range(len(cells)):
            value += 1
            cells[index] = value
    found = [cell for row in rows for cell in row.cells]
    assert found == list(range(1, value + 1))


def test_two_rows_never_share_a_cache_line() -> None:
    assert CELLS * 8 % 64 == 0


def test_counters_are_summed_over_the_threads_of_a_group_only() -> None:
    board = Scoreboard(groups=3, threads=2)
    for group in range(3):
        for thread in range(2):
            cells = board.row(group, thread).cells
            for number, cell in enumerate(COUNTERS.values()):
                cells[cell] = 1000 * group + 100 * thread + number
    reading = board.read(1)
    assert reading.counters == {name: 2100 + 2 * number for number, name in enumerate(COUNTERS)}
    assert len({PID, SINCE, *COUNTERS.values()}) == 2 + len(COUNTERS)


def test_what_is_held_is_what_came_and_has_neither_ended_nor_been_given() -> None:
    board = Scoreboard(groups=1, threads=2)
    for thread in range(2):
        cells = board.row(0, thread).cells
        cells[ACCEPTED], cells[RECEIVED], cells[CLOSED], cells[CUT], cells[GIVEN] = 10, 4, 6, 2, 1
        assert held(cells) == 5
    assert board.read(0).held == 10
    publish_held(cells, 3)
    assert (held(cells), cells[CLOSED], cells[CUT]) == (3, 8, 2)
    publish_held(cells, 0, CUT)
    assert (held(cells), cells[CLOSED], cells[CUT]) == (0, 8, 5)
    cells[ACCEPTED] = 0  # an application has written over it
    assert held(cells) == 0
    publish_held(cells, 2)
    assert (held(cells), cells[ACCEPTED], cells[CLOSED]) == (2, 2, 0)


@given(sinces=st.lists(st.just(0) | st.integers(-LARGEST, LARGEST), min_size=1, max_size=5))
def test_the_oldest_unit_of_work_counts_with_its_client(sinces: list[int]) -> None:
    board = Scoreboard(groups=1, threads=len(sinces))
    for thread, since in enumerate(sinces):
        row = board.row(0, thread)
        row.serve(f"peer {thread}")
        row.cells[SINCE] = since
    reading = board.read(0)
    busy = [since for since in sinces if 0 < since <= NOW]
    assert reading.since_ns == min(busy, default=0)
    if busy:
        assert sinces[int(reading.serving.removeprefix("peer "))] == reading.since_ns
    else:
        assert reading.serving == ""


def test_clearing_forgets_one_owner() -> None:
    board = Scoreboard(groups=2, threads=2)
    for group in range(2):
        for thread in range(2):
            row = board.row(group, thread)
            row.serve("127.0.0.1:40312")
            row.cells[SINCE] = row.cells[PID] = 7
    board.clear(0)
    assert not any(cell for thread in range(2) for cell in board.row(0, thread).cells)
    assert board.read(1).serving == "127.0.0.1:40312"


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@given(peers=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=100), min_size=1, max_size=3))
def test_the_last_client_is_the_one_served_cut_to_the_row(peers: list[str]) -> None:
    board = Scoreboard(groups=2, threads=1)
    row = board.row(0)
    for peer in peers:
        row.serve(peer)
    last = peers[-1]
    shown = printable(last.rstrip("\0"))  # which fill up the place
    if len(last.encode()) <= 192:
        assert row.peer == shown
    else:
        assert shown.startswith(row.peer.rstrip("\ufffd"))
    assert not any(board.row(1).cells)


@given(method=st.sampled_from(["GET", "POST", "PROPFIND"]), target=st.text("/abc?%", max_size=300))
def test_a_request_stands_behind_its_client_cut_to_the_row(method: str, target: str) -> None:
    board = Scoreboard(groups=2, threads=1)
    row = board.row(0)
    row.serve("x" * 192)
    row.note(request_text(row_prefix("127.0.0.1:40312"), method, target.encode()))
    assert row.peer == f"127.0.0.1:40312 {method} {target}"[:192]
    row.note(request_text(row_prefix("unix:/" + "y" * 300), method, target.encode()))
    assert f" {method} " in row.peer
    assert not any(board.row(1).cells)


def test_the_latest_slow_requests_are_kept_by_row_and_told_by_group() -> None:
    board = Scoreboard(groups=2, threads=2)
    for number in range(20):
        row = board.row(0, number % 2)
        if number % 3:
            row.serve(f"request {number}")
            row.add_slow(number)
        else:
            row.add_slow(number, row_text(f"request {number}"))
    found = board.slow(0)
    assert [entry.text for entry in found] == [f"request {number}" for number in range(12, 20)]
    assert [entry.took_ns for entry in found] == list(range(12, 20))
    assert found == sorted(found, key=lambda entry: entry.ended_ns)
    assert board.slow(1) == []
    board.clear(0)
    assert board.slow(0) == []


def test_what_a_row_is_told_stays_in_its_places() -> None:
    row = Scoreboard(groups=1, threads=1).row(0)
    row.serve("\x01" * 300)
    for _ in range(9):
        row.add_slow(2**62, b"\x01" * 192)
    row.cells[QUEUE : QUEUE + QUEUE_BUCKETS] = memoryview(bytes(8 * QUEUE_BUCKETS)).cast("q")
    assert not any(row.cells[cell] for cell in (SINCE, *COUNTERS.values()))
    assert not any(row.cells[HISTOGRAM:])


def test_work_is_told_of_those_who_have_some() -> None:
    board = Scoreboard(groups=1, threads=3)
    board.row(0, 0).serve("idle")
    for thread, cell in ((1, ACCEPTED), (2, SINCE)):
        board.row(0, thread).serve(f"peer {thread}")
        board.row(0, thread).cells[cell] = 5
    assert board.work(0) == [
        Work(thread=1, since_ns=0, unit_ns=0, held=5, text="peer 1"),
        Work(thread=2, since_ns=5, unit_ns=5, held=0, text="peer 2"),
    ]


@pytest.mark.parametrize(
    ("heartbeat", "sinces", "judged"),
    [
        (0, (0, 0), 0),
        (0, (5, 0), 0),  # not ready yet, or nobody is served any more
        (7, (0, 0), 7),
        (7, (5, 0), 5),
        (7, (0, 5), 5),
        (7, (9, 0), 9),  # a call in a turn that has lasted since 7
        (7, (9, 5), 5),
    ],
)
def test_the_timeout_counts_from_the_oldest_unit_or_from_what_was_last_seen_of_the_process(
    heartbeat: int, sinces: tuple[int, int], judged: int
) -> None:
    board = Scoreboard(groups=1, threads=2)
    board.row(0).cells[HEARTBEAT] = heartbeat
    for thread, since in enumerate(sinces):
        board.row(0, thread).cells[SINCE] = since
    assert board.read(0).judged_ns == judged


def test_what_an_event_loop_serves_is_told_but_not_judged() -> None:
    board = Scoreboard(groups=1, threads=1)
    cells = board.row(0).cells
    cells[HEARTBEAT], cells[OLDEST], cells[BEGAN] = 9, 5, 7
    reading = board.read(0)
    assert (reading.since_ns, reading.unit_ns, reading.judged_ns) == (5, 0, 9)
    (work,) = board.work(0)
    assert (work.since_ns, work.unit_ns) == (5, 0)


def test_a_loop_has_the_oldest_and_what_it_began_last() -> None:
    board = Scoreboard(groups=2, threads=1)
    row = board.row(1)
    assert (board.begun(1), board.last(1)) == ((0, ""), ())
    row.memory[row.latest_place] = row_text("young")
    row.cells[BEGAN] = 7
    assert (board.read(1).since_ns, board.read(1).serving) == (7, "young"), "no beat has named anybody yet"
    row.serve("old")
    row.cells[OLDEST] = 5
    assert (board.read(1).since_ns, board.read(1).serving) == (5, "old")
    assert (board.begun(1), board.last(1)) == ((7, "young"), ("young",))
    row.cells[BEGAN] = 0
    assert (board.begun(1), board.last(1)) == ((0, ""), ("young",))


def test_a_unix_client_may_have_any_name() -> None:
    """Its path need not be UTF-8; the row must take it, or a client could end the worker."""
    row = Scoreboard(groups=1, threads=1).row(0)
    row.serve(format_sockaddr(socket.AF_UNIX, "/run/caf\udce9.sock"))
    assert row.peer.startswith("unix:/run/caf")
    row.serve(format_sockaddr(socket.AF_UNIX, os.fsencode("\0abstract\udcff")))
    assert "abstract" in row.peer


def test_a_child_writes_what_its_parent_reads() -> None:
    script = """
        import os
        from prefork.status.scoreboard import ACCEPTED, SINCE, Scoreboard
        from prefork.core.process import spawn

        board = Scoreboard(groups=2, threads=1)

        def child():
            row = board.row(1)
            row.serve("127.0.0.1:40312")
            row.cells[SINCE] = 5
            row.cells[ACCEPTED] += 1
            return 0

        assert os.waitpid(spawn(child), 0)[1] == 0
        reading = board.read(1)
        assert (reading.since_ns, reading.serving, reading.counters["accepted"]) == (5, "127.0.0.1:40312", 1)
        assert board.read(0).since_ns == 0
    """
    subprocess.run([sys.executable, "-c", dedent(script)], check=True, timeout=30)
