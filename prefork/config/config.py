"""What the user asked for: one frozen Config, and one place that resolves it from all sources.

`sources` remembers where each value came from. Precedence: flag > environment (PREFORK_THREADS; lists split at blanks,
or at line ends where the values have blanks) > --env-file > file > what a platform sets (PORT, WEB_CONCURRENCY) >
default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefork.config import env_file
from prefork.config.foreign import answers
from prefork.config.options import APP, OPTIONS, PASSWORD_VARIABLE, PLATFORM, Option
from prefork.core.address import Address
from prefork.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The resolved configuration of one server. Durations are seconds, sizes bytes."""

    app: str
    interface: str
    factory: bool
    bind: tuple[Address, ...]
    workers: int
    threads: int
    backlog: int
    timeout_s: float
    graceful_timeout_s: float
    lame_duck_s: float
    boot_timeout_s: float
    idle_timeout_s: float
    lifespan: str
    loop: str
    root_path: str
    ws_ping_s: float
    ws_max_message: int
    keep_alive_s: float
    header_timeout_s: float
    max_in_flight: int
    max_body: int
    max_request_line: int
    max_fields: int
    max_header: int
    underscores: str
    header: tuple[str, ...]
    server_header: bool
    max_connections: int
    tls_cert: str
    tls_key: str
    tls_key_password_file: str
    tls_ca: str
    tls_client_cert: str
    tls_min_version: str
    tls_ciphers: str
    trusted_proxies: tuple[str, ...]
    proxy_protocol: bool
    log_config: str
    access_log: str
    access_log_format: str
    slow_s: float
    max_requests: int
    max_requests_jitter: int
    max_memory: int
    max_age_s: float
    preload: bool
    accept: str
    control: str
    admin: Address | None
    user: str
    group: str
    umask: int | None
    chdir: str
    pid: str
    hooks: str
    env_file: str
    reload: bool
    reload_dir: tuple[str, ...]
    reload_include: tuple[str, ...]
    reload_exclude: tuple[str, ...]
    log: str
    log_level: str
    log_format: str
    target: Any = None  # the app itself, where it was given as an object, from Python
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)


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
    """The setting that wins: flag > environment > file > platform > default."""
    if isinstance(given, Setting):
        return given
    if given is not None and given != ():
        text = given if isinstance(given, str) else " ".join(given)
        source = option.name if option is APP else option.flag
        return Setting(raw=given, source=source, where=f"{source} {text if text.isprintable() else repr(text)}")
    if (found := environ.get(option.variable)) is not None:
        place = found.place if isinstance(found, env_file.Value) else ""
        where = f"{place}: {option.variable}" if place else option.variable
        return Setting(raw=found, source=place or option.variable, where=where)
    if option.name in file:
        return file[option.name]
    if option.platform and (value := environ.get(option.platform)):
        raw = option.platform_form.format(value)
        return Setting(raw=raw, source=option.platform, where=f"{option.platform}={value}")
    return Setting(raw=option.default, source="default", where=option.name)


def _parse(option: Option, setting: Setting) -> Any:
    try:
        if option.many:
            texts = setting.raw
            if isinstance(texts, str):
                texts = [text for part in texts.split(option.separator) if (text := part.strip())]
            if not texts and setting.raw != option.default:
                raise ValueError("it is empty")
            return tuple(map(option.parse, texts))
        assert isinstance(setting.raw, str)
        return option.parse(setting.raw)
    except ValueError as error:
        raise ConfigError(f"{setting.where}: {error}") from None


def _imply(values: dict[str, Any], sources: dict[str, str]) -> None:
    """--reload is for one developer: one worker unless said otherwise, each of which imports the app anew.

    What a platform says of the machine is not said of this server. With --log-format json, the access log is JSON as
    well unless said otherwise.
    """
    if values["log_format"] == "json" and sources["access-log-format"] == "default":
        values["access_log_format"], sources["access-log-format"] = "json", sources["log-format"]
    if not values["reload"]:
        return
    if sources["workers"] == "default" or sources["workers"] in PLATFORM:
        values["workers"], sources["workers"] = 1, "--reload"
    if values["preload"]:
        values["preload"], sources["preload"] = False, "--reload"


# --- Variables that begin as ours do but set nothing: a slip of the pen, which nobody would notice.


_NO_OPTIONS = ("PREFORK_SLOT", "PREFORK_GENERATION", "PREFORK_INHERITED", PASSWORD_VARIABLE)
# What Kubernetes gives every container of a namespace that has a service named prefork.
_OF_A_SERVICE = re.compile(r"PREFORK_SERVICE_(HOST|PORT(_\w+)?)|PREFORK_PORT_\d+_\w+")
_INSTEAD = {
    "PREFORK_CONFIG": "name the file with --config",
    "PREFORK_HOST": "did you mean PREFORK_BIND?",
    "PREFORK_PORT": "did you mean PREFORK_BIND?",
}


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables named PREFORK_* that nothing of prefork reads, each with what to do."""
    known = [option.variable for option in (APP, *OPTIONS)]
    rests = [variable.removeprefix("PREFORK_") for variable in known]
    found = {}
    for name in sorted(name for name in environ if name.startswith("PREFORK_")):
        of_a_service = _OF_A_SERVICE.fullmatch(name) or environ[name].startswith("tcp://")
        if name in known or name in _NO_OPTIONS or of_a_service:
            continue
        near = difflib.get_close_matches(name.removeprefix("PREFORK_"), rests, n=1)
        hint = f"did you mean PREFORK_{near[0]}?" if near else "`prefork config` lists all options"
        found[name] = _INSTEAD.get(name, hint)
    return found


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


# --- The configuration file: TOML, one key an option, written as on the command line (`graceful-timeout`) or with `_`;
# of a pyproject.toml, the table [tool.prefork].
#
# Every mistake names the file and the line. tomllib gives no lines for values, so the text is cut into statements: the
# shortest runs of lines that are TOML by themselves. Each is the header of a table, or one key and its value.


_PYPROJECT = "pyproject.toml"
_KNOWN = {option.name: option for option in (APP, *OPTIONS)}
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$| \(at end of document\)$")


def configure(
    app: str | None, flags: Mapping[str, Any], path: str | None, environ: Mapping[str, str] | None = None
) -> Config:
    """Resolve with the file at `path`, if one is given, and with that of --env-file. Raises ConfigError.

    --chdir comes before all else, so a relative path starts there.
    """
    around: Mapping[str, str] = os.environ if environ is None else environ
    file: dict[str, Setting] = {}

    def setting(name: str) -> Setting:
        return _setting(_KNOWN[name], flags.get(name), around, file)

    if path:
        file = read(path, Path(str(setting("chdir").raw)))
    if (variables := setting("env-file")).raw:
        found = env_file.read(str(variables.raw), variables.source, around, Path(str(setting("chdir").raw)))
        for name in ("PREFORK_CHDIR", "PREFORK_ENV_FILE"):
            if name in found:
                raise ConfigError(f"{found[name].place}: {name} says where this file is, so it cannot stand in it")
        if PASSWORD_VARIABLE in found:
            place = found[PASSWORD_VARIABLE].place
            raise ConfigError(
                f"{place}: {PASSWORD_VARIABLE} is not for the application: set it in the environment, "
                "or use --tls-key-password-file"
            )
        for name, hint in unknown_variables(found).items():
            raise ConfigError(f"{found[name].place}: there is no option for {name}; {hint}")
        around = {**found, **around}
    return resolve(app, flags, around, file)


def read(path: str, folder: Path = Path()) -> dict[str, Setting]:
    """What the file sets, by option name. Raises ConfigError."""
    try:
        text = (folder / path).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"cannot read {str(folder / path)!r}: {reason}") from None
    document = _parsed(text, path)
    table: tuple[str, ...] = ()
    if Path(path).name == _PYPROJECT:
        table = ("tool", "prefork")
        if not isinstance(_inner(document, table), dict):
            raise ConfigError(f"{path}: it has no table [{'.'.join(table)}], where options stand, as `workers = 4`")
    settings: dict[str, Setting] = {}
    for line, key, value in _entries(text, table):
        where = f"{path}:{line}"
        if isinstance(value, dict):
            place = f"in [{'.'.join(table)}]" if table else "at the top level"
            raise ConfigError(f"{where}: {key} is a table; options stand {place}, as `workers = 4`")
        option = _option(key, where)
        if option.name in settings:
            raise ConfigError(f"{where}: {option.name} was given before, at {settings[option.name].source}")
        try:
            raw = raw_of(option, value)
        except TypeError as error:
            raise ConfigError(f"{where}: {key} is {_kind(value)}; {error}") from None
        settings[option.name] = Setting(raw=raw, source=where, where=f"{where}: {key}")
    return settings


def _parsed(text: str, path: str) -> dict[str, Any]:
    """Return the whole document. Raises ConfigError, with the line, if the text is not TOML."""
    import tomllib  # noqa: PLC0415 - 5 ms of start-up that only a file is worth

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        if path.endswith(".py"):
            what = "this is Python, and options stand in TOML, as `workers = 4`; functions go to a module for --hooks"
            raise ConfigError(f"{path}: {what}") from None
        # ValueError: TOMLDecodeError, or a number of too many digits
        found = _AT_LINE.search(str(error))
        line = found[1] if found and found[1] else len(text.splitlines())
        raise ConfigError(f"{path}:{line}: this is not TOML: {_AT_LINE.sub('', str(error))}") from None


def _inner(found: Any, path: Sequence[str]) -> Any:
    """What stands there in nested tables, or None."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _entries(text: str, table: tuple[str, ...]) -> Iterator[tuple[int, str, Any]]:
    """Each key of the table with its value and the number of its first line, tables in it as well."""
    here: tuple[str, ...] = ()  # the table that the last header has begun
    for line, found, is_header in _statements(text):
        if is_header:
            here = ()
        # A statement in [tool] may set prefork.workers.
        if here == table[: len(here)] and isinstance(inner := _inner(found, table[len(here) :]), dict):
            for key, value in inner.items():
                yield line, key, value
        if is_header:
            here = _path_of(found)


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Each statement by itself: the number of its first line, what it sets, and whether it begins a table.

    The text is TOML.
    """
    import tomllib  # noqa: PLC0415 - as above

    run: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        run.append(line)
        try:
            found = tomllib.loads("\n".join(run))
        except tomllib.TOMLDecodeError:
            continue  # within an array or a string of several lines
        if found:
            yield number - len(run) + 1, found, run[0].lstrip().startswith("[")
        run.clear()


def _path_of(header: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a header: of `[tool.prefork]`, and of `[[tool.prefork]]`."""
    path: list[str] = []
    found: Any = header
    while isinstance(found, dict) and found:
        key, found = next(iter(found.items()))
        path.append(key)
    return tuple(path)


def _option(key: str, where: str) -> Option:
    option = _KNOWN.get(key.replace("_", "-"))
    if option is None and (lines := answers([f"--{key.replace('_', '-')}"])):
        raise ConfigError(f"{where}: {lines[0]}")
    if option is None:
        near = difflib.get_close_matches(key.replace("_", "-"), _KNOWN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`prefork config` lists all"
        raise ConfigError(f"{where}: there is no option {key!r}; {hint}")
    return option


def _kind(value: Any) -> str:
    """What TOML calls a value."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "a table"}
    kind = kinds.get(type(value), "a date or a time")
    inner = next((item for item in value if not isinstance(item, str)), None) if isinstance(value, list) else None
    return kind if inner is None else f"{kind} that holds {_kind(inner)}"
