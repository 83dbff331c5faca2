"""Who runs the tests. A server can take --user, and files can belong to others, only where root runs them."""

from __future__ import annotations

import os

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
