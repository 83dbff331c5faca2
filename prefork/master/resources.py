"""MASTER. What a server has besides listeners and workers: pid file, access log, TLS, hooks, watcher of --reload."""

from __future__ import annotations

from collections.abc import Callable

from prefork.config.config import Config
from prefork.core.log import Log, LogFile
from prefork.core.pidfile import PidFile
from prefork.core.privileges import Identity
from prefork.engines import import_early
from prefork.errors import ConfigError
from prefork.master.autoreload import Watch
from prefork.master.children import Children
from prefork.master.observer import Observer
from prefork.runtime.hooks import DeathReport, load_hooks
from prefork.runtime.import_reporter import Imports
from prefork.runtime.inherited import Inherited, tls_of
from prefork.runtime.loader import adopt
from prefork.runtime.logging_config import check_logging
from prefork.status.deaths import DeathRecord


class Resources(Observer):
    """MASTER. Made before everything else, opened before the master binds, closed at its end.

    `inherited` is what workers have of it. `wait_for_changes`: a failed start is no end, as the developer will save the
    file again (--reload). `pidfile` is locked; an upgrade hands it on.
    """

    def __init__(self, config: Config, log: Log, identity: Identity | None) -> None:
        """Raises ConfigError or AppLoadError if what was asked for cannot be."""
        self._config = config
        self._log = log
        self.pidfile: PidFile | None = None
        if config.proxy_protocol and set(config.trusted_proxies) == {"none"}:
            source = config.sources["proxy-protocol"]
            raise ConfigError(f"{source}: nobody may send a PROXY header; say who, --trusted-proxies NETWORK")
        check_logging(config)
        hooks = load_hooks(config.hooks, log, app=config.app, source=config.sources["hooks"])
        app = adopt(config.target, config.app, config.interface) if config.target is not None else None
        self._watch = Watch.of(config, log)
        self.wait_for_changes = self._watch is not None
        import_early(config.app, user=identity is not None)
        self.inherited = Inherited(
            hooks=hooks,
            identity=identity,
            app=app,
            imports=Imports(self._watch.reports) if self._watch else None,
            tls=tls_of(config),
            access_log=self._access_log(identity),
        )

    def _access_log(self, identity: Identity | None) -> int:
        if self._config.access_log in ("", "-"):
            return 1 if self._config.access_log else -1
        file = LogFile(self._config.access_log, identity)
        self._log.also(file)
        return file.fd

    def open(self, children: Children, close_in_child: Callable[[], None], pidfile: PidFile | None) -> None:
        """Claim the pid file and start the watcher; `close_in_child` closes there what only the master may hold.

        `pidfile` is the one that the master before us has left to us, if it has.
        Raises PreforkError if another master has the pid file.
        """
        if self._config.pid:
            self.pidfile = pidfile or PidFile.claim(self._config.pid)
        if self._watch:
            self._watch.start(children, close_in_child)

    def hand_over_pidfile(self) -> None:
        """Another master has it: leave the file and the lock alone."""
        if self.pidfile:
            self.pidfile.close()
            self.pidfile = None

    def worker_died(self, death: DeathRecord, respawn_in_s: float | None) -> None:  # noqa: ARG002 - the hook is not told
        """Call the hook."""
        self.inherited.hooks.worker_died(
            DeathReport(
                slot=death.worker.slot,
                generation=death.worker.generation,
                pid=death.worker.pid,
                cause=str(death.exit),
                reason=death.reason or "",
                serving=death.serving,
                age_s=death.age_s,
                detail=death.detail,
            )
        )

    def close_in_child(self) -> None:
        """CHILD, first thing: close what only the master may hold."""
        if self.pidfile:
            self.pidfile.close()

    def close(self) -> None:
        """At the end of the server."""
        if self._watch:
            self._watch.shutdown()
        if self.pidfile:
            self.pidfile.release()
