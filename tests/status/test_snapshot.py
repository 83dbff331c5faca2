"""A text in shared memory: a reader gets a whole one, whatever the writer does or has come to."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from prefork.status.snapshot import SharedSnapshot


def test_the_last_text_is_read() -> None:
    shared = SharedSnapshot(100)
    with pytest.raises(ValueError, match="no whole text"):
        shared.read()
    for number in range(1, 6):
        shared.write(b"x" * number)
        assert shared.read() == (number, b"x" * number)
        assert shared.version == number
    shared.write(b"")
    assert shared.read() == (6, b"")


def test_a_text_that_does_not_fit_leaves_the_last_one() -> None:
    shared = SharedSnapshot(3)
    shared.write(b"abc")
    with pytest.raises(ValueError, match="4 bytes"):
        shared.write(b"abcd")
    assert shared.read() == (1, b"abc")


def test_a_torn_text_is_not_taken_for_one() -> None:
    shared = SharedSnapshot(100)
    shared.write(b"good")
    at = shared._memory.find(b"good")
    shared._memory[at : at + 4] = b"evil"
    with pytest.raises(ValueError, match="no whole text"):
        shared.read()


def test_the_heartbeat() -> None:
    shared = SharedSnapshot(1)
    assert shared.heartbeat_ns == 0
    shared.heartbeat_ns = 1 << 50
    assert shared.heartbeat_ns == 1 << 50
    assert shared.reader_ns == 0
    shared.reader_ns = 1 << 49
    assert (shared.reader_ns, shared.heartbeat_ns, shared.version) == (1 << 49, 1 << 50, 0)


SCRIPT = """
    import os, signal, time
    from prefork.status.snapshot import SharedSnapshot

    shared = SharedSnapshot(1 << 16)
    shared.write(b"0" * 9)
    writer = os.fork()
    if not writer:
        number = 0
        while True:
            number += 1
            shared.write(str(number % 10).encode() * (number * 7919 % 60000))
    versions = set()
    give_up = time.monotonic() + 40
    while len(versions) < 100 and time.monotonic() < give_up:  # however late the writer gets a processor
        version, text = shared.read()
        assert not text.strip(text[:1]), text
        versions.add(version)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    version, text = shared.read()
    assert not text.strip(text[:1]) and shared.read() == (version, text)
    print(len(versions) == 100 or "the writer did not write")
"""


def test_while_another_process_writes_and_after_it_was_killed() -> None:
    """In a process of its own, as it forks."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True\n", done.stderr
