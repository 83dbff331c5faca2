"""What the lab sees of processes and sockets from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from loadtest import proc, sockdiag
from loadtest.child import Child, ChildError
from loadtest.probe import Probe
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 20


def child(tmp_path: Path, *argv: str, cpus: tuple[int, ...] = ()) -> Child:
    return Child(argv, log=tmp_path / "log", cwd=tmp_path, env=os.environ, cpus=cpus)


def line_in(path: Path) -> str:
    eventually(lambda: path.read_text().endswith("\n"), within_s=DEADLINE_S)
    return path.read_text().strip()


def test_a_full_accept_queue_its_limit_and_its_drops_are_seen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert sockdiag.listening(port) is None
        listener.listen(2)
        assert sockdiag.listening(port) == sockdiag.Listening(depth=0, limit=2, drops=0)
        clients = [socket.create_connection(("127.0.0.1", port), DEADLINE_S) for _ in range(3)]
        with socket.socket() as late:
            late.setblocking(False)
            late.connect_ex(("127.0.0.1", port))
            seen = sockdiag.listening(port)
        for client in clients:
            client.close()
    assert seen is not None
    assert (seen.depth, seen.limit) == (3, 2)  # the kernel lets one more in than the limit says
    assert seen.drops >= 1


def test_cpu_of_children_counts_while_they_live_and_after_they_died(tmp_path: Path) -> None:
    source = """
import os, sys, time
def burn(until):
    while time.process_time() < until: pass
for _ in range(2):
    if (pid := os.fork()) == 0:
        burn(0.15); os._exit(0)
    os.waitpid(pid, 0)
if os.fork() == 0:
    burn(0.15); print("burnt", flush=True); sys.stdin.read(); time.sleep(60)
time.sleep(60)
"""
    with child(tmp_path, sys.executable, "-c", source) as parent:
        probe = Probe(parent.pid)
        start_ns = time.monotonic_ns()
        probe.sample()
        line_in(tmp_path / "log")
        probe.sample()
        usage = probe.usage(start_ns, time.monotonic_ns())
        pss = probe.pss_bytes()
    assert usage is not None
    assert usage.processes == 2
    assert usage.cpu_ns * usage.covered >= 0.4e9  # three times 0.15 s, less what the clock's ticks cut off
    assert pss is not None
    assert pss > 1_000_000


def test_a_window_with_too_few_samples_has_no_usage() -> None:
    probe = Probe(os.getpid())
    probe.sample()
    assert probe.usage(0, time.monotonic_ns()) is None
    assert Probe(None).usage(0, 1) is None
    assert Probe(None).pss_bytes() is None


def test_stopping_leaves_no_process_of_the_session(tmp_path: Path) -> None:
    source = "trap '' TERM; (trap '' TERM; sleep 60) & (setsid true; sleep 61) & echo up; wait; sleep 62"
    with child(tmp_path, "sh", "-c", source) as shell:
        line_in(tmp_path / "log")
        assert len(proc.session(shell.pid)) >= 2
        assert shell.stop(grace_s=0.1) is False
        assert proc.session(shell.pid) == []


def test_a_leader_that_is_gone_already_does_not_hide_what_it_left(tmp_path: Path) -> None:
    with child(tmp_path, "sh", "-c", "sleep 60 & echo $!") as shell:
        assert shell.ended(DEADLINE_S)
        left = int(line_in(tmp_path / "log"))
        assert proc.session(shell.pid) == [left]
        assert shell.status() == "exited with status 0"
        assert shell.stop(grace_s=0) is True
        assert proc.session(shell.pid) == []


def test_the_affinity_is_the_childs_and_ours_stays(tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    cpu = min(ours)
    with child(tmp_path, sys.executable, "-c", "import os; print(os.sched_getaffinity(0))", cpus=(cpu,)) as other:
        assert other.ended(DEADLINE_S)
        assert other.tail() == f"{{{cpu}}}"
    assert os.sched_getaffinity(0) == ours


def test_what_cannot_be_started_is_said_and_changes_nothing(tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    with pytest.raises(ChildError, match="cannot start 'no-such-command'"):
        child(tmp_path, "no-such-command", cpus=(min(ours),))
    assert os.sched_getaffinity(0) == ours


def test_a_process_that_is_gone_reads_as_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert proc.stat(gone.pid) is None
    assert (proc.cpu_ns(gone.pid), proc.threads(gone.pid), proc.pss_bytes(gone.pid)) == (0, [], None)
