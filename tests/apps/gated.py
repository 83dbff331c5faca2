"""Stream handlers that wait at the test's gate (tests/support/gate.py) in the middle of an exchange."""

from __future__ import annotations

import os
import socket
from typing import Any


def pass_gate() -> None:
    """Stand at the gate until the test opens it; go on at once when it is open already."""
    host, _, port = os.environ["GATE_ADDRESS"].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=60) as gate:
            gate.recv(1)
    except ConnectionError:
        return  # open


def handle(conn: Any) -> None:
    """Read a line, wait at the gate, answer as talkback does."""
    conn.sendall(b"hello from prefork\n")
    line = conn.readline().rstrip(b"\r\n")
    pass_gate()
    conn.sendall(b"you said: " + line + b"\n")


def at_once(conn: Any) -> None:
    """Wait at the gate before anything was read or written, then answer."""
    pass_gate()
    conn.sendall(b"passed\n")
