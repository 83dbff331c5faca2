"""The flags of `loadtest run` that say what the load is: one for each key of a plan's load, read by the same parser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from . import values
from .plan import Load

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULT = Load(name="")


class Value(click.ParamType[Any]):
    """A flag's value, read by the same parser as the plan's key of that name."""

    def __init__(self, name: str, parse: Callable[[Any], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value, or click's usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_OPTIONS = (
    click.option("--scenario", type=Value("NAME", values.scenario), help="talkback (default), echo, nap or http."),
    click.option(
        "--connections", type=Value("N", values.count), help=f"All clients together ({_DEFAULT.connections})."
    ),
    click.option("--engine", type=Value("NAME", values.engine), help="Of the generator: fast (default) or readable."),
    click.option(
        "--rate",
        "rate_per_s",
        type=Value("N", values.rate_per_s),
        help="Exchanges that come due each second, whatever the server does; latency counts from then.",
    ),
    click.option("--arrivals", type=Value("HOW", values.arrivals), help="With --rate: constant (default) or poisson."),
    click.option(
        "--max-in-flight",
        type=Value("N", values.count),
        help=f"With --rate: what comes due while so many are under way is missed ({_DEFAULT.max_in_flight}).",
    ),
    click.option(
        "--duration",
        "duration_s",
        type=Value("TIME", values.duration_s),
        help=f"Measured time of a round ({_DEFAULT.duration_s:g}s).",
    ),
    click.option(
        "--warmup",
        "warmup_s",
        type=Value("TIME", values.pause_s),
        help=f"Load before it, not counted ({_DEFAULT.warmup_s:g}s).",
    ),
    click.option(
        "--payload",
        type=Value("BYTES", values.count),
        help=f"Length of the line that is sent ({_DEFAULT.payload}).",
    ),
    click.option(
        "--exchanges",
        type=Value("N", values.count),
        help=f"Exchanges on one connection, where it is kept ({_DEFAULT.exchanges}).",
    ),
)


def load_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with them, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
