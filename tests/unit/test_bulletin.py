"""A text in shared memory: always one that was written, whole, whatever the writer is doing or has come to."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from prefork.status.snapshot import Bulletin


def test_the_last_text_is_read() -> None:
    board = Bulletin(100)
    with pytest.raises(ValueError, match="no whole text"):
        board.read()
    for number in range(1, 6):
        board.write(b"x" * number)
        assert board.read() == (number, b"x" * number)
        assert board.turn == number
    board.write(b"")
    assert board.read() == (6, b"")


def test_a_text_that_does_not_fit_leaves_the_last_one() -> None:
    board = Bulletin(3)
    board.write(b"abc")
    with pytest.raises(ValueError, match="4 bytes"):
        board.write(b"abcd")
    assert board.read() == (1, b"abc")


def test_a_torn_text_is_not_taken_for_one() -> None:
    board = Bulletin(100)
    board.write(b"good")
    at = board._memory.find(b"good")
    board._memory[at : at + 4] = b"evil"
    with pytest.raises(ValueError, match="no whole text"):
        board.read()


def test_the_beat() -> None:
    board = Bulletin(1)
    assert board.beaten_ns == 0
    board.beat(1 << 50)
    assert board.beaten_ns == 1 << 50


SCRIPT = """
    import os, signal, time
    from prefork.status.snapshot import Bulletin

    board = Bulletin(1 << 16)
    board.write(b"0" * 9)
    writer = os.fork()
    if not writer:
        number = 0
        while True:
            number += 1
            board.write(str(number % 10).encode() * (number * 7919 % 60000))
    turns = set()
    give_up = time.monotonic() + 40
    while len(turns) < 100 and time.monotonic() < give_up:  # however late the writer gets a processor
        turn, text = board.read()
        assert not text.strip(text[:1]), text
        turns.add(turn)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    turn, text = board.read()
    assert not text.strip(text[:1]) and board.read() == (turn, text)
    print(len(turns) == 100 or "the writer did not write")
"""


def test_while_another_process_writes_and_after_it_was_killed() -> None:
    """In a process of its own, as it forks."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True\n", done.stderr
