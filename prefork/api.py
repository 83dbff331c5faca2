"""`prefork.serve`: the server from Python, and `run`, the way that every server starts.

The caller becomes the master. It forks, so it must be the main thread and the only one; what the server changes of the
process (signal handlers, umask, working folder, title, descriptor limit, logger) is put back when it returns.
"""

from __future__ import annotations

import difflib
import logging
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import setproctitle

from prefork.config.config import Config, Setting, configure, raw_of
from prefork.config.options import OPTIONS
from prefork.core.log import LogFile, close_descriptions, open_log
from prefork.core.privileges import WorkingDirectory, identity_of, move
from prefork.core.process import open_standard_descriptors
from prefork.core.signals import TABLE, UNEXPECTED
from prefork.errors import ConfigError, PreforkError
from prefork.master.loop import Master
from prefork.master.resources import Resources
from prefork.worker.exit import leave_to_caller

_BY_NAME = {option.name.replace("-", "_"): option for option in OPTIONS}
_ONLY_BY_NAME = ("preload", "reload", "factory")  # they import the app, each time anew


def serve(app: Any = None, *, config: str | os.PathLike[str] | None = None, **options: Any) -> int:
    """Serve `app` until told to stop; return the exit code, 0 after a stop as asked.

    `app` is a callable or class, or a text as on the command line (talkback if there is none). `config` is the path of
    a configuration file. `options` are those of `prefork serve`, with `_` for `-`; durations are seconds or text such
    as "10s", sizes bytes or text such as "64k". The environment (PREFORK_*) counts as it does for the command.

    A callable is not imported anew: a reload forks again from this process. Children that the caller has started
    before are reaped by the server. Raises PreforkError, whose `exit_code` is the command's.
    """
    _refuse_company()
    resolved = _resolve(app, config, options)
    with _put_back():
        leave_to_caller()
        return run(resolved)


def run(config: Config) -> int:
    """MASTER. Take the place and the log that the configuration names, serve, and return the exit code.

    Raises PreforkError if it cannot start.
    """
    open_standard_descriptors()
    started_in = move(config.chdir, config.umask, config.sources)
    identity = identity_of(config.user, config.group, config.sources)
    file = LogFile(config.log, identity) if config.log != "-" else None
    log = open_log(level=config.log_level, style=config.log_format, file=file)
    try:
        return Master(config, log, Resources(config, log, identity), started_in).run()
    except PreforkError as error:
        if config.log_format == "json":  # a reader of JSON would drop a line of text
            log.error("cannot start", reason=str(error), exit_code=error.exit_code, detail=error.detail or None)
            error.logged = file is None
        raise
    finally:
        if file:
            file.close()


def _refuse_company() -> None:
    """Raise ConfigError unless this is the only thread, no event loop runs in it, and nobody has patched `select`."""
    if not hasattr(select, "epoll"):
        raise ConfigError(
            "serve() was called in an interpreter that gevent or the like has patched, where no master can run; "
            "call it without the patch, with the application's name, as in serve('shop.py:app')"
        )
    if threading.current_thread() is not threading.main_thread():
        name = threading.current_thread().name
        raise ConfigError(f"serve() was called in the thread {name!r}: it needs the main thread, for its signals")
    if others := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        names = ", ".join(map(repr, others))
        raise ConfigError(
            f"serve() forks, and these threads run, which workers would not have: {names}; end them first"
        )
    asyncio = sys.modules.get("asyncio")  # 20 ms of start-up; a loop that runs has imported it
    if asyncio is not None and asyncio._get_running_loop() is not None:
        raise ConfigError("serve() was called from a coroutine: it blocks and forks; call it outside of the event loop")


def _resolve(app: Any, config: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Config:
    path = os.fspath(config) if config is not None else None
    settings = {}
    for name, value in options.items():
        if value is not None:
            option = _BY_NAME.get(name)
            if option is None:
                near = difflib.get_close_matches(name, _BY_NAME, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"serve() has no option {name!r}{hint}")
            settings[option.name] = _setting(name, value)
    if app is None or isinstance(app, str):
        return configure(app, settings, path)
    if not callable(app):
        raise ConfigError(f"serve(): {app!r} is not callable, nor the text that names an app")
    name = f"{getattr(app, '__module__', '?')}:{getattr(app, '__qualname__', type(app).__qualname__)}"
    resolved = replace(configure(name, settings, path), target=app)
    for option_name in _ONLY_BY_NAME:
        if getattr(resolved, option_name):
            source = resolved.sources[option_name]
            raise ConfigError(f"{source}: {option_name} imports the app, so serve() needs its name, not the object")
    return resolved


def _setting(name: str, value: Any) -> Setting:
    where = f"serve({name}={value!r})"
    if name == "umask" and isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:03o}"  # Python has octal numbers
    try:
        return Setting(raw=raw_of(_BY_NAME[name], value), source=f"serve({name}=)", where=where)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


@contextmanager
def _put_back() -> Iterator[None]:
    """Leave the process as it was found."""
    logger = logging.getLogger("prefork")
    logging_before = logger.handlers[:], logger.level, logger.propagate
    handlers = {signum: signal.getsignal(signum) for signum in (*TABLE, *UNEXPECTED)}
    wakeup_fd = signal.set_wakeup_fd(-1)
    place, title = WorkingDirectory.current(), setproctitle.getproctitle()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            if handler is not None:  # else it was set in C, and is lost
                signal.signal(signum, handler)
        signal.set_wakeup_fd(wakeup_fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        setproctitle.setproctitle(title)
        logger.handlers[:], level, logger.propagate = logging_before
        logger.setLevel(level)
        close_descriptions()
        place.restore()
