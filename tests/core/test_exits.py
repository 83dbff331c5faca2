"""Wait statuses in words, from processes that really ended so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from textwrap import dedent

import pytest

from prefork.core.process import Exit


def ended(script: str) -> Exit:
    """How a shell that ran `script` ended."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], {})
    return Exit.of_status(*os.waitpid(pid, 0))


@pytest.mark.parametrize("code", [0, 1, 3, 70, 255])
def test_an_exit_code(code: int) -> None:
    found = ended(f"exit {code}")
    assert (found.code, found.signum, found.clean) == (code, None, code == 0)
    assert str(found) == f"exit code {code}"
    assert found.pid > 0


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal(signum: signal.Signals) -> None:
    found = ended(f"kill -{int(signum)} $$")
    assert (found.code, found.signum, found.clean) == (None, signum, False)
    assert str(found) == signum.name


def test_a_signal_without_a_name() -> None:
    assert str(ended("kill -40 $$")) == "signal 40"


def test_statuses_are_decoded_as_the_system_does() -> None:
    for code in range(256):
        assert Exit.of_status(7, code << 8) == Exit(pid=7, code=code)
    for signum in range(1, 65):
        assert Exit.of_status(7, signum) == Exit(pid=7, signum=signum)
        assert Exit.of_status(7, signum | 0x80) == Exit(pid=7, signum=signum)


def test_reap_collects_all_that_have_exited_and_never_waits() -> None:
    """In a process of its own: it asks for any child."""
    script = """
        import os
        from prefork.core.process import reap

        assert reap({}) == []  # no children at all
        gate, gate_end = os.pipe()
        os.set_inheritable(gate, True)

        def child(script):
            return os.posix_spawn("/bin/sh", ["sh", "-c", script], {})

        waits = child(f"read line <&{gate}; exit 9")
        assert reap({}) == []  # one, and it lives
        gone = {child(f"exit {code}"): code for code in range(5)}
        for pid in gone:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until it has exited, and leave it to reap()
        assert {found.pid: found.code for found in reap({})} == gone
        assert reap({}) == []
        os.close(gate_end)
        os.waitid(os.P_PID, waits, os.WEXITED | os.WNOWAIT)
        assert [(found.pid, found.code) for found in reap({})] == [(waits, 9)]
        assert reap({}) == []
    """
    subprocess.run([sys.executable, "-c", dedent(script)], check=True, timeout=30)
