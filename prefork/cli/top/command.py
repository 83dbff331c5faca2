"""CLIENT. `prefork top` on the command line."""

from __future__ import annotations

import os
import sys

import click

from prefork.cli.options import EXITS, talks
from prefork.cli.top.loop import LOOK, Courier, Loop
from prefork.cli.top.terminal import Keyboard, Screen
from prefork.control.client import ask, find
from prefork.core.units import positive_duration


def _interval(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return max(0.1, positive_duration(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(epilog=EXITS)
@talks
@click.option(
    "--interval", "every_s", default="1s", show_default=True, metavar="DURATION", callback=_interval,
    help="From one look to the next, at least 100ms.",
)  # fmt: skip
def top(place: str, every_s: float) -> None:
    """Watch a running server live: rates, latencies, what each worker is serving. Press h for its keys."""
    if not (sys.stdout.isatty() and sys.stdin.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise click.UsageError("prefork top needs a terminal that can move its cursor; prefork status prints once")
    screen = Screen()
    path = find(place)
    first = ask(path, LOOK, progress=_ignore)
    with Keyboard(sys.stdin.fileno()) as keyboard, screen:
        courier = Courier(place, path)
        Loop(courier=courier, first=first, every_s=every_s, screen=screen, keyboard=keyboard).run()


def _ignore(_text: str) -> None:
    pass
