"""--log-config FILE: the application's logging, as `logging.config` of the standard library reads it.

The master and `prefork check` read the file, so that a mistake in its form is told at once. Each worker, or the
template of --preload, reads it again and applies it before the application is imported: a reload takes what it says by
then. prefork's own log is not configured by it, whatever it says of the logger "prefork".
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefork.errors import AppLoadError, ConfigError

if TYPE_CHECKING:
    from configparser import ConfigParser

    from prefork.config.config import Config
    from prefork.core.log import Log


def check_logging(config: Config) -> None:
    """MASTER and `prefork check`, where paths lead to what workers will read. Raises ConfigError."""
    if config.log_config:
        try:
            _read(config.log_config)
        except ValueError as error:
            raise ConfigError(f"{config.sources['log-config']}: {config.log_config!r}: {error}") from None


def configure_logging(config: Config, log: Log) -> None:
    """WORKER and TEMPLATE, before the app is imported. Raises AppLoadError."""
    if not config.log_config:
        return
    try:
        said = _read(config.log_config)
        with log.kept(), _modules_from_here():
            from logging.config import dictConfig, fileConfig  # noqa: PLC0415 - 10 ms that only this is worth

            if isinstance(said, dict):
                dictConfig({"disable_existing_loggers": False, **said})
            else:
                fileConfig(said, disable_existing_loggers=False)
    except Exception as error:  # noqa: BLE001 - handlers and formatters may be anybody's code
        raise AppLoadError(f"{config.sources['log-config']}: {config.log_config!r}: {_sentence(error)}") from None


def _read(path: str) -> dict[str, Any] | ConfigParser:
    """What the file says, by its suffix. Raises ValueError, with a sentence for the user."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ValueError(f"cannot read it: {error.strerror}") from None
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".ini", ".conf", ".cfg"):
        return _read_ini(text, path)
    if suffix == ".toml":
        said = importlib.import_module("tomllib").loads(text)
    elif suffix == ".json":
        said = json.loads(text)
    elif suffix in (".yaml", ".yml"):
        said = _read_yaml(text)
    else:
        raise ValueError("its name has to end in .ini, .conf, .cfg, .json, .toml, .yaml or .yml")
    if not isinstance(said, dict) or said.get("version") != 1:
        raise ValueError("it has no `version`, which has to be 1 (logging.config.dictConfig)")
    return said


def _read_yaml(text: str) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ModuleNotFoundError:
        raise ValueError("YAML needs the package PyYAML: pip install 'prefork[yaml]'") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(_sentence(error)) from None


def _read_ini(text: str, path: str) -> ConfigParser:
    """As logging.config.fileConfig. `%(here)s` in it is the file's folder."""
    from configparser import ConfigParser, Error  # noqa: PLC0415 - as logging.config

    absolute = os.path.abspath(path)
    parser = ConfigParser({"here": os.path.dirname(absolute), "__file__": absolute})
    try:
        parser.read_string(text, path)
    except Error as error:
        raise ValueError(_sentence(error)) from None
    for section in ("loggers", "handlers", "formatters"):
        if not parser.has_section(section):
            raise ValueError(f"it has no section [{section}] (logging.config.fileConfig)")
    return parser


def _sentence(error: BaseException) -> str:
    """The error, and what led to it, in one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        said = f"it has no {said}"
    cause = error.__cause__
    return said if cause is None or str(cause) in said else f"{said}: {_sentence(cause)}"


@contextmanager
def _modules_from_here() -> Iterator[None]:
    """Have modules searched in the current folder too, after all others: handlers may be the application's."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(here)  # the last one
        sys.path.reverse()
