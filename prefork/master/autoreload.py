"""Development reload (--reload): a process of its own that has the master reload when a file of the app changes.

Each worker tells what its app consists of: before the import all sources in the app's folder with their times, after
it the files that were imported. The watcher lets watchfiles (inotify) wake it, and decides by comparing times, so that
a change between two checks, or between an import and the first check, is not missed. What counts is a change of an
imported file and a new file; while the app does not load, a change of any source beside it. The files of --reload-dir,
--reload-include, --env-file and --log-config count as well; what --reload-exclude names never does.

Workers send reports to the watcher as datagrams; the watcher sends SIGHUP to the master, as an operator would.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from time import monotonic
from typing import Any

import setproctitle

from prefork.config.config import Config
from prefork.core.log import Log
from prefork.core.process import ORPHANED, Exit, die_with_parent, spawn
from prefork.core.signals import TABLE, ignore
from prefork.errors import ConfigError
from prefork.master.children import Children
from prefork.runtime.import_reporter import sources_in, times

CHECK_MS = 400  # check at least this often: for reports, and for changes that inotify did not tell
_LOOK_S = 2.0  # look through the folders of --reload-dir at least this often; inotify tells of most changes at once
_SEND_S = 1.0  # a watcher that is stopped in a debugger must not keep a worker from serving
_REPORT_MOST = 1 << 18
_REPORTS_MOST = 1000  # in one check


class Watch:
    """MASTER. The watcher process as the master sees it. `reports` is the end that workers write to."""

    @classmethod
    def of(cls, config: Config, log: Log) -> Watch | None:
        """Return what --reload asks for. Raises ConfigError."""
        if config.reload:
            return cls(config, log)
        for name in ("reload-dir", "reload-include", "reload-exclude"):
            if config.sources[name].startswith(("--", "serve(")):  # a file may be for production as well
                raise ConfigError(f"{config.sources[name]}: it says what --reload watches, and there is no --reload")
        return None

    def __init__(self, config: Config, log: Log) -> None:
        """Raises ConfigError if the package that watches is not installed, or a folder that is named is none."""
        if importlib.util.find_spec("watchfiles") is None:
            raise ConfigError("--reload needs the package watchfiles: pip install 'prefork[reload]'")
        self._log = log
        self._named = Named.of(config)
        self._inbox, self.reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reports.settimeout(_SEND_S)
        self._pid = 0
        self._children: Children | None = None  # set by `start`

    def start(self, children: Children, close_in_child: Callable[[], None]) -> None:
        """Fork the watcher; `close_in_child` closes there what only the master may hold.

        Raises OSError if the system has no process left.
        """
        self._named.changes()  # what comes later is new
        watcher = Watcher(inbox=self._inbox, master=os.getpid(), log=self._log, named=self._named)

        def run() -> int:
            close_in_child()
            self.reports.close()
            return watcher.run()

        self._pid = spawn(run)
        self._children = children
        children.register(self._pid, self._exited)
        self._inbox.close()

    def _exited(self, child: Exit) -> None:
        self._pid = 0
        self._log.error("watcher died", pid=child.pid, cause=child, effect="changes of files are not seen any more")

    def shutdown(self) -> None:
        """Leave no watcher behind."""
        if self._children and self._pid:
            self._children.kill([self._pid])
            self._pid = 0
        self.reports.close()


@dataclass(slots=True, kw_only=True)
class Sources:
    """What is known of the app's files. Times are st_mtime_ns as last seen."""

    seen: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    imported: set[str] = field(default_factory=set)
    loaded: bool = False  # the last app that was tried could be loaded

    def learn(self, *, files: dict[str, int], folders: Iterable[str], imported: bool, loaded: bool) -> None:
        """Add what a worker tells: all that its folders hold, or the files that it has imported.

        A time that is known stays: it is the older one, so no change is missed.
        """
        for path, time_ns in files.items():
            self.seen.setdefault(path, time_ns)
        if imported:
            self.imported.update(files)
            for path, time_ns in times(sources_in(set(folders) - self.folders)).items():
                self.seen.setdefault(path, time_ns)  # they lie beside it: only what comes later is new
        self.folders.update(folders)
        self.loaded = loaded

    def changes(self) -> list[str]:
        """Return the files that matter and are new or have changed. A file that was removed may come back."""
        now = times([*sources_in(self.folders), *self.imported])
        changed = [path for path, time_ns in now.items() if self.seen.get(path) != time_ns]
        matter = [path for path in changed if not self.loaded or path in self.imported or path not in self.seen]
        self.seen.update(now)
        return sorted(matter)


@dataclass(slots=True, kw_only=True)
class Named:
    """What the options name: files, and the files in these folders, at any depth, that match one of the patterns.

    A pattern is compared with the end of a path (pathlib's `match`): `*.html`, `templates/*.txt`. Hidden folders are
    left out, and hidden files unless a pattern begins with a dot. A folder that is excluded is left out whole.
    """

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    watched: set[str] = field(default_factory=set)  # the folders that there are
    seen: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> Named:
        """Raises ConfigError if a folder is none."""
        for name in config.reload_dir:
            if not os.path.isdir(name):
                raise ConfigError(f"{config.sources['reload-dir']}: there is no folder {name!r}")
        folders = config.reload_dir or ((os.curdir,) if config.reload_include else ())
        return cls(
            files=tuple(os.path.abspath(name) for name in (config.env_file, config.log_config) if name),
            folders=tuple(map(os.path.abspath, folders)),
            includes=("*.py", *config.reload_include),
            excludes=config.reload_exclude,
        )

    def changes(self) -> list[str]:
        """Return the files that are new or have changed since the last call."""
        self.watched = {os.path.dirname(path) for path in self.files}
        now = times([*self.files, *(path for folder in self.folders for path in self._in(folder))])
        changed = [path for path, time_ns in now.items() if self.seen.get(path) != time_ns]
        self.seen.update(now)
        return sorted(changed)

    def excluded(self, path: str) -> bool:
        """Return whether changes of a file count for nothing, as it or a folder that it is in is excluded."""
        here = PurePath(os.path.relpath(path))
        parts = (here, *here.parents) if here.parts[0] != os.pardir else (here,)
        return any(_match(part, self.excludes) for part in parts)

    def _in(self, top: str) -> Iterator[str]:
        for folder, folders, names in os.walk(top):
            self.watched.add(folder)
            here = PurePath(folder)
            folders[:] = [
                name
                for name in folders
                if name[0] != "." and name != "__pycache__" and not self._leaves_out(here / name)
            ]
            for name in names:
                if self._takes(here / name):
                    yield os.path.join(folder, name)

    def _takes(self, path: PurePath) -> bool:
        includes = self.includes
        if path.name[0] == ".":
            includes = tuple(pattern for pattern in includes if PurePath(pattern).name[:1] == ".")
        return _match(path, includes) and not self._leaves_out(path)

    def _leaves_out(self, path: PurePath) -> bool:
        return _match(path, self.excludes)


def _match(path: PurePath, patterns: Iterable[str]) -> bool:
    return any(map(path.match, patterns))


@dataclass(slots=True, kw_only=True)
class Watcher:
    """WATCHER. Watches until the master is gone."""

    inbox: socket.socket
    master: int
    log: Log
    named: Named
    looked_s: float = 0.0
    sources: Sources = field(default_factory=Sources)

    def run(self) -> int:
        """Returns the exit code, if the master is gone already; else runs until it is killed."""
        for signum in TABLE:
            ignore(signum)  # its end is the master's business
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        if not die_with_parent(self.master):
            return ORPHANED
        self.log.identify(watcher=os.getpid())
        setproctitle.setproctitle("prefork: watcher")
        import watchfiles  # noqa: PLC0415 - it starts threads, and only this process wants them

        self.inbox.setblocking(False)
        while os.getppid() == self.master:
            folders = set(filter(os.path.isdir, self.sources.folders | self.named.watched)) or {os.curdir}
            for changes in watchfiles.watch(
                *sorted(folders),
                recursive=False,
                rust_timeout=CHECK_MS,
                yield_on_timeout=True,
                watch_filter=None,
                ignore_permission_denied=True,
            ):
                if self._check(told=bool(changes)) or os.getppid() != self.master:
                    break
        return ORPHANED

    def _check(self, *, told: bool) -> bool:
        """Read reports, tell the master of changes; True if there are folders that are not watched yet.

        `told`: the system has told of changes.
        """
        before = self.sources.folders | self.named.watched
        self._read_reports()
        changed = self.sources.changes()
        if told or monotonic() >= self.looked_s + _LOOK_S:
            changed = sorted({*changed, *self.named.changes()})
            self.looked_s = monotonic()
        if changed := [path for path in changed if not self.named.excluded(path)]:
            names = [os.path.relpath(path) for path in changed]
            self.log.info("changed", file=names[0], others=len(names) - 1 or None)
            os.kill(self.master, signal.SIGHUP)
        return self.sources.folders | self.named.watched != before

    def _read_reports(self) -> None:
        for _ in range(_REPORTS_MOST):
            try:
                report = self.inbox.recv(_REPORT_MOST)
            except BlockingIOError:
                return  # all read
            if not report:
                return  # no worker is left, and the master ends
            try:
                said = json.loads(report)
            except (ValueError, RecursionError):
                continue  # the application may write here as well
            match said:
                case {"files": dict(files), "folders": [*folders], "imported": bool(imported), "loaded": bool(loaded)}:
                    if all(map(_is_path, (*files, *folders))):
                        self.sources.learn(files=files, folders=folders, imported=imported, loaded=loaded)


def _is_path(said: Any) -> bool:
    """Return whether this can be the path of a file."""
    try:
        return isinstance(said, str) and b"\0" not in os.fsencode(said)
    except UnicodeEncodeError:
        return False
