"""What the user asked for: one frozen Config, one table of options, one place that resolves them.

`OPTIONS` is the single source: the command line, the environment, the README's table and Config's defaults come from
it. A value is text until `resolve` parses it, so every source gives the same errors, and `sources` remembers where each
value came from. Precedence: flag > environment (PREFORK_THREADS; lists split at blanks) > file > default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import log
from .address import FORMS, Address
from .cpus import usable_cpus
from .errors import ConfigError
from .units import count, duration, positive_duration, size, switch, umask

KINDS = ("auto", "stream", "socketserver", "streams", "protocol", "wsgi", "asgi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: its name on every source, how to read it, and what it says of itself."""

    name: str
    field: str  # of Config; with its unit
    parse: Callable[[str], Any]
    default: str
    metavar: str
    help: str
    short: str = ""
    many: bool = False
    switch: bool = False  # given alone, without a value

    @property
    def flag(self) -> str:
        """`--graceful-timeout`."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """`PREFORK_GRACEFUL_TIMEOUT`."""
        return "PREFORK_" + self.name.replace("-", "_").upper()

    @property
    def numeric(self) -> bool:
        """True if a bare number is welcome where a source has numbers. Not for a mask: 027 is octal, 27 is not."""
        return self.metavar in ("N", "N|auto", "DURATION", "SIZE", "USER", "GROUP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The resolved configuration of one server. Durations are seconds, sizes bytes."""

    app: str
    interface: str
    bind: tuple[Address, ...]
    workers: int
    threads: int
    backlog: int
    timeout_s: float
    graceful_timeout_s: float
    boot_timeout_s: float
    idle_timeout_s: float
    max_requests: int
    max_requests_jitter: int
    max_memory: int
    preload: bool
    accept: str
    control: str
    user: str
    group: str
    umask: int | None
    chdir: str
    pid: str
    hooks: str
    reload: bool
    log: str
    log_level: str
    log_format: str
    target: Any = None  # the app itself, where it was given as an object, from Python
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)


WORKERS_MOST = 4096
THREADS_MOST = 1024


def _choice(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def _workers(text: str) -> int:
    if text == "auto":
        return usable_cpus()
    try:
        return count(text, most=WORKERS_MOST)
    except ValueError as error:
        raise ValueError(f"{error}; give a number from 1 up, or auto") from None


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return text


def _app(text: str) -> str:
    if not text:
        raise ValueError("it is empty; give module:attribute, path.py:attribute or a built-in")
    return text


APP = Option(name="app", field="app", parse=_app, default="talkback", metavar="APP", help="What to serve.")
OPTIONS: tuple[Option, ...] = (
    Option(name="bind", field="bind", short="-b", many=True, parse=Address.parse, default="127.0.0.1:1935",
           metavar="ADDRESS", help=f"Where to listen: {FORMS}. Repeatable."),
    Option(name="workers", field="workers", short="-w", parse=_workers, default="auto", metavar="N|auto",
           help="Worker processes. auto: the processors that this process may use (cgroup quota, else affinity)."),
    Option(name="threads", field="threads", short="-t", parse=partial(count, most=THREADS_MOST), default="1",
           metavar="N", help="Threads per worker; each serves one connection at a time."),
    Option(name="interface", field="interface", parse=_choice(KINDS), default="auto", metavar="KIND",
           help=f"What APP is, when it cannot be told from its parameters: {', '.join(KINDS)}."),
    Option(name="backlog", field="backlog", parse=count, default="2048", metavar="N",
           help="Connections that may wait in the kernel for accept (capped by net.core.somaxconn)."),
    Option(name="timeout", field="timeout_s", parse=positive_duration, default="30", metavar="DURATION",
           help="How long handler code may run without waiting for its client; past it the worker is killed."),
    Option(name="graceful-timeout", field="graceful_timeout_s", parse=duration, default="30", metavar="DURATION",
           help="How long a stop waits for what is in flight; past it connections are cut, logged and counted."),
    Option(name="boot-timeout", field="boot_timeout_s", parse=positive_duration, default="60", metavar="DURATION",
           help="How long a worker may take from its start until it accepts."),
    Option(name="idle-timeout", field="idle_timeout_s", parse=positive_duration, default="60", metavar="DURATION",
           help="How long a stream handler waits for a silent client; past it the connection is closed and counted."),
    Option(name="max-requests", field="max_requests", parse=partial(count, least=0), default="0", metavar="N",
           help="Replace a worker after it has completed N units of work; 0: never."),
    Option(name="max-requests-jitter", field="max_requests_jitter", parse=partial(count, least=0), default="0",
           metavar="N", help="Add a random 0 to N to --max-requests of each worker, so that not all leave at once."),
    Option(name="max-memory", field="max_memory", parse=size, default="0", metavar="SIZE",
           help="Replace a worker whose own share of memory (PSS) stays above SIZE; 0: never."),
    Option(name="preload", field="preload", parse=switch, default="no", metavar="", switch=True,
           help="Import APP once, in a template process that workers are forked from: less memory, respawn in ms."),
    Option(name="accept", field="accept", parse=_choice(("shared", "per-worker")), default="shared", metavar="HOW",
           help="shared: all workers accept on one socket. per-worker: a socket for each, the kernel spreads by hash."),
    Option(name="control", field="control", parse=str, default="auto", metavar="PATH|none",
           help="The control socket; auto: in $XDG_RUNTIME_DIR, or a private directory in the temp dir."),
    Option(name="user", field="user", parse=str, default="", metavar="USER",
           help="Workers run as this user (name or number), from after the sockets are bound."),
    Option(name="group", field="group", parse=str, default="", metavar="GROUP",
           help="Workers run as this group; by default the user's own."),
    Option(name="umask", field="umask", parse=umask, default="", metavar="OCTAL",
           help="File mode creation mask, also of Unix sockets; by default as it was."),
    Option(name="chdir", field="chdir", parse=str, default="", metavar="DIR",
           help="Change to DIR before all else: relative paths (FILE, MODULE, Unix sockets, logs) start there."),
    Option(name="pid", field="pid", parse=str, default="", metavar="FILE",
           help="Write the master's pid to FILE and keep it locked; it is removed at the end."),
    Option(name="hooks", field="hooks", parse=str, default="", metavar="MODULE",
           help="Call what MODULE (or path.py) has of template_loaded(), worker_started(worker), "
                "worker_stopping(worker), worker_died(report)."),
    Option(name="reload", field="reload", parse=switch, default="no", metavar="", switch=True,
           help="For development: reload when a file changes that APP imported. One worker unless --workers is given."),
    Option(name="log", field="log", parse=_path, default="-", metavar="PATH|-",
           help="Append the log to PATH (reopened on USR1); -: standard error."),
    Option(name="log-level", field="log_level", parse=_choice(log.LEVELS), default="info", metavar="LEVEL",
           help=f"The least level that is logged: {', '.join(log.LEVELS)}."),
    Option(name="log-format", field="log_format", parse=_choice(log.FORMATS), default="text", metavar="FORMAT",
           help="Log lines as text (key=value) or json (one object a line)."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What one source says of one option: text, or texts. `where` begins the sentence about a mistake in it."""

    raw: str | Sequence[str]
    source: str
    where: str


def resolve(
    app: str | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, Setting] | None = None,
) -> Config:
    """Make a Config of flags, environment, file and defaults. Raises ConfigError.

    `flags` maps option names to text, texts, or Settings of another kind of caller; None = not given.
    """
    environ = os.environ if environ is None else environ
    file = file or {}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in (APP, *OPTIONS):
        setting = _setting(option, app if option is APP else flags.get(option.name), environ, file)
        values[option.field] = _parse(option, setting)
        sources[option.name] = setting.source
    _imply(values, sources)
    return Config(sources=sources, **values)


def _setting(option: Option, given: Any, environ: Mapping[str, str], file: Mapping[str, Setting]) -> Setting:
    """The setting that wins: flag > environment > file > default."""
    if isinstance(given, Setting):
        return given
    if given is not None and given != ():
        text = given if isinstance(given, str) else " ".join(given)
        source = option.name if option is APP else option.flag
        return Setting(raw=given, source=source, where=f"{source} {text}")
    if (found := environ.get(option.variable)) is not None:
        return Setting(raw=found, source=option.variable, where=option.variable)
    if option.name in file:
        return file[option.name]
    return Setting(raw=option.default, source="default", where=option.name)


def _parse(option: Option, setting: Setting) -> Any:
    try:
        if option.many:
            texts = setting.raw.split() if isinstance(setting.raw, str) else setting.raw
            if not texts:
                raise ValueError("it is empty")
            return tuple(map(option.parse, texts))
        assert isinstance(setting.raw, str)
        return option.parse(setting.raw)
    except ValueError as error:
        raise ConfigError(f"{setting.where}: {error}") from None


def _imply(values: dict[str, Any], sources: dict[str, str]) -> None:
    """--reload is for one developer: one worker unless said otherwise, each of which imports the app anew."""
    if not values["reload"]:
        return
    if sources["workers"] == "default":
        values["workers"], sources["workers"] = 1, "--reload"
    if values["preload"]:
        values["preload"], sources["preload"] = False, "--reload"


def raw_of(option: Option, value: Any) -> str | tuple[str, ...]:
    """A value of a source that has types, as text. Raises TypeError, which says what to give instead."""
    if option.switch:
        if isinstance(value, bool):
            return "yes" if value else "no"
        raise TypeError("give true or false")
    if isinstance(value, str | os.PathLike):
        return str(os.fspath(value))
    if option.many:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise TypeError("give a string, or several in an array")
    if option.numeric and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    raise TypeError("give a number or a string" if option.numeric else "give a string")
