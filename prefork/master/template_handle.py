"""MASTER. A template process as the master sees it; what runs in it is template.py."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import Any

from prefork.runtime.channel import Receiver

ANSWER_S = 1.0  # the master waits meanwhile. A double fork takes 4 to 7 ms; who takes longer than this is stuck


@dataclass(slots=True, kw_only=True)
class TemplateHandle:
    """MASTER. `prepared` once the app is imported."""

    pid: int
    generation: int
    orders: socket.socket
    receiver: Receiver
    spawned_s: float
    prepared: bool = False
    failure: dict[str, Any] | None = field(default=None)
    killed: str | None = None

    def fork(self, order: dict[str, int], report: int) -> int:
        """Have a worker forked and return its pid. Raises OSError; EAGAIN if the template does not answer."""
        self.orders.settimeout(ANSWER_S)
        try:
            socket.send_fds(self.orders, [json.dumps(order).encode()], [report])
            answer = json.loads(self.orders.recv(4096) or b"{}")
        except OSError as error:
            self.kill(f"it did not answer: {error}")
            raise OSError(errno.EAGAIN, "the template process does not answer") from None
        if "pid" not in answer:
            number = answer.get("errno", errno.EAGAIN)
            raise OSError(number, os.strerror(number))
        return int(answer["pid"])

    def kill(self, reason: str) -> None:
        """SIGKILL; it serves nobody. Its death is reaped like any child's."""
        if self.killed is None:
            self.killed = reason
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """After it was reaped."""
        self.orders.close()
        self.receiver.close()
