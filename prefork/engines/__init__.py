"""How a worker serves. An engine is chosen by the kind of the app, never by the user."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefork.engines.context import Engine

ENGINES = {
    "stream": "blocking",
    "socketserver": "blocking",
    "wsgi": "reactor",
    "streams": "aio",
    "protocol": "aio",
    "asgi": "aio",
}  # kind of app -> name of its engine, as the log and `prefork status` show it
_MODULES = {"blocking": "threads.engine", "reactor": "wsgi.loop", "aio": "aio.engine"}  # each has the class ENGINE


def engine_of(kind: str) -> type[Engine]:
    """WORKER. Return the engine for a kind of app. It is imported only now, as every worker needs just one."""
    engine: type[Engine] = importlib.import_module(f"{__name__}.{_MODULES[ENGINES[kind]]}").ENGINE
    return engine
