"""Stream handlers that say who serves: nothing is read from the client."""

from __future__ import annotations

import os
import threading
from typing import Any


def pid(conn: Any) -> None:
    """Answer the worker's pid."""
    conn.sendall(b"%d\n" % os.getpid())


def slot(conn: Any) -> None:
    """Answer slot, generation and pid of the worker."""
    environ = os.environ
    conn.sendall(f"{environ['PREFORK_SLOT']} {environ['PREFORK_GENERATION']} {os.getpid()}\n".encode())


def thread(conn: Any) -> None:
    """Answer pid and thread."""
    conn.sendall(b"%d %d\n" % (os.getpid(), threading.get_ident()))
