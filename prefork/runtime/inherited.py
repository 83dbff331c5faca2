"""What holds for every worker of a server and is known before the first fork, besides its Config."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefork.config.options import PASSWORD_VARIABLE
from prefork.core.privileges import Identity
from prefork.errors import AppLoadError, BootError, ConfigError
from prefork.runtime.hooks import Hooks
from prefork.runtime.import_reporter import Imports
from prefork.runtime.loader import App, load
from prefork.runtime.master_link import Kind, Sender

if TYPE_CHECKING:
    from prefork.config.config import Config
    from prefork.core.tls import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """MASTER makes it; workers and templates have it from before their fork."""

    hooks: Hooks
    identity: Identity | None = None  # to assume; None = stay who you are
    app: App | None = None  # given as an object, from Python: there is nothing to import
    imports: Imports | None = None  # with --reload: reports to the watcher what was imported
    tls: Tls | None = None  # with --tls-cert
    access_log: int = -1  # descriptor for a line a request; -1 = none

    def assume_identity(self, sender: Sender) -> bool:
        """WORKER and TEMPLATE, before anything of the app runs. False if that failed; the master knows why."""
        if self.identity is None:
            return True
        try:
            self.identity.assume()
        except OSError as error:
            reason = f"cannot become uid {self.identity.uid}, gid {self.identity.gid}: {error.strerror}"
            sender.send(Kind.FAILED, code=BootError.exit_code, message=reason, detail="")
            return False
        return True

    def load(self, spec: str, interface: str, *, factory: bool) -> App:
        """WORKER and TEMPLATE. Import the app, unless it was given. Raises AppLoadError."""
        if self.app is not None:
            return self.app
        if self.imports is None:
            return load(spec, interface, factory=factory)
        self.imports.expect(spec)
        try:
            app = load(spec, interface, factory=factory)
        except AppLoadError as error:
            self.imports.failed(error)
            raise
        self.imports.loaded()
        return app


def tls_of(config: Config) -> Tls | None:
    """What --tls-cert asks for. Raises ConfigError."""
    sources = config.sources
    if config.tls_cert:
        if sources["tls-client-cert"] != "default" and not config.tls_ca:
            raise ConfigError(f"{sources['tls-client-cert']}: who has to have signed it? give --tls-ca FILE")
        tls = importlib.import_module("prefork.core.tls")
        settings = tls.TlsSettings(
            cert=config.tls_cert,
            key=config.tls_key,
            password_file=config.tls_key_password_file,
            password=os.environ.get(PASSWORD_VARIABLE, ""),
            ca=config.tls_ca,
            client_cert=config.tls_client_cert,
            min_version=config.tls_min_version,
            ciphers=config.tls_ciphers,
        )
        made: Tls = tls.Tls(settings)
        return made
    for name, source in sources.items():
        if name.startswith("tls-") and source != "default":
            raise ConfigError(f"{source}: it is of no use without a certificate, --tls-cert FILE")
    return None
