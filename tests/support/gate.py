"""A gate that holds handlers inside a request until the test opens it, so that no test has to guess a duration.

The handler (`tests/apps/gated.py`) connects to the gate and waits there; the gate counts who has come in. Opening
closes everything: handlers that wait go on, later ones find nobody and pass.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

VARIABLE = "GATE_ADDRESS"


class Gate:
    """TEST. Where handlers wait; `env` tells the server's processes the address."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._inside: list[socket.socket] = []
        host, port = self._listener.getsockname()
        self.env = {VARIABLE: f"{host}:{port}"}

    def wait_entered(self, count: int, *, within_s: float = 10.0) -> None:
        """Wait until so many more handlers stand at the gate."""
        self._listener.settimeout(within_s)
        for n in range(count):
            try:
                self._inside.append(self._listener.accept()[0])
            except TimeoutError:
                raise AssertionError(f"only {n} of {count} handlers came to the gate in {within_s:g} s") from None

    def open(self) -> None:
        """Let everyone pass, now and later."""
        self._listener.close()
        for sock in self._inside:
            sock.close()
        self._inside.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()
