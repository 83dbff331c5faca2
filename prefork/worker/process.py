"""WORKER. What a forked child does from its first instruction to its exit code. The master's record is a WorkerHandle.

`Worker.run` starts with every signal blocked (core/process.py) and goes on in this order: closes what is the master's,
ties itself to the master, takes its signals, unblocks, takes its identity, loads the app, runs one engine.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import setproctitle

from prefork.config import env_file
from prefork.config.config import Config
from prefork.config.options import PASSWORD_VARIABLE
from prefork.core.listener import Listener, own_share
from prefork.core.log import Log, guard_output
from prefork.core.process import ORPHANED, adopted, die_with_parent, prefer_as_victim
from prefork.engines import ENGINES, engine_of, import_for
from prefork.engines.context import WorkerContext
from prefork.errors import AppLoadError, BootError, ConfigError
from prefork.runtime.forks import OURS
from prefork.runtime.hooks import WorkerPlace
from prefork.runtime.inherited import Inherited
from prefork.runtime.loader import App
from prefork.runtime.logging_config import configure_logging
from prefork.runtime.master_link import MasterLink, Sender
from prefork.runtime.orders import GRACE_MARGIN_S, Orders
from prefork.runtime.transfer import TransferQueue
from prefork.status.scoreboard import HEARTBEAT, PID, SINCE, Row, Scoreboard
from prefork.worker.exit import Exit, forget_callers, forget_processes

BOOT_FAILED = 3
APP_FAILED = 4


# --- The application comes into the process. It may have files with the names of standard modules beside it, or
# replace parts of the standard library (gevent, eventlet). What prefork needs of that is imported, name by name,
# before the application; asyncio, which is heavy and which few need, after it, but from the other folders first.


def load_app(config: Config, inherited: Inherited, log: Log) -> App:
    """WORKER, TEMPLATE and `prefork check`. Load the app, and the engine that serves it. Raises AppLoadError."""
    guard_output(log)
    before = sys.path[:]
    _set_variables(config)
    configure_logging(config, log)
    app = inherited.load(config.app, config.interface, factory=config.factory)
    if OURS.forked:
        OURS.end()
    if app.renamed:
        log.debug("app module renamed", app=app.name, module=app.renamed, reason="another module has its name")
    if fault := _fault_of_patch(app, config):
        raise AppLoadError(fault)
    import_for(app.kind, config.loop, before)
    return app


def _set_variables(config: Config) -> None:
    """Set the variables of --env-file that the environment does not have. Raises AppLoadError.

    What an application starts, or shows on a page of errors, must not have the password of the key.
    """
    os.environ.pop(PASSWORD_VARIABLE, None)
    if config.env_file:
        try:
            variables = env_file.read(config.env_file, config.sources["env-file"], os.environ)
        except ConfigError as error:
            raise AppLoadError(str(error)) from None
        for name, value in variables.items():
            os.environ.setdefault(name, value)


def _fault_of_patch(app: App, config: Config) -> str | None:
    """Return why the app cannot be served in an interpreter whose threads or selectors it has replaced, or None."""
    if _thread.start_new_thread is start_new_thread and hasattr(select, "epoll"):
        return None
    engine = ENGINES[app.kind]
    if engine == "aio":
        what, cure = "asyncio", "leave the patch out"
    elif engine == "blocking":
        what, cure = f"a {app.kind} handler, which needs threads,", "leave the patch out"
    elif config.threads > 1:
        what, cure = f"--threads {config.threads}", "use --threads 1, or leave the patch out"
    elif config.tls_cert:
        what, cure = "--tls-cert", "let a proxy do TLS, or leave the patch out"
    else:
        return None
    patcher = next((name for name in ("gevent", "eventlet") if name in sys.modules), "the application")
    return f"cannot serve {app.name!r}: {patcher} has patched the interpreter, where {what} cannot work; {cure}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """WORKER. Everything it was given before the fork."""

    slot: int
    generation: int
    group: int
    config: Config
    log: Log
    board: Scoreboard
    orders: Orders
    orders_fd: int  # read end of the pipe in which orders are announced
    transfer: TransferQueue
    wake_fd: int  # eventfd of all workers (engines/accept.py)
    listeners: Sequence[Listener]
    report: int  # write end of the pipe to the master
    lifeline: int  # read end of the pipe whose EOF is the master's death
    master: int  # pid
    close_in_child: Callable[[], None]  # closes what only the master may hold
    inherited: Inherited
    app: App | None = None  # loaded already, by the template

    def run(self) -> int:
        """Serve until told to stop. Returns the exit code."""
        self.close_in_child()
        prefer_as_victim(self.master)
        if not self.inherited.assume_identity(Sender(self.report)):
            return BOOT_FAILED
        if not adopted(self.master, self.lifeline) or not die_with_parent(self.master):
            return ORPHANED
        if self.app is None:  # else what is registered is the application's, from the template
            forget_callers()
        forget_processes()
        pid = os.getpid()
        OURS.begin(f"worker {self.slot} gen={self.generation}", self.log, self.listeners)
        OURS.own(self.wake_fd, *self.transfer.fds)
        OURS.own_memory(self.board.memory)
        if self.inherited.imports:
            OURS.own(self.inherited.imports.reports.fileno())
        link = MasterLink(
            lifeline=self.lifeline,
            sender=Sender(self.report),
            orders=self.orders,
            orders_fd=self.orders_fd,
            group=self.group,
            graceful_timeout_s=self.config.graceful_timeout_s,
            title=self._title,
            reopen=self.log.reopen,
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        self.log.identify(worker=self.slot, gen=self.generation, pid=pid)
        self._title("starting")
        os.environ["PREFORK_SLOT"] = str(self.slot)
        os.environ["PREFORK_GENERATION"] = str(self.generation)
        rows = [self.board.row(self.group, thread) for thread in range(self.config.threads)]
        for row in rows:
            row.cells[PID] = pid
        place = WorkerPlace(slot=self.slot, generation=self.generation, pid=pid)
        ending = Exit(self.log, self.config.graceful_timeout_s)
        end = partial(self._end, rows, link, ending)
        try:
            app = self.app or load_app(self.config, self.inherited, self.log)
            link.look()
            if not link.told_to_retire:  # else that came while the app was loaded
                self.inherited.hooks.worker_started(place)
                if OURS.forked:
                    OURS.end()
                self._serve(app, rows, link, end)
                end()
                self.inherited.hooks.worker_stopping(place)
        except (AppLoadError, BootError) as error:
            link.failed(error.exit_code, str(error), error.detail)
            return error.exit_code
        end()
        ending.run()
        if OURS.forked:
            OURS.end()
        self.log.report_losses()
        return 0

    def _serve(self, app: App, rows: list[Row], link: MasterLink, end: Callable[[], None]) -> None:
        """Run the engine. Returns when its last connection is done."""
        listeners = own_share(self.listeners, self.slot, everything=link.stopping)
        OURS.listeners = listeners
        context = WorkerContext(
            app=app,
            config=self.config,
            listeners=listeners,
            rows=rows,
            board=self.board,
            orders=self.orders,
            group=self.group,
            generation=self.generation,
            master=self.master,
            transfer=self.transfer,
            wake_fd=self.wake_fd,
            inherited=self.inherited,
            link=link,
            log=self.log,
            end=end,
        )
        engine_of(app.kind)(context).run()

    def _end(self, rows: list[Row], link: MasterLink, ending: Exit) -> None:
        """Note that the last connection is done: from here on the worker is judged by --graceful-timeout alone."""
        for row in rows:
            row.cells[SINCE] = 0
        rows[0].cells[HEARTBEAT] = 0
        if not link.ordered and self.config.timeout_s:  # the master does not know: let --timeout end at the same time
            last_s = link.leave_by_s + GRACE_MARGIN_S - self.config.timeout_s
            rows[0].cells[HEARTBEAT] = max(1, round(last_s * 1e9))
        ending.watch(link.leave_by_s)

    def _title(self, state: str) -> None:
        setproctitle.setproctitle(f"prefork: worker {self.slot} gen={self.generation} {state}")
