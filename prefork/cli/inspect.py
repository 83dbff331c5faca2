"""The commands that look without serving: `prefork config` and `prefork check`."""

from __future__ import annotations

import json
from typing import Any

import click

from prefork.cli.check import check as check_app
from prefork.cli.options import configured
from prefork.config.config import Config
from prefork.config.options import APP, OPTIONS, Option
from prefork.core.address import Address


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON: durations in seconds, sizes in bytes.")
@configured
def config(found: Config, as_json: bool) -> None:
    """Show every option's value and where it comes from, for the same command line as `prefork serve`.

    A flag wins over PREFORK_* in the environment, that over the file of --config, that over the default.
    """
    if as_json:
        document = {o.name: {"value": _plain(o, found), "source": found.sources[o.name]} for o in (APP, *OPTIONS)}
        click.echo(json.dumps(document, indent=2))
        return
    import tabulate  # noqa: PLC0415 - 20 ms, and only here

    rows = [(o.name, _text(o, found), found.sources[o.name]) for o in (APP, *OPTIONS)]
    click.echo(tabulate.tabulate(rows, headers=("option", "value", "source"), disable_numparse=True))


@click.command()
@configured
def check(found: Config) -> None:
    """Load APP in a process of its own, as a worker would, and say what it is; nothing is bound.

    Exit codes: 0 it can be served, 2 bad usage, 3 its process dies or hangs, 4 APP cannot be loaded.
    """
    finding = check_app(found)
    click.echo(f"{found.app} kind={finding.kind} engine={finding.engine}")


COMMANDS = (config, check)


def _plain(option: Option, found: Config) -> Any:
    """The value as JSON has it. An address and a mask are texts."""
    value = getattr(found, option.field)
    if option.many:
        return [str(item) for item in value]
    if isinstance(value, Address):
        return str(value)
    return f"{value:03o}" if option is _UMASK and value is not None else value


def _text(option: Option, found: Config) -> str:
    """The value as it could be written on the command line."""
    value = _plain(option, found)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}s"
    return " ".join(value) if option.many else "" if value is None else str(value)


_UMASK = next(option for option in OPTIONS if option.name == "umask")
