"""How a worker serves. An engine is chosen by the kind of the app, never by the user."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefork.engines.context import Engine

ENGINES = {
    "stream": "threads.engine",
    "socketserver": "threads.engine",
    "wsgi": "wsgi.loop",
    "streams": "aio.engine",
    "protocol": "aio.engine",
    "asgi": "aio.engine",
}  # kind of app -> module here, with the class ENGINE


def engine_of(kind: str) -> type[Engine]:
    """WORKER. The engine for a kind of app; imported only now, as every worker needs just one."""
    engine: type[Engine] = importlib.import_module(f"{__name__}.{ENGINES[kind]}").ENGINE
    return engine
