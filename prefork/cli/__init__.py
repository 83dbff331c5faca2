"""The commands. Nothing else may import this package. On another system than Linux, its import says why it ends."""

from __future__ import annotations

import sys

from prefork.errors import PreforkError, require_linux

try:
    require_linux()
except PreforkError as error:
    sys.exit(f"prefork: {error}")
