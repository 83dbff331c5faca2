"""WORKER. What the app consists of, told to the watcher of --reload (master/autoreload.py)."""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from _thread import start_new_thread
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import sleep

from prefork.runtime.loader import module_of

_FILES_MOST = 500  # in one report; a datagram has a limit
_LOOK_S = 1.0  # how often a worker looks for modules that were imported later


@dataclass(frozen=True, slots=True)
class Imports:
    """WORKER. `reports` leads to the watcher."""

    reports: socket.socket

    def expect(self, spec: str) -> None:
        """Before the app is imported: what lies in its folders, so that a change meanwhile is seen.

        No bytecode is written from here on: it is told from its source by whole seconds, and two saves may be one.
        """
        sys.dont_write_bytecode = True
        folders = list(_folders(spec))
        send_report(self.reports, folders=folders, files=sources_in(folders), imported=False, loaded=False)

    def loaded(self) -> None:
        """The app is loaded: tell its files, and later what it imports while it serves."""
        known = len(sys.modules)  # now: the thread may begin when more have come
        self._tell(set(_imported()), loaded=True)
        start_new_thread(self._follow, (known,))  # a thread of the system, also where gevent has patched `threading`

    def failed(self, error: BaseException) -> None:
        """The app could not be loaded: tell what it was made of up to there, and where it broke."""
        self._tell(set(_imported()) | set(_places(error)), loaded=False)

    def _follow(self, known: int) -> None:
        while True:
            sleep(_LOOK_S)
            if len(sys.modules) != known:
                known = len(sys.modules)
                self._tell(set(_imported()), loaded=True)

    def _tell(self, files: set[str], *, loaded: bool) -> None:
        folders = {os.path.dirname(path) for path in files}
        send_report(self.reports, folders=folders, files=files, imported=True, loaded=loaded)


def _folders(spec: str) -> Iterator[str]:
    """Where the app is looked for, before it is known where it is."""
    where = module_of(spec)
    if where.endswith(".py"):
        yield str(Path(where).parent.resolve())
        return
    folder = Path.cwd()
    yield str(folder)
    for name in where.split(".")[:-1]:
        folder /= name
        yield str(folder)


def _imported() -> Iterator[str]:
    """The source files of all modules, but for the standard library, installed packages and our own."""
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.endswith(".py"):
            yield from _users(path)


def _places(error: BaseException) -> Iterator[str]:
    """The files that an exception passed through, and the one that is no Python."""
    seen: BaseException | None = error
    while seen is not None:
        for frame, _line in traceback.walk_tb(seen.__traceback__):
            yield from _users(frame.f_code.co_filename)
        if isinstance(seen, SyntaxError) and seen.filename:
            yield from _users(seen.filename)
        seen = seen.__cause__ or seen.__context__


@cache
def _not_the_users() -> tuple[str, ...]:
    import sysconfig  # noqa: PLC0415 - 5 ms of start-up that only --reload is worth

    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {*map(sysconfig.get_path, names), os.path.dirname(os.path.dirname(__file__))}
    return tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)


def _users(path: str) -> Iterator[str]:
    """The path, absolute, if the file is the user's; `<string>` and its like are no files."""
    if not path.startswith("<") and not os.path.realpath(path).startswith(_not_the_users()):
        yield os.path.abspath(path)


def sources_in(folders: Iterable[str]) -> list[str]:
    """The Python files of each folder, and what makes its subfolders packages."""
    return [str(path) for folder in folders for glob in ("*.py", "*/__init__.py") for path in Path(folder).glob(glob)]


def times(paths: Iterable[str]) -> dict[str, int]:
    """When each file that exists was changed (st_mtime_ns)."""
    found = {}
    for path in paths:
        try:
            found[path] = os.stat(path).st_mtime_ns
        except OSError:
            continue  # removed since it was listed
    return found


def send_report(
    reports: socket.socket, *, folders: Iterable[str], files: Iterable[str], imported: bool, loaded: bool
) -> None:
    """WORKER. Tell the watcher which files there are. Raises nothing: whether it hears is not the app's concern."""
    known = sorted(times(files).items())
    for start in range(0, max(1, len(known)), _FILES_MOST):
        part = dict(known[start : start + _FILES_MOST])
        text = json.dumps({"files": part, "folders": sorted(folders), "imported": imported, "loaded": loaded})
        try:
            reports.send(text.encode())
        except OSError:
            return  # it is gone, or does not read: the log has said so, or a person stopped it
