"""The fork, in scripts of their own: a process with threads, as this one may be, must not fork itself."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

SETUP = """
import atexit, errno, os, resource, signal, sys
from prefork.core.process import CHILD_CRASHED, spawn

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def mask():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def run(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a script that must end with 0; what it asserts is what is tested."""
    done = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", SETUP + dedent(script)],
        check=False,
        timeout=30,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        **({"capture_output": True} | options),
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_child_exits_with_what_it_returns_and_the_parent_gets_its_pid() -> None:
    run("""
        parent = os.getpid()
        for code in (0, 3, 255):
            pid = spawn(lambda: code if os.getppid() == parent else 99)
            assert pid > 0 and pid != parent
            assert end(pid) == code
    """)


def test_the_child_never_comes_back_into_the_parents_stack() -> None:
    done = run("""
        atexit.register(os.write, 1, b"atexit\\n")
        try:
            pid = spawn(lambda: 0)
        finally:
            os.write(1, b"finally\\n")
        assert end(pid) == 0
    """)
    assert done.stdout == "finally\natexit\n"


def test_a_child_that_raises_says_so_once_and_dies() -> None:
    done = run("""
        def fail():
            raise error

        for error in (ZeroDivisionError("over"), KeyboardInterrupt(), SystemExit(0)):
            assert end(spawn(fail)) == CHILD_CRASHED, error
    """)
    assert done.stderr.count("ZeroDivisionError: over") == 1


def test_a_child_dies_even_if_its_excepthook_fails() -> None:
    run("""
        def hook(*_):
            raise RuntimeError

        sys.excepthook = hook
        assert end(spawn(lambda: 1 // 0)) == CHILD_CRASHED
    """)


def test_what_was_buffered_is_written_once() -> None:
    done = run("""
        sys.stdout.write("parent|")  # not a terminal: stays in the buffer
        sys.stderr.write("error|")

        def child():
            sys.stdout.write("child|")
            return 0

        assert end(spawn(child)) == 0
    """)
    assert (done.stdout, done.stderr) == ("parent|child|", "error|")


def test_streams_that_are_gone_do_not_matter() -> None:
    run("""
        full = open("/dev/full", "w")
        full.write("x")
        sys.stdout = full
        assert end(spawn(lambda: 5)) == 5
        sys.stdout = sys.stderr = None
        assert end(spawn(lambda: 6)) == 6
        os._exit(0)
    """)


def test_the_child_starts_with_every_signal_blocked_and_the_parents_mask_returns() -> None:
    run("""
        before = {signal.SIGUSR2}
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        pid = spawn(lambda: len(mask()))
        assert mask() == before
        blocked = end(pid)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        assert blocked == len(mask()) > 50
    """)


def test_a_signal_between_the_fork_and_the_childs_handler_is_not_lost() -> None:
    run("""
        def die(*_):
            raise AssertionError("the parent's handler ran in the child")

        signal.signal(signal.SIGTERM, die)
        told, tell = os.pipe()

        def child():
            os.read(told, 1)  # the signal has been sent
            came = []
            signal.signal(signal.SIGTERM, lambda *_: came.append(1))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
            return 7 if came else 8

        pid = spawn(child)
        os.kill(pid, signal.SIGTERM)
        os.write(tell, b".")
        assert end(pid) == 7
    """)


def test_a_refused_fork_changes_nothing() -> None:
    """As an unprivileged user with no process to spare."""
    done = run("""
        from prefork.errors import FORK_REFUSED
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(64321, 64321, 64321)
            os.setresuid(64321, 64321, 64321)
        before = mask()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        try:
            pid = spawn(lambda: 0)
        except OSError as error:
            assert error.errno in FORK_REFUSED, error
        else:
            raise AssertionError("the system forked")
        assert mask() == before
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("refused")
    """)
    assert done.stdout == "refused\n"
