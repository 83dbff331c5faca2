"""The flags of `loadtest run` that say what the load is: one for each key of a plan's load, read by the same parser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loadtest.plan import values
from loadtest.plan.plan import Load

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULT = Load(name="")


class Value(click.ParamType[Any]):
    """Click's type of a flag whose value is read by the parser of the plan's key of that name."""

    def __init__(self, name: str, parse: Callable[[Any], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the value, or raise click's usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_OPTIONS = (
    click.option(
        "--scenario", type=Value("NAME", values.scenario), help="talkback (default), echo, nap, http or websocket."
    ),
    click.option(
        "--connections", type=Value("N", values.count), help=f"All clients together ({_DEFAULT.connections})."
    ),
    click.option("--engine", type=Value("NAME", values.engine), help="Of the generator: fast (default) or readable."),
    click.option(
        "--generators",
        type=Value("N", values.count),
        help=f"Processes that make the load together ({_DEFAULT.generators}); more where one is the limit.",
    ),
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
        type=Value("BYTES", values.length),
        help=f"Length of the line or message that is sent, or of the body of a POST ({_DEFAULT.payload}).",
    ),
    click.option(
        "--exchanges",
        type=Value("N", values.count),
        help="Exchanges on one connection, where it is kept (10 for echo, else no limit).",
    ),
    click.option("--method", type=Value("METHOD", values.method), help=f"Of http requests ({_DEFAULT.method})."),
    click.option(
        "--path",
        type=Value("PATH", values.path),
        help=f"Of http and websocket requests, with a query ({_DEFAULT.path}).",
    ),
    click.option(
        "--header",
        "headers",
        type=Value("'NAME: VALUE'", lambda line: values.headers([line])[0]),
        multiple=True,
        callback=lambda _context, _option, lines: lines or None,
        help="Of http and websocket requests; repeat it for more.",
    ),
    click.option("--body", metavar="TEXT|@FILE", help="Of http requests (for POST, PUT, PATCH: --payload bytes)."),
    click.option("--keep-alive/--no-keep-alive", default=None, help="Whether http connections are kept (they are)."),
    click.option("--status", type=Value("STATUS", values.status), help=f"Of a good response ({_DEFAULT.status})."),
    click.option("--length", type=Value("BYTES", values.length), help="Of a good response's body (any)."),
    click.option("--tls/--no-tls", default=None, help="Whether http and websocket speak TLS (they do not)."),
    click.option("--insecure/--no-insecure", default=None, help="With --tls: take any certificate."),
    click.option("--ca", metavar="FILE", help="With --tls: certificates to trust (the system's)."),
    click.option("--message", type=Value("KIND", values.message), help="Of websocket: text (default) or binary."),
)


def load_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
