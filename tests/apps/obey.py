"""A stream handler that does what its client asks for, the worst included: one line, one deed, then its answer."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from typing import Any, NoReturn


def say_pid(_: str) -> bytes:
    """Say who serves."""
    return b"%d" % os.getpid()


def work(seconds: str) -> bytes:
    """Take a while, as an application that waits for a database."""
    time.sleep(float(seconds or 0))
    return b"done"


def spin_forever(_: str) -> NoReturn:
    """Burn CPU in Python code."""
    while True:
        pass


def hold_the_gil(seconds: str) -> bytes:
    """Sit in C code that never lets another thread of this process run."""
    ctypes.PyDLL(None).sleep(int(seconds))
    return b"done"


def read_null(_: str) -> bytes:
    """Crash in C code."""
    return ctypes.string_at(0)


def abort(_: str) -> NoReturn:
    """Crash as C's assert() does."""
    os.abort()


def fail(reason: str) -> NoReturn:
    """Raise."""
    raise RuntimeError(reason)


def leave(code: str) -> NoReturn:
    """Exit as sys.exit() does."""
    raise SystemExit(int(code))


def vanish(code: str) -> NoReturn:
    """Exit without a word."""
    os._exit(int(code))


def signal_itself(name: str) -> bytes:
    """Send this very thread a signal."""
    signal.raise_signal(getattr(signal, name))
    return b"survived"


def start_sleeper(_: str) -> bytes:
    """Start a program that outlives the exchange, and say its pid."""
    sleeper = subprocess.Popen(
        ["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return b"%d" % sleeper.pid


DEEDS = {
    "pid": say_pid,
    "work": work,
    "spin": spin_forever,
    "hold_gil": hold_the_gil,
    "segfault": read_null,
    "abort": abort,
    "raise": fail,
    "sys_exit": leave,
    "exit": vanish,
    "signal": signal_itself,
    "spawn": start_sleeper,
}


def handle(conn: Any) -> None:
    """Obey one line; a client that says nothing wants nothing."""
    word, _, argument = conn.readline().decode().strip().partition(" ")
    if not word:
        return
    conn.sendall(DEEDS[word](argument) + b"\n")
