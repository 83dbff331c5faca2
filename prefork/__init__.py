"""prefork: a pre-fork server for Python with its own load lab."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
