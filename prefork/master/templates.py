"""MASTER. The template processes of --preload, one for each generation that workers may still be forked from."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prefork.core.process import spawn
from prefork.runtime.master_link import Receiver
from prefork.worker.process import Worker
from prefork.worker.template import Template

# --- A template process as the master sees it; what runs in it is template.py.


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


_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(slots=True, kw_only=True)
class Templates:
    """MASTER. Forks templates, hears them, and forgets them when their generation has passed."""

    libc: ctypes.CDLL
    _live: dict[int, TemplateHandle] = field(default_factory=dict)  # by generation

    def prepare(self, generation: int, prototype: Worker, drop: Callable[[], None]) -> None:
        """Fork a template. Raises OSError if the system has no process left."""
        self.libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        report, report_end = os.pipe2(os.O_CLOEXEC)
        try:
            orders, orders_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(report)
            os.close(report_end)
            raise

        def drop_all() -> None:
            drop()
            orders.close()
            os.close(report)

        template = Template(
            generation=generation, prototype=prototype, orders=orders_end, report=report_end, drop=drop_all
        )
        try:
            pid = spawn(template.run)
        except OSError:
            orders.close()
            os.close(report)
            raise
        finally:
            orders_end.close()
            os.close(report_end)
        self._live[generation] = TemplateHandle(
            pid=pid, generation=generation, orders=orders, receiver=Receiver(report), spawned_s=time.monotonic()
        )

    def fork(self, worker: Worker) -> int:
        """Have a worker forked from its generation's template; return its pid. Raises OSError."""
        order = {"slot": worker.slot, "generation": worker.generation, "group": worker.group}
        return self._live[worker.generation].fork(order, worker.report)

    def news(self) -> Iterator[int]:
        """The generations that have become prepared since the last call. Never blocks."""
        for template in self._live.values():
            for message in template.receiver.read():
                if message["kind"] == "prepared":
                    template.prepared = True
                    yield template.generation
                elif message["kind"] == "failed":
                    template.failure = message

    def discard(self, generation: int, reason: str) -> None:
        """End one template."""
        if template := self._live.get(generation):
            template.kill(reason)

    def keep_only(self, generation: int) -> None:
        """End all templates but one: nothing is forked from them any more."""
        for other in list(self._live):
            if other != generation:
                self.discard(other, "its generation has passed")

    def bury(self, pid: int) -> TemplateHandle | None:
        """A child was reaped; return the template, if it was one."""
        for generation, template in list(self._live.items()):
            if template.pid == pid:
                list(self.news())  # its last words
                template.close()
                return self._live.pop(generation)
        return None

    def pids(self) -> list[int]:
        """The live templates."""
        return [template.pid for template in self._live.values()]

    def fds(self) -> list[int]:
        """What is readable when a template has spoken."""
        return [template.receiver.fd for template in self._live.values() if not template.receiver.closed]

    def drop(self) -> None:
        """WORKER and TEMPLATE, first thing: close what only the master may hold."""
        for template in self._live.values():
            template.close()
