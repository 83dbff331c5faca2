"""The options of `prefork serve` as flags, from config/options.py, and --control of the other commands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from prefork.config.config import configure
from prefork.config.foreign import answers
from prefork.config.options import GROUPS, OPTIONS, Option

# --- what every command that talks to a server has: --control, and its exit codes


_CONTROL_HELP = "The server's control socket; not needed if you run only one server."
EXITS = "Exit codes: 0 done, 1 refused or abandoned (with the reason), 6 no server."


def needs_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --control."""
    return click.option(
        "--control", "place", default="auto", envvar="PREFORK_CONTROL", metavar="PATH", help=_CONTROL_HELP
    )(command)


class ConfiguredCommand(click.Command):
    """A command whose help shows the options in their groups, and its own at the end.

    Who gives it options of another server is told ours.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as every command does. Raises UsageError."""
        given = args[:]  # parsing takes them out
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            ours = {flag for param in self.get_params(ctx) for flag in (*param.opts, *param.secondary_opts)}
            flags = [error.option_name, *(arg.partition("=")[0] for arg in given if arg.startswith("-"))]
            if lines := answers(flag for flag in flags if flag not in ours):
                raise click.UsageError("\n".join(lines), ctx) from None
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group."""
        given = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        lines = {param.name: line for param in given if (line := param.get_help_record(ctx))}
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([lines.pop(_variable(option)) for option in group])
        with formatter.section("Other"):
            formatter.write_dl(list(lines.values()))


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command APP, --config and every option; it is called with the resolved Config, then its own options."""

    def run(app: str | None, file: str | None, **given: Any) -> None:
        flags = {option.name: given.pop(_variable(option)) for option in OPTIONS}
        command(configure(app, flags, file), **given)

    whole: Callable[..., None] = functools.wraps(command)(run)
    for option in reversed(OPTIONS):
        whole = _option(option)(whole)
    whole = click.option(
        "-c",
        "--config",
        "file",
        metavar="FILE",
        help="Read options from FILE (TOML): `graceful-timeout = 10`, `app = …`; of a pyproject.toml, from its table "
        "[tool.prefork].",
    )(whole)
    return click.argument("app", required=False)(whole)


def _option(option: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    short = [f"-{option.short[1:]}"] if option.short else []
    if option.switch:
        names = [*short, f"{option.flag}/--no-{option.name}", _variable(option)]
        return click.option(*names, default=None, callback=_yes_or_no, help=option.help)
    names = [*short, option.flag, _variable(option)]
    text = f"{option.help}  [default: {option.default or 'none'}]"
    return click.option(*names, default=None, metavar=option.metavar, multiple=option.many, help=text)


def _variable(option: Option) -> str:
    return option.name.replace("-", "_")


def _yes_or_no(_context: click.Context, _parameter: click.Parameter, value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
