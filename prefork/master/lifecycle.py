"""MASTER. Its time in office: what it takes over, what the service manager hears of it, and to whom it hands over.

A master begins with what it finds (an heir with its estate, others with nothing), opens the pid file and the
listeners, and ends by giving them up. In between two masters may be there: from USR2 until the hand-over the old one
owns everything, the heir's listeners are `borrowed`. The two protocols are in upgrade.py (old) and heir.py (new).
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, MutableMapping

from prefork.config.config import Config
from prefork.core.address import Address
from prefork.core.listener import Listener, open_group, open_listener
from prefork.core.log import Log
from prefork.core.privileges import Place
from prefork.core.process import Exit
from prefork.core.systemd import ACTIVATED, Notifier, activated
from prefork.errors import BindError, ConfigError
from prefork.master.desk import Desk
from prefork.master.policy import Policy
from prefork.master.resources import Belongings
from prefork.master.roster import Abandoned, Action, Prepare, Reloaded
from prefork.master.upgrade import Heir, Taken, Upgrade
from prefork.master.workers import Workforce
from prefork.status.scoreboard import STOPPING

# --- Every listener of a server: passed by the service manager, inherited in an upgrade, or made here.
#
# Sockets that were passed stand in place of the default address; with --bind given, they come on top. The listener of
# --admin is none of the workers', but is inherited in the same way.


ADMIN_BACKLOG = 128


def open_listeners(
    config: Config, log: Log, heir: Heir | None, environ: MutableMapping[str, str]
) -> Iterator[Listener]:
    """Yield them as they are opened. Raises BindError or ConfigError: close what was yielded before."""
    wanted: list[tuple[str, Address | None]]  # what to ask the heir for; what to open if it has no such thing
    wanted = [(f"{ACTIVATED}{address.fd}", address) for address in activated(environ, log)]
    if heir:
        wanted += [(bind, None) for bind in heir.activated]
    if not wanted or config.sources["bind"] != "default":
        wanted += [(str(address), address) for address in config.bind]
    for bind, address in wanted:
        for listener in _open(bind, address, config, heir):
            if len(wanted) > 1 and listener.owned:
                listener.sock.setblocking(False)  # a lost race for one must not keep a worker from the others
            yield listener
        log.info("listening", address=listener.address)


def _open(bind: str, address: Address | None, config: Config, heir: Heir | None) -> list[Listener]:
    slots = config.workers if config.accept == "per-worker" else 1
    if heir and (inherited := heir.take(bind)):
        if len(inherited) != slots:
            raise ConfigError(
                f"cannot take over {bind}: it has {len(inherited)} sockets, one for each worker of the running server, "
                f"and {slots} are wanted now; restart to change --accept, or --workers with --accept per-worker"
            )
        for slot, listener in enumerate(inherited):
            listener.slot = slot if config.accept == "per-worker" else None  # of one socket, that may have changed
        return inherited
    assert address is not None
    if config.accept == "per-worker":
        return open_group(address, backlog=config.backlog, sockets=slots)
    listener = open_listener(address, backlog=config.backlog)
    listener.bind = bind
    return [listener]


def open_admin(config: Config, log: Log, heir: Heir | None) -> Listener | None:
    """The listener of --admin, if there is to be one. Raises BindError."""
    if config.admin is None:
        return None
    bind = f"--admin {config.admin}"
    inherited = heir.take(bind) if heir else []
    try:
        listener = inherited[0] if inherited else open_listener(config.admin, backlog=ADMIN_BACKLOG)
    except BindError as error:
        raise BindError(f"{config.sources['admin']}: {error}") from None
    listener.bind = bind
    log.info("admin listening", address=listener.address)
    if not listener.address.startswith(("127.", "[::1]", "unix:")):
        log.warning(
            "admin is not on loopback", address=listener.address, effect="whoever can connect to it may read all of it"
        )
    return listener


class Tenure:
    """MASTER. `open` when it starts, `turn` with each turn of its loop, `close` at the end."""

    def __init__(
        self,
        *,
        force: Workforce,
        policy: Policy,
        belongings: Belongings,
        desk: Desk,
        heir: Heir | None,
        place: Place,
    ) -> None:
        self._config = config = force.config
        self._log = log = force.log
        self._roster = force.roster
        self._listeners = force.listeners  # one list: what is handed over, the workforce has no longer
        self._board = force.board
        self._policy = policy
        self._belongings = belongings
        self._desk = desk
        self._heir = heir
        self._reloading = False  # the service manager has been told so
        self.notifier = Notifier(os.environ)
        self.upgrade = Upgrade(
            log=log,
            place=place,
            notifier=self.notifier,
            boot_timeout_s=config.boot_timeout_s,
            graceful_timeout_s=config.graceful_timeout_s,
        )

    @property
    def borrowing(self) -> bool:
        """True while everything is still the old master's."""
        return self._heir is not None and not self._heir.owner

    # --- taking over

    def open(self, drop: Callable[[], None]) -> None:
        """Lock the pid file and open the listeners. Raises PreforkError: which, and why not."""
        _raise_descriptor_limit()
        heir = self._heir
        self._belongings.open(drop, heir.take_pid_file(self._config.pid) if heir else None)
        for listener in open_listeners(self._config, self._log, heir, os.environ):
            self._listeners.append(listener)
        self._desk.admin.listener = open_admin(self._config, self._log, heir)
        if heir:
            heir.leave_the_rest()
            self.notifier.silence(True)
        else:
            self._desk.open()

    def ready(self) -> None:
        """All workers serve for the first time."""
        if self._heir and self.borrowing:
            self._heir.ready()
        else:
            self.notifier.ready(self._status())

    def failed(self, reason: str) -> None:
        """The start has failed: tell the old master, if there is one, before the process ends."""
        if self._heir and self.borrowing:
            self._heir.failed(reason)

    def _own(self, heir: Heir) -> None:
        """The old master has handed over, or died."""
        for listener in (*self._listeners, *self._desk.admin.listeners):
            listener.borrowed = False
        if self._belongings.pidfile is not None:
            self._belongings.pidfile.write()
        self._desk.open()
        self.notifier.silence(False)
        self.notifier.ready(self._status())
        self._log.info("took over", predecessor=heir.predecessor, generation=self._policy.rollout.generation)
        if self._policy.stopping:  # it was told to stop in between
            self.hold_off()

    # --- in office

    def fds(self) -> list[int]:
        """What is readable when the other master has spoken."""
        return self.upgrade.fds() + (self._heir.fds() if self._heir else [])

    def turn(self) -> float:
        """Hear the other master, keep deadlines, feed the watchdog. Returns when to come again (monotonic seconds)."""
        now_s = time.monotonic()
        if self._heir and self._heir.granted():
            self._own(self._heir)
        if taken := self.upgrade.step(now_s):
            self._hand_over(taken)
        if now_s >= self._policy.leaves_s:
            self.stop("--lame-duck is over")
        return min(self.upgrade.wake_s, self.notifier.tick(now_s), self._policy.leaves_s)

    def acted(self, action: Action) -> None:
        """The master did what the policy wanted: does the service manager want to know?"""
        if isinstance(action, Prepare) and self._policy.booted:
            self._reloading = True
            self.notifier.reloading()
        elif isinstance(action, (Reloaded, Abandoned)) and self._reloading:
            self._reloading = False
            why = f"; the last reload was abandoned: {action.reason}" if isinstance(action, Abandoned) else ""
            self.notifier.ready(self._status() + why)

    def buried(self, child: Exit) -> bool:
        """A child was reaped; True if it was the new master, or the admin."""
        return self.upgrade.buried(child) or self._desk.admin.bury(child)

    def _status(self) -> str:
        addresses = dict.fromkeys(listener.address for listener in self._listeners)
        return f"{self._policy.workers} workers serve {self._config.app} on {', '.join(addresses)}"

    # --- handing over

    def begin_upgrade(self) -> None:
        """Start a new master, or say why not."""
        refusal = self.upgrade.refusal(
            ready=self._policy.booted,
            stopping=self._policy.ending,
            reloading=bool(self._policy.rollout.phase),
            from_python=self._config.target is not None,
        )
        if refusal:
            self._log.warning("upgrade refused", reason=refusal)
            return
        try:
            self.upgrade.begin(
                [*self._listeners, *self._desk.admin.listeners],
                self._belongings.pidfile,
                generation=self._policy.rollout.generation,
                configured=self._config.workers,
                workers=self._policy.workers,
            )
        except OSError as error:  # no process, memory or descriptor left: whatever it is, it is no reason to stop
            self._log.error("upgrade failed", reason=f"cannot fork: {error.strerror}", serving="the old version")

    def _hand_over(self, taken: Taken) -> None:
        """The new master is ready: give it what it took, keep what it has no use for, and go."""
        self._desk.leave()  # first: the new one may make its control socket at the same place
        if not self.upgrade.grant():
            self._desk.open()
            return
        for listener in list(self._listeners):
            if listener.sock.fileno() in taken.fds:
                self._listeners.remove(listener)
                listener.close()
        self._desk.admin.hand_over(taken.fds)
        if self._belongings.pidfile is not None and self._belongings.pidfile.fd in taken.fds:
            self._belongings.hand_over_pidfile()
        self.stop("upgrade")

    # --- the end

    def leave(self, why: str) -> None:
        """The server is to stop: when --lame-duck is over, or at once if there is none or it is asked again.

        Until then clients are served as ever, and whoever sends them here is told to send no more.
        """
        policy = self._policy
        if policy.ending or not policy.booted or self.borrowing or not self._config.lame_duck_s:
            self.stop(why)
            return
        now_s = time.monotonic()
        policy.leaves_s = now_s + self._config.lame_duck_s
        self._give_notice(why, now_s)
        self._log.info("leaving", signal=why, stops_in=f"{self._config.lame_duck_s:g}s")

    def stop(self, why: str) -> None:
        """The server stops, and an upgrade with it."""
        now_s = time.monotonic()
        self.hold_off()
        self._give_notice(why, now_s)
        self._policy.stop(now_s)
        self._log.info("stopping", signal=why, workers=len(self._roster))

    def _give_notice(self, why: str, now_s: float) -> None:
        self._reloading = False  # nobody waits for the end of a reload any more
        self.notifier.stopping(f"stopping: {why}")
        if not self.upgrade.done:
            self.upgrade.cancel("the server stops", now_s)

    def hold_off(self) -> None:
        """The server stops: no newcomers, and what waits is for the workers to serve, unless it is another master's."""
        mine = [listener for listener in self._listeners if not listener.borrowed]
        self._board.header[STOPPING] = bool(mine)  # first: a signal to the group makes workers leave by themselves
        for listener in mine:
            listener.hold_off()

    def close(self) -> None:
        """Every worker has gone: remove what is ours."""
        for listener in self._listeners:
            listener.unlink()  # while our socket pins its inode: a successor may bind the path at once
            listener.close()
        self._belongings.close()
        self._desk.close()

    def drop(self) -> None:
        """CHILD: close what only the master may hold."""
        self._belongings.drop()
        self._desk.drop()
        self.upgrade.drop()
        if self._heir:
            self._heir.drop()
        for listener in self._listeners:
            listener.drop_plug()


def _raise_descriptor_limit() -> None:
    """Use all descriptors that the system allows: connections are descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
