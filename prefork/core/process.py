"""The only fork. Signals are blocked around it, and the child never returns into the parent's stack.

CPython clears the signals that are pending in the interpreter when it forks (`_PySignal_AfterFork`), so a signal that
arrives between fork and the child's own handlers would be lost: blocked in the kernel it waits until the child has
its inbox and unblocks. fork(2) leaves one thread, so only single-threaded processes come here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

CHILD_CRASHED = 70  # EX_SOFTWARE of sysexits.h: `run` raised


def spawn(run: Callable[[], int]) -> int:
    """Fork; return the child's pid. In the child call `run` with all signals blocked and exit with what it returns.

    Raises OSError (errors.FORK_REFUSED) when the system has no process or memory left; nothing has changed then.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()  # else both processes would write what is buffered
            except OSError:
                pass  # /dev/full or a closed pipe: no reason not to fork
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _child(run)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _child(run: Callable[[], int]) -> None:
    """Run and exit without unwinding: the parent's finally blocks, atexit and buffers are not ours."""
    code = CHILD_CRASHED
    try:
        code = run()
    except BaseException:  # noqa: BLE001 - the worker border: report once, then die
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
