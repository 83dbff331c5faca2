"""CLIENT. The commands that talk to a running server: status, reload, scale, stop, stack, deaths."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from prefork.cli.options import EXITS, needs_server
from prefork.control.client import ask, find, printable, wait_gone
from prefork.status.deaths import KEPT, deaths_page
from prefork.status.definitions import explanation
from prefork.status.document import stacks_page, table


@click.command(epilog=EXITS)
@needs_server
@click.option("--json", "as_json", is_flag=True, help="The whole status as JSON.")
@click.option("--explain", is_flag=True, help="Explain each figure; needs no server.")
def status(place: str, as_json: bool, explain: bool) -> None:
    """Show what a running server and its workers are doing."""
    if explain:
        click.echo(explanation())
        return
    document = ask(find(place), {"command": "status"}, progress=_ignore)
    click.echo(json.dumps(document, indent=2) if as_json else printable(table(document)))


@click.command(epilog=EXITS)
@needs_server
def reload(place: str) -> None:
    """Replace every worker by one that loads APP anew. Each is ready before the old one retires; wait for the end."""
    answer = _watch(place, {"command": "reload"})
    workers = _workers(answer["workers"])
    click.echo(f"reloaded: generation {answer['generation']}, {workers}, in {answer['took_s']:.1f} s")


@click.command(epilog=EXITS)
@click.argument("workers", type=click.IntRange(min=0))
@needs_server
def scale(place: str, workers: int) -> None:
    """Change the number of workers to WORKERS. With 0, clients wait in the accept queue. Wait for the end."""
    answer = _watch(place, {"command": "scale", "workers": workers})
    click.echo(f"scaled: {_workers(answer['workers'])} (before: {answer['before']}), in {answer['took_s']:.1f} s")


@click.command(epilog=EXITS)
@needs_server
def stop(place: str) -> None:
    """Stop the server gracefully, like SIGTERM, and wait for its end."""
    answer = _watch(place, {"command": "stop"})
    wait_gone(answer["pid"])
    click.echo(f"stopped in {answer['took_s']:.1f} s")


@click.command(epilog=EXITS)
@click.argument("slot", type=click.IntRange(min=0), required=False)
@needs_server
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def stack(place: str, slot: int | None, as_json: bool) -> None:
    """Show the Python stacks of all workers, or of the worker in SLOT."""
    answer = ask(find(place), {"command": "stack", "slot": slot}, progress=_ignore)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(printable(stacks_page(answer)))


@click.command(epilog=EXITS)
@needs_server
@click.option("--last", default=KEPT, type=click.IntRange(min=1), metavar="N", help="Only the last N.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def deaths(place: str, last: int, as_json: bool) -> None:
    """Show how workers died unexpectedly. Of each: the time, the cause, the request in progress, and the stacks."""
    answer = ask(find(place), {"command": "deaths", "last": last}, progress=_ignore)
    click.echo(json.dumps(answer, indent=2) if as_json else printable(deaths_page(answer)))


COMMANDS = (status, reload, scale, stop, stack, deaths)


def _watch(place: str, request: dict[str, Any]) -> Any:
    """Send a command that takes time, and show its progress on a terminal."""
    terminal = sys.stderr.isatty()

    def show(text: str) -> None:
        if terminal:
            click.echo(f"\r\x1b[K{printable(text)}", err=True, nl=False)

    try:
        return ask(find(place), request, progress=show)
    finally:
        if terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _ignore(_text: str) -> None:
    pass
