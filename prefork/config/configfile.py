"""The configuration file: TOML, one key an option, written as on the command line (`graceful-timeout`) or with `_`.

Every mistake names the file and the line. tomllib gives no lines for values, so the text is cut into statements: the
shortest runs of lines that are TOML by themselves. There are no tables, so each statement is one key and its value.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefork.config.config import Config, Setting, raw_of, resolve
from prefork.config.options import APP, OPTIONS, Option
from prefork.errors import ConfigError

_KNOWN = {option.name: option for option in (APP, *OPTIONS)}
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$| \(at end of document\)$")


def configure(
    app: str | None, flags: Mapping[str, Any], path: str | None, environ: Mapping[str, str] | None = None
) -> Config:
    """Resolve with the file at `path`, if one is given. Raises ConfigError.

    --chdir comes before all else, so a relative path starts there.
    """
    environ = os.environ if environ is None else environ
    if not path:
        return resolve(app, flags, environ)
    folder = flags.get("chdir") or environ.get("PREFORK_CHDIR") or ""
    if isinstance(folder, Setting):
        folder = folder.raw
    return resolve(app, flags, environ, read(path, Path(str(folder))))


def read(path: str, folder: Path = Path()) -> dict[str, Setting]:
    """What the file sets, by option name. Raises ConfigError."""
    try:
        text = (folder / path).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"cannot read {str(folder / path)!r}: {reason}") from None
    _check(text, path)
    settings: dict[str, Setting] = {}
    for line, key, value in _statements(text):
        where = f"{path}:{line}"
        if isinstance(value, dict):
            raise ConfigError(f"{where}: {key} is a table; options stand at the top level, as `workers = 4`")
        option = _option(key, where)
        if option.name in settings:
            raise ConfigError(f"{where}: {option.name} was given before, at {settings[option.name].source}")
        try:
            raw = raw_of(option, value)
        except TypeError as error:
            raise ConfigError(f"{where}: {key} is {_kind(value)}; {error}") from None
        settings[option.name] = Setting(raw=raw, source=where, where=f"{where}: {key}")
    return settings


def _check(text: str, path: str) -> None:
    """Raise ConfigError, with the line, if the text is not TOML."""
    import tomllib  # noqa: PLC0415 - 5 ms of start-up that only a file is worth

    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number of too many digits
        found = _AT_LINE.search(str(error))
        line = found[1] if found and found[1] else len(text.splitlines())
        raise ConfigError(f"{path}:{line}: this is not TOML: {_AT_LINE.sub('', str(error))}") from None


def _statements(text: str) -> Iterator[tuple[int, str, Any]]:
    """Each key with its value and the number of its first line. The text is TOML."""
    import tomllib  # noqa: PLC0415 - as above

    run: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        run.append(line)
        try:
            found = tomllib.loads("\n".join(run))
        except tomllib.TOMLDecodeError:
            continue  # within an array or a string of several lines
        for key, value in found.items():
            yield number - len(run) + 1, key, value
        run.clear()


def _option(key: str, where: str) -> Option:
    option = _KNOWN.get(key.replace("_", "-"))
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
