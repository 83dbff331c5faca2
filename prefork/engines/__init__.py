"""How a worker serves. An engine is chosen by the kind of the app, never by the user.

The tables below name modules, and each is imported when it is needed: a worker needs one engine, of which the asyncio
engine has a service for each of its kinds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

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


def engine_of(kind: str) -> type[Engine]:
    """WORKER. Return the engine for a kind of app."""
    engine: type[Engine] = importlib.import_module(_MODULES[ENGINES[kind]]).ENGINE
    return engine


def service_of(kind: str) -> Callable[[Any], Any]:
    """WORKER. Return what the asyncio engine serves a kind of app with: a class of aio.service.Service."""
    service: Callable[[Any], Any] = importlib.import_module(_SERVICES[kind]).SERVICE
    return service
