"""The command line. Options come from config/options.py; errors have their exit codes (errors.py)."""

from __future__ import annotations

import difflib
import shlex
import sys

import click

from prefork._version import __version__
from prefork.api import run
from prefork.cli.control import COMMANDS
from prefork.cli.inspect import COMMANDS as INSPECT
from prefork.cli.options import ConfiguredCommand, configured
from prefork.cli.send import send
from prefork.cli.top.command import top
from prefork.config.config import Config
from prefork.core.log import LogWriter
from prefork.errors import PreforkError

_SERVE_HELP = """Serve APP with worker processes that share one listener.

APP is `module:attribute`, `path.py:attribute`, `module:create()`, a module whose `application` or `app` is meant, or
a built-in: talkback (the default), echo, nap, hello (WSGI), ahello (ASGI). Its parameters show its kind: a WSGI or ASGI
application; a handler `def handle(conn)` or `async def handle(reader, writer)`; a subclass of
socketserver.BaseRequestHandler or asyncio.Protocol.

\b
  prefork serve --workers 4                 the built-in talkback on 127.0.0.1:1935
  prefork serve shop.wsgi:application -w 4 -t 8 -b 0.0.0.0:8000
  prefork serve shop.asgi:app -b unix:/run/app.sock --preload
  prefork serve chat.py:handle              your handler

Every option can also be set in the environment, --threads as PREFORK_THREADS, and in a file given with --config; a flag
wins over the environment, the environment over the file, the file over a platform's PORT (0.0.0.0:$PORT) and
WEB_CONCURRENCY (workers). Durations: 30, 30s, 500ms, 2m.

\b
Signals to the master: TERM and INT stop gracefully, a second INT or QUIT stops at once.
Exit codes: 0 stopped as asked, 2 bad usage, 3 workers cannot boot, 4 APP cannot be loaded, 5 cannot bind.
"""


class Commands(click.Group):
    """The commands. Who leaves the word `serve` out, as other servers have it, is told so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as every group does. Raises UsageError."""
        given = args[:]  # parsing takes them out
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(f"No such option {error.option_name}. {_meant(given)}", ctx) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UsageError."""
        name = args[0]
        if self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        if name in _SERVES:
            hint = _meant(args[1:])
        elif near := difflib.get_close_matches(name, self.commands, n=1):
            hint = f"Did you mean {near[0]!r}?"
        else:
            hint = _meant(args) if ":" in name or "." in name else "`prefork --help` lists the commands."
        raise click.UsageError(f"No such command {name!r}. {hint}", ctx)


_SERVES = ("run", "start", "server")  # as other programs call it


def _meant(args: list[str]) -> str:
    return f"Did you mean `{shlex.join(['prefork', 'serve', *args])}`?"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="prefork")
def cli() -> None:
    """A pre-fork server for Python: a master listens once, its workers accept on the shared socket."""


@cli.command(cls=ConfiguredCommand, help=_SERVE_HELP)
@configured
def serve(config: Config) -> None:
    """Serve APP."""
    sys.exit(run(config))


for _command in (*INSPECT, *COMMANDS, send, top):
    cli.add_command(_command)


def main() -> None:
    """The entry point: print a PreforkError as one line, and exit with its code."""
    try:
        cli.main(standalone_mode=True)
    except PreforkError as error:
        if not error.logged:
            _say("\n".join(filter(None, (f"prefork: {error}", error.detail.rstrip()))))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)  # the reader of our output has gone


def _say(text: str) -> None:
    """Print to standard error, but do not wait for long for a reader that is stuck: the exit code has to come."""
    try:
        fd = sys.stderr.fileno()
    except (OSError, AttributeError, ValueError):  # replaced, or none
        click.echo(text, err=True)
        return
    sys.stderr.flush()
    LogWriter(fd).write(f"{text}\n".encode(sys.stderr.encoding, "backslashreplace"))
