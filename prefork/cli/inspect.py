"""The commands that inspect without serving: `prefork config` and `prefork check`."""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any

import click

from prefork.cli.options import ConfiguredCommand, configured
from prefork.config.config import Config, unknown_variables
from prefork.config.options import APP, OPTIONS, Option
from prefork.core.address import Address
from prefork.core.log import Log, open_log
from prefork.core.privileges import identity_of, move
from prefork.core.process import ORPHANED, Exit, die_with_parent, spawn
from prefork.engines import ENGINES, import_early
from prefork.errors import AppLoadError, BootError
from prefork.runtime.hooks import load_hooks
from prefork.runtime.inherited import Inherited, tls_of
from prefork.runtime.logging_config import check_logging
from prefork.runtime.master_link import OF_CHECK, Kind, Receiver, Sender
from prefork.worker.process import load_app

# --- `check` loads the app as a worker would, in a child process, and binds nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The kind of the app, and the engine that would serve it."""

    kind: str
    engine: str


def check_app(config: Config) -> Finding:
    """Load and validate. Raises PreforkError, with the exit code that `prefork serve` would end with."""
    move(config.chdir, config.umask, config.sources)
    log = open_log(level=config.log_level, style=config.log_format)
    check_logging(config)
    import_early(config.app, user=config.user is not None)
    inherited = Inherited(
        hooks=load_hooks(config.hooks, log, app=config.app, source=config.sources["hooks"]),
        identity=identity_of(config.user, config.group, config.sources),
        tls=tls_of(config),
    )
    report, report_end = os.pipe2(os.O_CLOEXEC)
    child = _Child(config=config, inherited=inherited, log=log, report=report_end, parent=os.getpid())
    pid = spawn(child.run)
    os.close(report_end)
    receiver = Receiver(report, OF_CHECK)
    try:
        answer = _wait(receiver, config.boot_timeout_s)
    finally:
        os.kill(pid, signal.SIGKILL)  # it has ended, or is out of time
        exit_ = Exit.of_status(*os.waitpid(pid, 0))
        receiver.close()
    if answer is None and not receiver.closed:
        raise BootError(f"cannot load {config.app!r}: not done within --boot-timeout {config.boot_timeout_s:g} s")
    if answer is None:
        raise BootError(f"cannot load {config.app!r}: the process ended, by {exit_}", receiver.text)
    if answer.get("app_kind", "wsgi") not in ENGINES:
        raise BootError(f"cannot load {config.app!r}: the process named a kind that is none, {answer['app_kind']!r}")
    if answer["kind"] == Kind.FAILED:
        fault = AppLoadError if answer["code"] == AppLoadError.exit_code else BootError
        raise fault(answer["message"], answer["detail"])
    return Finding(kind=answer["app_kind"], engine=ENGINES[answer["app_kind"]])


def _wait(receiver: Receiver, limit_s: float) -> dict[str, Any] | None:
    """The child's answer, if it gave one before it ended or its time was over."""
    until_s = time.monotonic() + limit_s
    poll = select.poll()
    poll.register(receiver.fd, select.POLLIN)
    while not receiver.closed and (left_s := until_s - time.monotonic()) > 0:
        poll.poll(min(left_s, 3600.0) * 1000)
        if answers := list(receiver.read()):
            return answers[0]
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    """CHILD. Loads the app and reports its kind."""

    config: Config
    inherited: Inherited
    log: Log
    report: int
    parent: int

    def run(self) -> int:
        sender = Sender(self.report)
        if not self.inherited.assume_identity(sender):
            return BootError.exit_code
        if not die_with_parent(self.parent):
            return ORPHANED
        faulthandler.enable(file=self.report, all_threads=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        try:
            app = load_app(self.config, self.inherited, self.log)
        except AppLoadError as error:
            sender.send(Kind.FAILED, code=error.exit_code, message=str(error), detail=error.detail[-32_000:])
            return error.exit_code
        sender.send(Kind.LOADED, app_kind=app.kind)
        return 0


@click.command(cls=ConfiguredCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON: durations in seconds, sizes in bytes.")
@configured
def config(found: Config, as_json: bool) -> None:
    """Show every option's value and where it comes from. It takes the command line of `prefork serve`.

    A flag wins over a PREFORK_* variable, the variable over the file of --config, the file over the platform's PORT and
    WEB_CONCURRENCY, these over the default.
    """
    _warn_of_variables()
    if as_json:
        document = {o.name: {"value": _plain(o, found), "source": found.sources[o.name]} for o in (APP, *OPTIONS)}
        click.echo(json.dumps(document, indent=2))
        return
    import tabulate  # noqa: PLC0415 - 20 ms, and only here

    rows = [(o.name, _text(o, found), found.sources[o.name]) for o in (APP, *OPTIONS)]
    click.echo(tabulate.tabulate(rows, headers=("option", "value", "source"), disable_numparse=True))


@click.command(cls=ConfiguredCommand)
@configured
def check(found: Config) -> None:
    """Load APP as a worker does, and show its kind. In a separate process, which binds nothing.

    Exit codes: 0 APP can be served, 2 bad usage, 3 the process dies or hangs, 4 APP cannot be loaded.
    """
    _warn_of_variables()
    finding = check_app(found)
    click.echo(f"{found.app} kind={finding.kind} engine={finding.engine}")


COMMANDS = (config, check)


def _warn_of_variables() -> None:
    for name, hint in unknown_variables(os.environ).items():
        click.echo(f"prefork: {name} is no option: {hint}", err=True)


def _plain(option: Option, found: Config) -> Any:
    """The value as JSON has it. An address and a mask are texts."""
    value = getattr(found, option.field)
    if option.many:
        return [item.written if isinstance(item, Address) else str(item) for item in value]
    if isinstance(value, Address):
        return value.written
    return f"{value:03o}" if option is _UMASK and value is not None else value


def _text(option: Option, found: Config) -> str:
    """The value as it could be written on the command line."""
    value = _plain(option, found)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}s"
    return (option.separator or " ").join(value) if option.many else "" if value is None else str(value)


_UMASK = next(option for option in OPTIONS if option.name == "umask")
