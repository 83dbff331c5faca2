"""MASTER. Every listener of a server: passed by the service manager, inherited in an upgrade, or made here.

Sockets that were passed stand in place of the default address; with --bind given, they come on top. The listener of
--admin is none of the workers', but is inherited in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from prefork.config.config import Config
from prefork.core.address import Address
from prefork.core.listener import Listener, open_group, open_listener
from prefork.core.log import Log
from prefork.core.systemd import ACTIVATED, activated
from prefork.errors import BindError, ConfigError
from prefork.master.heir import Heir

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
