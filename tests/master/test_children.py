"""The table of the master's children, with real ones. In a process of its own, as it reaps any child."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

PRELUDE = """
import os, select, signal
from prefork.core.log import open_log
from prefork.core.process import spawn
from prefork.master.children import Children

def ended(pid):
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)
    assert poll.poll(5000), "it still runs"

children = Children(open_log())
exits = []
"""


def run(script: str) -> list[str]:
    """Run the script, return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + dedent(script)], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.splitlines()


def test_each_exit_is_told_once_to_who_asked_for_it() -> None:
    assert run("""
        for code in (3, 4):
            pid = spawn(lambda: code)
            children.register(pid, lambda child, owner=code: exits.append((owner, child.code)))
            ended(pid)
        children.reap()
        children.reap()
        print(sorted(exits))
    """) == ["[(3, 3), (4, 4)]"]


def test_a_stranger_is_reaped_and_nobody_is_told() -> None:
    """An orphan that this process got as init, or as a subreaper."""
    assert run("""
        stranger = spawn(lambda: 4)
        ended(stranger)
        children.reap()
        try:
            os.waitpid(stranger, 0)
        except ChildProcessError:
            print("reaped", exits)
    """) == ["reaped []"]


def test_who_is_killed_is_gone_at_once_and_not_told() -> None:
    assert run("""
        pids = [spawn(lambda: signal.pause() or 0) for _ in range(3)]
        for pid in pids:
            children.register(pid, exits.append)
        children.kill(pids[:2])
        children.reap()
        print(exits, os.waitpid(-1, os.WNOHANG))
        children.kill(pids[2:])
        children.reap()
        print(exits)
    """) == ["[] (0, 0)", "[]"]
