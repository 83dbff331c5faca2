"""WORKER. How a worker ends after its last connection: as a Python program ends, but within its time.

What threads and executors of the application have begun is waited for (threading._shutdown, as at the end of any
program). Then the functions run that were registered with atexit, among them those of logging and of multiprocessing,
which ends daemonic children and waits for the others. A watcher thread ends the process when its time is over, and one
line of the log names what was cut.

Which functions: all that are registered in this process, as in any process that Python forks; so what an application
registers in the template runs in each worker. Only what the caller of prefork.serve() has registered is left to the
caller, except for what the standard library and measuring tools register for every process.

Private names of Python that this needs are used here and nowhere else.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
import weakref
from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from prefork.core.log import Log
from prefork.core.process import flush_output
from prefork.engines.serving import ServingThread

_LEAST_S = 0.5  # past the graceful timeout: what an engine cuts at it has a moment to clean up
_MOST_S = 0.9  # past the graceful timeout: 0.1 s later the master kills
_EVERYBODYS = {("logging", "shutdown"), ("multiprocessing.util", "_exit_function"), ("weakref", "finalize._exitfunc")}
_HOME = __file__.removesuffix("worker/exit.py")
_LIBRARY = os.path.dirname(os.__file__) + os.sep
_TOOLS = {"coverage", "sitecustomize", "usercustomize"}


class _Registered:
    """Compares itself with each function that is registered, and is equal to those in `removed`.

    atexit.unregister() compares its argument with all of them: there is no other way to learn what they are.
    """

    def __init__(self, removed: list[object]) -> None:
        self._removed = removed
        self.seen: list[object] = []

    def __eq__(self, function: object) -> bool:
        self.seen.append(function)
        return any(function == each for each in self._removed)

    __hash__ = None  # type: ignore[assignment]


_callers: list[object] = []  # functions and finalizers


def leave_to_caller() -> None:
    """MASTER, in prefork.serve(). Leave what is registered now to be run by this process, and by no worker."""
    registered = _Registered([])
    atexit.unregister(registered)  # type: ignore[arg-type]
    finalizers = getattr(weakref.finalize, "_registry", ())
    _callers[:] = [*(each for each in registered.seen if not _is_everybodys(each)), *finalizers]


def forget_callers() -> None:
    """WORKER and TEMPLATE, first thing. Forget what is not to be run at the end of this process."""
    if _callers:
        functions = [each for each in _callers if not isinstance(each, weakref.finalize)]
        atexit.unregister(_Registered(functions))  # type: ignore[arg-type]
    for each in _callers:
        if isinstance(each, weakref.finalize):
            each.atexit = False


def forget_processes() -> None:
    """WORKER and TEMPLATE, first thing. Forget the processes of whoever forked this one: it ends them, and waits."""
    if processes := sys.modules.get("multiprocessing.process"):
        processes._children.clear()


def end_processes() -> None:
    """TEMPLATE, at its end. End the processes that the application has started in it by multiprocessing."""
    if util := sys.modules.get("multiprocessing.util"):
        util._exit_function()


def _is_everybodys(function: object) -> bool:
    module, name = getattr(function, "__module__", "") or "", getattr(function, "__qualname__", "")
    return (module, name) in _EVERYBODYS or module.partition(".")[0] in _TOOLS


class Exit:
    """WORKER. The end of this process."""

    def __init__(self, log: Log, graceful_timeout_s: float) -> None:
        self._log = log
        self._graceful_timeout_s = graceful_timeout_s
        self._until_s = 0.0  # 0: nobody watches yet
        self._main = threading.get_ident()

    def watch(self, leave_by_s: float) -> None:
        """Begin to watch the time: the last connection is done. `leave_by_s`: monotonic seconds."""
        if not self._until_s:
            self._until_s = min(max(monotonic(), leave_by_s) + _LEAST_S, leave_by_s + _MOST_S)
            start_new_thread(self._watch, ())  # a real one, whatever patches the threading module

    def run(self) -> None:
        """Wait for what the application has begun, and run its exit functions. May not return."""
        for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
            try:
                step()
            except BaseException as error:  # noqa: BLE001 - the application's own functions, whatever they raise
                self._log.error("exit function failed", exc=error)

    def _watch(self) -> None:
        while (left_s := self._until_s - monotonic()) > 0:
            sleep(left_s)
        what = ", ".join(self._unfinished()) or "the end of the application"
        self._log.warning("application cut", unfinished=what, after=f"{self._graceful_timeout_s:g}s")
        for child in _children():
            if child.daemon:
                with suppress(Exception):  # whatever class it is of
                    child.terminate()
        flush_output()
        self._log.report_losses()
        os._exit(0)

    def _unfinished(self) -> Iterator[str]:
        """What the process still waits for."""
        for thread in threading.enumerate():
            if not (thread.daemon or thread is threading.main_thread() or isinstance(thread, ServingThread)):
                yield f"thread {thread.name}"
        for child in _children():
            if not child.daemon:
                yield f"process {child.name}"
        if frame := sys._current_frames().get(self._main):
            stack = traceback.extract_stack(frame)
            called = max((at for at, entry in enumerate(stack) if entry.filename.startswith(_HOME)), default=-1)
            own = [entry for entry in stack[called + 1 :] if not _is_pythons(entry.filename)]
            if own:
                yield f"{own[-1].name}() at {own[-1].filename}:{own[-1].lineno}"


def _children() -> list[Any]:
    """Return the processes that the application has started by multiprocessing."""
    processes = sys.modules.get("multiprocessing.process")
    return list(processes._children) if processes else []


def _is_pythons(filename: str) -> bool:
    """Return whether a file is of the standard library."""
    return filename.startswith((_LIBRARY, "<")) and "site-packages" not in filename
