"""CLIENT. What every command has that talks to a server: where to find it, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_CONTROL_HELP = "The server's control socket; by default that of the only server that you are running."
EXITS = "Exit codes: 0 done, 1 refused or abandoned (and why), 6 no server."


def talks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every command has that talks to a server."""
    return click.option(
        "--control", "place", default="auto", envvar="PREFORK_CONTROL", metavar="PATH", help=_CONTROL_HELP
    )(command)
