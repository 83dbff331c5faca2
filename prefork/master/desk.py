"""MASTER. Where operators are served: control socket, commands, history and admin, as one object for its loop."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefork.config.config import Config
from prefork.control.server import Control
from prefork.core.log import Log
from prefork.master.admin_process import AdminHandle
from prefork.master.commands import Commands
from prefork.master.history import History
from prefork.master.policy import Policy
from prefork.master.roster import Abandoned, Action, Reloaded, Spawn
from prefork.master.workers import Message, Workforce
from prefork.status.deaths import DeathRecord


class Desk:
    """MASTER. It is told what happens, `hear`s what operators ask for, and `tell`s them how it went."""

    def __init__(
        self,
        *,
        config: Config,
        policy: Policy,
        force: Workforce,
        log: Log,
        scale: Callable[[int], str | None],
        stop: Callable[[str], None],
    ) -> None:
        self._place = config.control
        self._first = policy.first
        self._oom = force.oom
        self.history = History(config=config, policy=policy, force=force)
        self.admin = AdminHandle(config=config, force=force, state=self.history.state)
        self._commands = Commands(policy=policy, force=force, history=self.history, log=log, scale=scale, stop=stop)
        self.control = Control(self._commands.obey, log)
        self.fd = self.control.fd

    def open(self) -> None:
        """Make the control socket where the configuration wants it, a line in the log says so if that fails; begin to
        answer on --admin."""
        self.control.open(self._place)
        self.history.control = self.control.path
        self.admin.begin()

    # --- each turn of the master's loop

    def hear(self) -> None:
        """Read requests and carry them out; the master decides on the effect next."""
        self.control.read_requests(time.monotonic())

    def tell(self) -> float:
        """After the master has acted: answer. Returns when to come again (monotonic seconds)."""
        now_s = time.monotonic()
        return min(
            self.history.tick(now_s), self.control.maintain(now_s), self.admin.tell(now_s), self._oom.tick(now_s)
        )

    # --- what happened

    def heard(self, message: Message) -> None:
        """A worker has spoken."""
        self.history.message_received(message)
        self._commands.heard(message)

    def buried(self, death: DeathRecord) -> None:
        """A worker was reaped."""
        self.history.worker_exited(death)
        self.admin.publish()

    def mourned(self, death: DeathRecord, respawn_in_s: float | None) -> None:
        """That worker was to live."""
        self.history.worker_died(death, None if death.worker.retiring_s is not None else respawn_in_s)

    def spawned(self, order: Spawn) -> None:
        """A worker was forked."""
        self.history.worker_spawned(order)

    def acted(self, action: Action) -> None:
        """The master did what the policy wanted."""
        match action:
            case Reloaded(generation) if generation > self._first:
                self.history.reload_finished(generation, None)
            case Abandoned(generation, reason):
                self.history.reload_finished(generation, reason)

    # --- ends

    def leave(self) -> None:
        """Another master is to be asked from now on; commands that were begun here are told their end here."""
        self.control.stop_accepting()
        self.history.control = None
        self.admin.leave()

    def close(self) -> None:
        """The server has ended: whoever waits for that is told now."""
        self.admin.end()
        self._commands.ended = True
        self.control.close(time.monotonic())

    def drop(self) -> None:
        """CHILD: close what only the master may hold."""
        self.control.close_in_child()
        self.admin.drop()
