"""How a worker serves. An engine is chosen by the kind of the app, never by the user.

The tables below name modules, and each is imported when it is needed: a worker needs one engine, of which the asyncio
engine has a service for each of its kinds. But what an application does to the standard library, by a patch or a file
of the same name, must not reach an engine: those that are small are imported before it, with all the names they use.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefork.runtime.builtins import BUILTINS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prefork.engines.context import Engine

ENGINES = {
    "stream": "blocking",
    "socketserver": "blocking",
    "wsgi": "reactor",
    "streams": "aio",
    "protocol": "aio",
    "asgi": "aio",
}  # kind of app -> name of its engine, as the log and `prefork status` show it
_MODULES = {
    "blocking": "prefork.engines.threads.engine",
    "reactor": "prefork.engines.wsgi.loop",
    "aio": "prefork.engines.aio.engine",
}  # each has the class ENGINE
_SERVICES = {
    "streams": "prefork.engines.aio.streams",
    "protocol": "prefork.engines.aio.protocols",
    "asgi": "prefork.engines.asgi.service",
}  # each has the class SERVICE


def import_early(app: str, *, user: bool) -> None:
    """MASTER, before it forks, as --user may not be able to read our files. Import the engines but for the heavy one.

    Built-in applications do no harm. `user`: workers run as another user.
    """
    if app not in BUILTINS or user:
        with _apps_folders_last(sys.path[:]):
            for name in ("blocking", "reactor"):
                importlib.import_module(_MODULES[name])


def import_for(kind: str, loop: str, path_before: Sequence[str]) -> None:
    """WORKER and TEMPLATE. Import all that this kind of app is served with.

    `loop`: uvloop or asyncio. `path_before`: sys.path before the app was loaded.
    """
    with _apps_folders_last(path_before):
        engine_of(kind)
        if kind in _SERVICES:
            service_of(kind)
            importlib.import_module(loop)


@contextmanager
def _apps_folders_last(path_before: Sequence[str]) -> Iterator[None]:
    """Have modules searched in the app's folders, and in the current one, after all others.

    They are not taken out, as threads of the app may import meanwhile.
    """
    path, here = sys.path[:], os.getcwd() if os.path.exists(".") else ""
    own = [entry for entry in path if entry not in path_before or entry in ("", here)]
    sys.path[:] = [*(entry for entry in path if entry not in own), *own]
    try:
        yield
    finally:
        sys.path[:] = path


def engine_of(kind: str) -> type[Engine]:
    """WORKER. Return the engine for a kind of app."""
    engine: type[Engine] = importlib.import_module(_MODULES[ENGINES[kind]]).ENGINE
    return engine


def service_of(kind: str) -> Callable[[Any], Any]:
    """WORKER. Return what the asyncio engine serves a kind of app with: a class of aio.service.Service."""
    service: Callable[[Any], Any] = importlib.import_module(_SERVICES[kind]).SERVICE
    return service
