"""The command line: `prefork` and its commands. Options come from config.options.OPTIONS; errors have exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from prefork._version import __version__
from prefork.api import run
from prefork.cli.control import COMMANDS
from prefork.cli.inspect import COMMANDS as INSPECT
from prefork.cli.options import configured
from prefork.cli.send import exchange, head_request
from prefork.cli.top.command import top
from prefork.config.config import Config
from prefork.core.address import Address
from prefork.core.units import positive_duration
from prefork.errors import PreforkError

_SERVE_HELP = """Serve APP with worker processes that share one listener.

APP is `module:attribute`, `path.py:attribute`, `module:create()`, or a built-in: talkback (the default), echo, nap,
hello (WSGI), ahello (ASGI). What it is follows from its parameters: a WSGI or ASGI application; a handler
`def handle(conn)` or `async def handle(reader, writer)`; a subclass of socketserver.BaseRequestHandler or
asyncio.Protocol.

\b
  prefork serve --workers 4                 the built-in talkback on 127.0.0.1:1935
  prefork serve shop.wsgi:application -w 4 -t 8 -b 0.0.0.0:8000
  prefork serve shop.asgi:app -b unix:/run/app.sock --preload
  prefork serve chat.py:handle              your handler

Every option can also be set in the environment, --threads as PREFORK_THREADS, and in a file given with --config; a flag
wins over the environment, that over the file. Durations: 30, 30s, 500ms, 2m.

\b
Signals to the master: TERM and INT stop gracefully, a second INT or QUIT stops at once.
Exit codes: 0 stopped as asked, 2 bad usage, 3 workers cannot boot, 4 APP cannot be loaded, 5 cannot bind.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="prefork")
def cli() -> None:
    """A pre-fork server for Python: a master listens once, its workers accept on the shared socket."""


@cli.command(help=_SERVE_HELP)
@configured
def serve(config: Config) -> None:
    """Serve APP."""
    sys.exit(run(config))


@cli.command()
@click.argument("text", required=False)
@click.option("--to", "address", default="127.0.0.1:1935", show_default=True, help="HOST:PORT, [V6]:PORT or unix:PATH.")
@click.option("--timeout", default="10s", show_default=True, metavar="DURATION", help="Most that each step may take.")
@click.option("--head", is_flag=True, help="Send an HTTP HEAD request instead of TEXT.")
@click.option("--path", default="/", show_default=True, help="The path that --head asks for.")
@click.option("-v", "--verbose", is_flag=True, help="Say each step on stderr.")
def send(text: str | None, address: str, timeout: str, head: bool, path: str, verbose: bool) -> None:
    """Connect, send TEXT as a line, half-close, and print what comes back, to the end.

    Without TEXT, what is on standard input is sent as it is.

    \b
      prefork send "good morning"
      prefork send -v hello --to unix:/run/app.sock
      prefork send --head --path /health --to 127.0.0.1:8000
    """
    where = _parsed("--to", address, Address.parse)
    limit_s = _parsed("--timeout", timeout, positive_duration)
    if head:
        request = head_request(where, path)
    elif text is not None:
        request = text.encode("utf-8", "surrogateescape") + b"\n"
    else:
        request = sys.stdin.buffer.read()

    def tell(step: str) -> None:
        if verbose:
            click.echo(f"* {step}", err=True)

    def received(chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    exchange(where, request, timeout_s=limit_s, received=received, tell=tell)


def _parsed(flag: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from None


for _command in (*INSPECT, *COMMANDS, top):
    cli.add_command(_command)


def main() -> None:
    """The script's entry point: turn our errors into one line and their exit code."""
    try:
        cli.main(standalone_mode=True)
    except PreforkError as error:
        click.echo(f"prefork: {error}", err=True)
        if error.detail:
            click.echo(error.detail.rstrip(), err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)  # whoever read our output has gone; there is nobody to tell
