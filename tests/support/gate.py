"""A gate that holds handlers inside a request until the test opens it, so that no test has to guess a duration.

The handler (`tests/apps/gated.py`) connects to the gate and waits there; the gate counts who has come in. Opening
closes the connections of those who wait, and from then on of everyone who comes, as soon as he does. It goes on
listening all the same: a listener that closes while others connect to it can leave one of them waiting for ever.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

VARIABLE = "GATE_ADDRESS"


class Gate:
    """TEST. Where handlers wait; `env` tells the server's processes the address."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._inside: list[socket.socket] = []
        self._usher: threading.Thread | None = None  # once it is open
        host, port = self._listener.getsockname()
        self.env = {VARIABLE: f"{host}:{port}"}

    def wait_entered(self, count: int, *, within_s: float = 30.0) -> None:
        """Wait until so many more handlers stand at the gate."""
        self._listener.settimeout(within_s)
        for n in range(count):
            try:
                self._inside.append(self._listener.accept()[0])
            except TimeoutError:
                raise AssertionError(f"only {n} of {count} handlers came to the gate in {within_s:g} s") from None

    def let_one_pass(self) -> None:
        """Let the one pass that came first; the gate stays shut."""
        self._inside.pop(0).close()

    def open(self) -> None:
        """Let everyone pass, now and later."""
        for sock in self._inside:
            sock.close()
        self._inside.clear()
        if self._usher is None:
            self._listener.settimeout(None)
            self._usher = threading.Thread(target=self._let_pass, daemon=True)
            self._usher.start()

    def _let_pass(self) -> None:
        while True:
            try:
                self._listener.accept()[0].close()
            except OSError:
                return  # the test has ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the usher
        assert self._usher is not None
        self._usher.join()
        self._listener.close()
