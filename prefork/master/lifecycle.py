"""MASTER. Its start, its stop, and the upgrade between two masters.

A master begins with what it finds (a successor with what the old master hands over, others with nothing), opens the pid
file and the listeners, and ends by giving them up. During an upgrade there are two masters: from USR2 until the
hand-over the old one owns everything, and the listeners of the new one are `borrowed`. upgrade.py has the protocol.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

from prefork._version import __version__
from prefork.config.config import Config, unknown_variables
from prefork.config.options import PLATFORM
from prefork.control.server import Control
from prefork.core.address import Address, part_families
from prefork.core.listener import Listener, Owner, open_group, open_listener
from prefork.core.log import Log
from prefork.core.privileges import WorkingDirectory
from prefork.core.systemd import ACTIVATED, Notifier, activated
from prefork.errors import BindError, ConfigError
from prefork.master.admin_process import AdminHandle
from prefork.master.history import History
from prefork.master.observer import Observer
from prefork.master.policy import Policy
from prefork.master.resources import Resources
from prefork.master.upgrade import NewMasterReady, Takeover, Upgrade
from prefork.master.workers import Workers

# --- What the log says first, and when all workers serve.


def log_start(config: Config, log: Log) -> None:
    """Say what is started, and what of the environment is not what it seems to be."""
    python = ".".join(map(str, sys.version_info[:3]))
    log.info("starting", prefork=__version__, app=config.app, python=python)
    for name, hint in unknown_variables(os.environ).items():
        log.warning("unknown variable", name=name, hint=hint)
    if config.sources["app"] == "default":
        log.info(
            "no APP was given: this is the built-in talkback, which answers lines of text, not HTTP",
            try_it="prefork send hello",
            your_own="prefork serve shop.wsgi:application",
        )


def facts_of(config: Config, kind: str | None, engine: str | None, listeners: Sequence[Listener]) -> dict[str, Any]:
    """How an application is served, once a worker has told its kind; for HTTP with a URL to try."""
    facts: dict[str, Any] = {"kind": kind, "engine": engine, "loop": config.loop if engine == "aio" else None}
    tcp = next((listener.address for listener in listeners if not listener.address.startswith("unix:")), None)
    if kind in ("wsgi", "asgi") and tcp:
        host, _, port = tcp.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "localhost"}.get(host, host)  # noqa: S104 - compared, not bound
        facts["url"] = f"{'https' if config.tls_cert else 'http'}://{host}:{port}"
    return facts


# --- Every listener of a server: passed by the service manager, inherited in an upgrade, or made here.
#
# Sockets that were passed stand in place of the default address; with --bind given, they come on top. The listener of
# --admin is none of the workers', but is inherited in the same way.


ADMIN_BACKLOG = 128


def open_listeners(
    config: Config, log: Log, takeover: Takeover | None, environ: MutableMapping[str, str], owner: Owner | None
) -> Iterator[Listener]:
    """Yield them as they are opened. Raises BindError or ConfigError: close what was yielded before.

    `owner`: whose Unix sockets that are made here are to be.
    """
    wanted: list[tuple[str, Address | None]]  # what to take over; what to open if that is not there
    wanted = [(f"{ACTIVATED}{address.fd}", address) for address in activated(environ, log)]
    if takeover:
        wanted += [(bind, None) for bind in takeover.activated]
    if not wanted or config.sources["bind"] not in ("default", *PLATFORM):
        wanted += [(str(address), address) for address in part_families(config.bind)]
    for bind, address in wanted:
        for listener in _open(bind, address, config, takeover, owner):
            if len(wanted) > 1 and listener.owned:
                listener.sock.setblocking(False)  # a lost race for one must not keep a worker from the others
            yield listener
        log.info("listening", address=listener.address)


def _open(
    bind: str, address: Address | None, config: Config, takeover: Takeover | None, owner: Owner | None
) -> list[Listener]:
    slots = config.workers if config.accept == "per-worker" else 1
    if takeover and (inherited := takeover.take(bind)):
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
    listener = open_listener(address, backlog=config.backlog, owner=owner)
    listener.bind = bind
    return [listener]


def open_admin(config: Config, log: Log, takeover: Takeover | None, owner: Owner | None) -> Listener | None:
    """The listener of --admin, if there is to be one. Raises BindError."""
    if config.admin is None:
        return None
    bind = f"--admin {config.admin}"
    inherited = takeover.take(bind) if takeover else []
    try:
        listener = inherited[0] if inherited else open_listener(config.admin, backlog=ADMIN_BACKLOG, owner=owner)
    except BindError as error:
        raise BindError(f"{config.sources['admin']}: {error}") from None
    listener.bind = bind
    log.info("admin listening", address=listener.address)
    if not listener.address.startswith(("127.", "[::1]", "unix:")):
        log.warning(
            "admin is not on loopback", address=listener.address, effect="whoever can connect to it may read all of it"
        )
    return listener


class Lifecycle(Observer):
    """MASTER. `open` when it starts, `maintain` with each turn of its loop, `close` at the end."""

    def __init__(
        self,
        *,
        config: Config,
        log: Log,
        policy: Policy,
        workers: Workers,
        resources: Resources,
        history: History,
        control: Control,
        admin: AdminHandle,
        takeover: Takeover | None,
        started_in: WorkingDirectory,
    ) -> None:
        self._config = config
        self._log = log
        self._policy = policy
        self._workers = workers
        self._listeners = workers.listeners  # one list: what is handed over, new workers do not get any more
        self._children = workers.children
        self._resources = resources
        self._history = history
        self._control = control
        self._admin = admin
        self._takeover = takeover  # this master is the new one of an upgrade
        self._reloading = False  # the service manager has been told so
        self.notifier = Notifier(os.environ)
        self.upgrade = Upgrade(
            log=log,
            children=workers.children,
            started_in=started_in,
            notifier=self.notifier,
            boot_timeout_s=config.boot_timeout_s,
            graceful_timeout_s=config.graceful_timeout_s,
        )

    @property
    def borrowing(self) -> bool:
        """True while everything is still the old master's."""
        return self._takeover is not None and not self._takeover.owner

    # --- the start

    def open(self) -> None:
        """Lock the pid file and open the listeners. Raises PreforkError: which, and why not."""
        _raise_descriptor_limit()
        log_start(self._config, self._log)
        takeover = self._takeover
        pid_file = takeover.take_pid_file(self._config.pid) if takeover else None
        self._resources.open(self._children, self._workers.close_in_child, pid_file)
        identity = self._resources.inherited.identity
        owner = (identity.uid, identity.gid) if identity else None
        for listener in open_listeners(self._config, self._log, takeover, os.environ, owner):
            self._listeners.append(listener)
        self._admin.listener = open_admin(self._config, self._log, takeover, owner)
        if takeover:
            takeover.leave_the_rest()
            self.notifier.mute(True)
        else:
            self._open_to_operators()

    def ready(self, took_s: float) -> None:
        """All workers serve for the first time."""
        state = self._history.state()
        facts = facts_of(self._config, state.kind, state.engine, self._listeners)
        self._log.info("ready", workers=state.wanted, **{"in": f"{took_s:.2f}s"}, **facts)
        if self._takeover and self.borrowing:
            self._takeover.ready(takes=self._serves_http())
        else:
            self.notifier.ready(self._status())

    def _serves_http(self) -> bool:
        """Whether our workers give and take idle connections."""
        return self._history.state().kind in ("wsgi", "asgi") and self._workers.inherited.tls is None

    def give_up(self) -> None:
        """The start has failed, but the old master's listeners serve on: workers finish what they hold, or give it."""
        if self._takeover and self._takeover.shares_transfer and self._serves_http():
            self._workers.orders.give_to_another()
        self._policy.stop(time.monotonic())

    def failed(self, reason: str) -> None:
        """The start has failed: tell the old master, if there is one, before the process ends."""
        if self._takeover and self.borrowing:
            self._takeover.failed(reason)

    def _take_over(self, takeover: Takeover) -> None:
        """The old master has handed over, or died."""
        for listener in (*self._listeners, *self._admin.listeners):
            listener.borrowed = False
        if self._resources.pidfile is not None:
            self._resources.pidfile.write()
        self._open_to_operators()
        self.notifier.mute(False)
        self.notifier.ready(self._status())
        self._log.info("took over", predecessor=takeover.predecessor, generation=self._policy.rollout.generation)
        if self._policy.stopping:  # it was told to stop in between
            self._hold_off()

    def _open_to_operators(self) -> None:
        """Make the control socket, or say in the log why not, and begin to answer on --admin."""
        self._control.open(self._config.control)
        self._history.control = self._control.path
        self._admin.open()

    def _close_to_operators(self) -> None:
        """Another master is to be asked from now on. Who has asked here is answered to the end."""
        self._control.stop_accepting()
        self._history.control = None
        self._admin.stop_accepting()

    # --- each turn of the loop

    def fds(self) -> list[int]:
        """What is readable when the other master of an upgrade has sent a message."""
        return self.upgrade.fds() + (self._takeover.fds() if self._takeover else [])

    def maintain(self) -> float:
        """Read what the other master says, keep deadlines, say whose workers take connections, feed the watchdog.

        Return when to come again (monotonic seconds).
        """
        now_s = time.monotonic()
        if self._takeover and self._takeover.granted():
            self._take_over(self._takeover)
        if ready := self.upgrade.step(now_s):
            self._hand_over(ready)
        if now_s >= self._policy.stop_at_s:
            self.stop("--lame-duck is over")
        if not (self.borrowing or self._policy.stopping):
            self._workers.choose_takers(self._policy.rollout.generation)
        settle_s = self._workers.account.settle(now_s)
        return min(self.upgrade.wake_s, self.notifier.tick(now_s), self._policy.stop_at_s, settle_s)

    # --- what the service manager is told

    def reload_started(self) -> None:
        """Tell the service manager that a reload has begun."""
        self._reloading = True
        self.notifier.reloading()

    def reload_finished(self, generation: int, reason: str | None) -> None:  # noqa: ARG002 - the latest one
        """Tell the service manager that the reload has ended, if it was told of its beginning."""
        if self._reloading:
            self._reloading = False
            why = f"; the last reload was abandoned: {reason}" if reason is not None else ""
            self.notifier.ready(self._status() + why)

    def _status(self) -> str:
        addresses = dict.fromkeys(listener.address for listener in self._listeners)
        return f"{self._policy.workers} workers serve {self._config.app} on {', '.join(addresses)}"

    # --- an upgrade

    def begin_upgrade(self) -> None:
        """Start a new master, or log why not."""
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
                [*self._listeners, *self._admin.listeners],
                self._resources.pidfile,
                transfer=self._workers.transfer.fds,
                generation=self._policy.rollout.generation,
                configured=self._config.workers,
                workers=self._policy.workers,
            )
        except OSError as error:  # no process, memory or descriptor left: whatever it is, it is no reason to stop
            self._log.error("upgrade failed", reason=f"cannot fork: {error.strerror}", serving="the old version")

    def _hand_over(self, ready: NewMasterReady) -> None:
        """The new master is ready: give it what it took, keep what it has no use for, and stop."""
        self._close_to_operators()  # first: the new one may make its control socket at the same place
        if not self.upgrade.grant():
            self._open_to_operators()
            return
        for listener in list(self._listeners):
            if listener.sock.fileno() in ready.fds:
                self._listeners.remove(listener)
                listener.close()
        self._admin.hand_over(ready.fds)
        if self._resources.pidfile is not None and self._resources.pidfile.fd in ready.fds:
            self._resources.hand_over_pidfile()
        if ready.takes:
            self._workers.orders.give_to_another()
        self.stop("upgrade")

    # --- the stop

    def begin_lame_duck(self, why: str) -> None:
        """Stop when --lame-duck is over; at once without --lame-duck, or at the second call.

        Until then clients are served, but readiness checks fail.
        """
        policy = self._policy
        if policy.ending or not policy.booted or self.borrowing or not self._config.lame_duck_s:
            self.stop(why)
            return
        now_s = time.monotonic()
        policy.stop_at_s = now_s + self._config.lame_duck_s
        self._announce_stop(why, now_s)
        self._log.info("leaving", signal=why, stops_in=f"{self._config.lame_duck_s:g}s")

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """Stop the server, and an upgrade with it."""
        now_s = time.monotonic()
        if not at_once:  # it may take a moment, and nobody will serve the queues
            self._hold_off()
        self._announce_stop(why, now_s)
        self._policy.stop(now_s)
        self._log.info("stopping", signal=why, workers=len(self._workers.roster))

    def _announce_stop(self, why: str, now_s: float) -> None:
        self._reloading = False  # nobody waits for the end of a reload any more
        self.notifier.stopping(f"stopping: {why}")
        if not self.upgrade.done:
            self.upgrade.cancel("the server stops", now_s)

    def _hold_off(self) -> None:
        """Hold new connections off. Workers serve those in the queues, unless they are another master's by now."""
        mine = [listener for listener in self._listeners if not listener.borrowed]
        self._workers.stop(drain=bool(mine))
        for listener in mine:
            listener.hold_off()

    def close(self) -> None:
        """Unlink and close the listeners, after all workers have ended."""
        for listener in self._listeners:
            listener.unlink()  # while our socket pins its inode: a successor may bind the path at once
            listener.end()

    def close_in_child(self) -> None:
        """CHILD: close what only the master may hold."""
        self.upgrade.close_in_child()
        if self._takeover:
            self._takeover.close_in_child()
        for listener in self._listeners:
            listener.close_hold()


def _raise_descriptor_limit() -> None:
    """Use all descriptors that the system allows: connections are descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
