"""MASTER. What a server has besides listeners and workers: pid file, access log, TLS, hooks, watcher of --reload."""

from __future__ import annotations

from collections.abc import Callable

from prefork.config.config import Config
from prefork.core.log import Log, LogFile
from prefork.core.pidfile import PidFile
from prefork.core.privileges import Identity
from prefork.core.process import Exit
from prefork.errors import ConfigError
from prefork.master.autoreload import Watch
from prefork.runtime.hooks import DeathReport, load_hooks
from prefork.runtime.import_reporter import Imports
from prefork.runtime.inherited import Terms, tls_of
from prefork.runtime.loader import adopt
from prefork.status.deaths import DeathRecord


class Belongings:
    """MASTER. `terms` is the workers' share. Made first, opened before the master binds, closed at its end."""

    def __init__(self, config: Config, log: Log, identity: Identity | None) -> None:
        """Raises ConfigError or AppLoadError if what was asked for cannot be."""
        self._config = config
        self._log = log
        self._pidfile: PidFile | None = None
        if config.proxy_protocol and set(config.trusted_proxies) == {"none"}:
            source = config.sources["proxy-protocol"]
            raise ConfigError(f"{source}: nobody may send a PROXY header; say who, --trusted-proxies NETWORK")
        hooks = load_hooks(config.hooks, log, app=config.app, source=config.sources["hooks"])
        app = adopt(config.target, config.app, config.interface) if config.target is not None else None
        self._watch = Watch(log) if config.reload else None
        self.terms = Terms(
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

    @property
    def pidfile(self) -> PidFile | None:
        """The locked pid file, if there is one: an upgrade hands it on."""
        return self._pidfile

    def open(self, drop: Callable[[], None], inherited: PidFile | None) -> None:
        """Claim the pid file and start the watcher; `drop` closes there what only the master may hold.

        `inherited` is the pid file, if the master before us has left it to us.
        Raises PreforkError if another master has the pid file.
        """
        if self._config.pid:
            self._pidfile = inherited or PidFile.claim(self._config.pid)
        if self._watch:
            self._watch.start(drop)

    def hand_over_pidfile(self) -> None:
        """Another master has it: leave the file and the lock alone."""
        if self._pidfile:
            self._pidfile.close()
            self._pidfile = None

    def waits(self) -> bool:
        """True if a failed start is no end: the developer will save the file again."""
        return self._watch is not None

    def buried(self, child: Exit) -> bool:
        """A child was reaped; True if it was one of ours and not a worker."""
        return self._watch is not None and self._watch.bury(child)

    def mourn(self, death: DeathRecord) -> None:
        """A worker has died that nobody had told to: tell the hook."""
        self.terms.hooks.worker_died(
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

    def drop(self) -> None:
        """CHILD, first thing: close what only the master may hold."""
        if self._pidfile:
            self._pidfile.close()

    def close(self) -> None:
        """At the end of the server."""
        if self._watch:
            self._watch.end()
        if self._pidfile:
            self._pidfile.release()
