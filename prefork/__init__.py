"""prefork: a pre-fork server for Python with its own load lab."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prefork._version import __version__

if TYPE_CHECKING:
    from prefork.api import serve as serve
    from prefork.errors import PreforkError as PreforkError

__all__ = ["PreforkError", "__version__", "serve"]

_HOMES = {"serve": "api", "PreforkError": "errors"}


def __getattr__(name: str) -> Any:
    """Load what the package offers when it is first used: who wants one module of it does not pay for the server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "serve":
        importlib.import_module(".errors", __name__).require_linux()
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
