"""Signals that nobody should send: they end neither the master nor its silence, and stay as they were for others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from prefork.core.signals import FATAL, TABLE, UNEXPECTED, name
from tests.support.client import exchange
from tests.support.server import ROOT, clean_environment

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve

pytestmark = pytest.mark.slow

# What stops a process, goes on, or is ignored by default; and SIGPIPE, which Python ignores.
OTHERS = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGPIPE,
}  # fmt: skip

OF_LIBC = {32, 33}  # which Python knows nothing of


def test_every_signal_that_ends_a_process_is_in_the_table_or_named_or_fatal() -> None:
    assert set(signal.valid_signals()) == UNEXPECTED | TABLE.keys() | FATAL | OTHERS
    assert not UNEXPECTED & (TABLE.keys() | FATAL | OTHERS)
    assert {signal.SIGALRM, signal.SIGIO, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGSYS, signal.SIGTRAP} <= UNEXPECTED


@pytest.mark.smoke
def test_the_master_names_each_and_serves_on(serve: Serve) -> None:
    server = serve("--workers", "2")
    workers = server.worker_pids()
    for signum in sorted(UNEXPECTED | {signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT} | OF_LIBC):
        os.kill(server.pid, signum)
    for signum in UNEXPECTED:
        server.wait_log(f'WARNING .*signal ignored signal="?{name(signum)}"?$')
    assert server.worker_pids() == workers
    assert not OF_LIBC & ignored(workers.pop()), "programs that a worker starts would inherit that"
    assert exchange(server.address, b"hi\n")
    assert server.stop() == 0


def ignored(pid: int) -> set[int]:
    """The signals that a process ignores."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigIgn:")[2].split()[0], 16)
    return {bit + 1 for bit in range(64) if mask >> bit & 1}


def test_a_flood_of_one_is_one_line_a_second(serve: Serve) -> None:
    server = serve("--workers", "1")
    for _ in range(2000):
        os.kill(server.pid, signal.SIGALRM)
    server.signal(signal.SIGTTIN)
    server.wait_log("spawned .*cause=scale")
    assert 1 <= server.log.count("signal ignored") <= 10
    server.stop()


@pytest.mark.parametrize("signum", sorted(FATAL))
def test_a_crash_of_the_master_is_no_silent_death(serve: Serve, signum: signal.Signals) -> None:
    server = serve("--workers", "1", expected_exit=-signum)
    os.kill(server.pid, signum)
    assert server.wait_exit() == -signum
    assert "Fatal Python error: " in server.log
    assert "prefork/master/loop.py" in server.log


def caught(pid: int) -> int:
    """The mask of the signals that have a handler, or are ignored."""
    text = Path(f"/proc/{pid}/status").read_text()
    masks = [int(text.partition(f"{key}:")[2].split()[0], 16) for key in ("SigCgt", "SigIgn")]
    return masks[0] | masks[1]


@pytest.mark.parametrize(
    "args", [(), ("--preload",), ("--admin", "127.0.0.1:0"), ("--reload",)], ids=["worker", "template", "admin", "all"]
)
def test_its_children_have_the_defaults(serve: Serve, args: tuple[str, ...]) -> None:
    server = serve("--workers", "1", *args)
    ours = {signal.SIGXFSZ, signal.SIGRTMIN + 1, signal.SIGRTMIN + 2}  # of Python, and of each worker
    for pid in server.worker_pids():
        mask = caught(pid)
        assert not [name(signum) for signum in UNEXPECTED - ours if mask >> (signum - 1) & 1]


def test_the_caller_from_python_gets_its_handlers_back(app: AppWriter) -> None:
    source = """
        import faulthandler, os, signal, prefork

        def mine(*_): print("mine", flush=True)

        signal.signal(signal.SIGALRM, mine)
        def handle(conn): pass
        open("hooks.py", "w").write("import os, signal\\ndef worker_started(w): os.kill(os.getppid(), signal.SIGTERM)")
        assert prefork.serve(handle, bind="127.0.0.1:0", workers=1, hooks="hooks.py", control="none") == 0
        assert signal.getsignal(signal.SIGALRM) is mine
        assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
        assert not faulthandler.is_enabled()
        signal.raise_signal(signal.SIGALRM)
    """
    path = Path(app(dedent(source)).rpartition(":")[0])
    env = clean_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        [sys.executable, str(path)], check=False, capture_output=True, text=True, timeout=60, cwd=path.parent, env=env
    )
    assert (done.returncode, done.stdout) == (0, "mine\n"), done.stderr
