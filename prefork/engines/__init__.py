"""How a worker serves. An engine is chosen by the kind of the app, never by the user."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .station import Engine

ENGINES = {
    "stream": "blocking",
    "socketserver": "blocking",
    "wsgi": "reactor",
    "streams": "aio",
    "protocol": "aio",
    "asgi": "aio",
}  # kind of app -> module here, with the class ENGINE


def engine_of(kind: str) -> type[Engine]:
    """WORKER. The engine for a kind of app; imported only now, as every worker needs just one."""
    engine: type[Engine] = importlib.import_module(f".{ENGINES[kind]}", __name__).ENGINE
    return engine
