"""MASTER. The template processes of --preload, one for each generation that workers may still be forked from."""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefork.core.libc import libc
from prefork.core.proc import children, stopped
from prefork.core.process import spawn
from prefork.errors import FORK_REFUSED
from prefork.master.children import Children
from prefork.master.policy import STOPPED, Timeouts
from prefork.runtime.master_link import NO_MESSAGE, OF_TEMPLATE, READ_MOST, REST_MOST, Kind, Receiver
from prefork.worker.process import Worker
from prefork.worker.template import Template

LEAVE_S = 1.0  # for the end of the processes that an application has started in a template
ANSWER_S = 1.0  # the master waits meanwhile. A double fork takes 4 to 7 ms: a template that takes 1 s is stuck


def silence(pid: int, beat_ns: int, now_s: float) -> str:
    """Say why a child that has not beaten since then is killed."""
    reason = f"it did not move for {now_s - beat_ns / 1e9:.1f} s, over --timeout"
    return f"{reason}: {STOPPED}" if stopped(pid) else reason


@dataclass(slots=True, kw_only=True)
class TemplateHandle:
    """MASTER. One template process as the master sees it; what runs in it is Template (worker/template.py).

    It runs code of the application, perhaps as another user, so nothing that it says is believed: a pid only if it is
    of a child of the master that has come since the order and that nobody else has named.
    """

    pid: int
    generation: int
    orders: socket.socket
    receiver: Receiver
    beat: memoryview  # one cell: its last heartbeat (ns), 0 until it is prepared
    known: Children
    prepared: bool = False
    failure: dict[str, Any] | None = field(default=None)
    killed: str | None = None  # or told to leave: why
    leave_by_s: float = 0.0  # when it is killed, if it was told to leave (monotonic)

    def fork(self, order: dict[str, int], fds: Sequence[int]) -> int:
        """Have a worker forked and return its pid. Raises OSError; EAGAIN if the template does not answer."""
        if self.killed is not None:
            raise OSError(errno.EAGAIN, "the template process was killed")
        before = children()
        self.orders.settimeout(ANSWER_S)
        try:
            socket.send_fds(self.orders, [json.dumps(order).encode()], fds)
            data = self.orders.recv(4096)
            answer = json.loads(data or b"null")
        except OSError as error:
            self.kill(f"it did not answer: {error}")
            raise OSError(errno.EAGAIN, "the template process does not answer") from None
        except (ValueError, RecursionError):
            answer = ""
        match answer:
            case {"pid": pid} if self.known.is_new(pid) and pid not in before:
                return int(pid)
            case {"errno": int(number)} if number in FORK_REFUSED:
                raise OSError(number, os.strerror(number))
            case {"pid": pid}:
                self.kill(f"it named a process that is no new child of the master: {str(pid)[:40]!r}")
            case None if not data:
                pass  # it has died
            case {}:
                self.kill("it could not fork")
            case _:
                self.kill("it gave an answer that is none")
        raise OSError(errno.EAGAIN, "the template process did not fork a worker")

    def read_messages(self, most: int = READ_MOST) -> bool:
        """Read what the template has sent; True if it says that it is prepared. Never blocks."""
        was_prepared = self.prepared
        for message in self.receiver.read(most):
            if message["kind"] == Kind.PREPARED:
                self.prepared = True
            elif self.prepared:
                self.receiver.refuse("failed after prepared")
            else:
                self.failure = message
        if self.receiver.fault:
            self.kill(f"{NO_MESSAGE}: {self.receiver.fault}")
        return self.prepared and not was_prepared

    def kill(self, reason: str) -> None:
        """Send SIGKILL to the template, which serves no client. The loop reaps it like any child."""
        if self.killed is None or self.leave_by_s:
            self.killed, self.leave_by_s = self.killed or reason, 0.0
            os.kill(self.pid, signal.SIGKILL)

    def leave(self, now_s: float, reason: str) -> float:
        """Have it end what the application has started in it, and leave; return when it is killed (monotonic s)."""
        if not self.prepared:
            self.kill(reason)
        elif self.killed is None:
            self.killed, self.leave_by_s = reason, now_s + LEAVE_S
            self.orders.shutdown(socket.SHUT_WR)
        return self.leave_by_s

    def close(self) -> None:
        """After it was reaped."""
        self.orders.close()
        self.receiver.close()


_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(slots=True, kw_only=True)
class Templates:
    """MASTER. Forks templates, reads their messages, and ends them when their generation has passed."""

    known: Children
    _live: dict[int, TemplateHandle] = field(default_factory=dict)  # by generation

    def prepare(self, generation: int, prototype: Worker, close_in_child: Callable[[], None]) -> None:
        """Fork a template. Raises OSError if the system has no process left."""
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        report, report_end = os.pipe2(os.O_CLOEXEC)
        try:
            orders, orders_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(report)
            os.close(report_end)
            raise

        def close_all_in_child() -> None:
            close_in_child()
            orders.close()
            os.close(report)

        beat = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        template = Template(
            generation=generation,
            prototype=prototype,
            orders=orders_end,
            report=report_end,
            beat=beat,
            close_in_child=close_all_in_child,
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
            pid=pid,
            generation=generation,
            orders=orders,
            receiver=Receiver(report, OF_TEMPLATE),
            beat=beat,
            known=self.known,
        )

    def fork(self, worker: Worker) -> int:
        """Have a worker forked from its generation's template; return its pid. Raises OSError."""
        order = {"slot": worker.slot, "generation": worker.generation, "group": worker.group}
        return self._live[worker.generation].fork(order, [worker.report, worker.orders_fd])

    def of(self, generation: int) -> TemplateHandle | None:
        """The live template of a generation."""
        return self._live.get(generation)

    def read_messages(self) -> Iterator[int]:
        """Yield the generations that have become prepared since the last call. Never blocks."""
        for template in self._live.values():
            if template.read_messages():
                yield template.generation

    def watch(self, timeouts: Timeouts, now_s: float) -> float:
        """Kill those that have not beaten for too long; return when that may be (monotonic seconds)."""
        wake_s = float("inf")
        for template in self._live.values():
            if template.leave_by_s:
                if now_s >= template.leave_by_s:
                    template.kill("")
                wake_s = min(wake_s, template.leave_by_s or wake_s)
                continue
            beat_ns = 0 if template.killed else template.beat[0]
            hung, limit_s = timeouts.silent(beat_ns, now_s)
            if hung:
                template.kill(silence(template.pid, beat_ns, now_s))
            else:
                wake_s = min(wake_s, limit_s)
        return wake_s

    def discard(self, generation: int, reason: str) -> None:
        """End one template."""
        if template := self._live.get(generation):
            template.kill(reason)

    def keep_only(self, generation: int) -> None:
        """End all templates but one: nothing is forked from them any more."""
        for other, template in self._live.items():
            if other != generation:
                template.leave(time.monotonic(), "its generation has passed")

    @property
    def leaving(self) -> bool:
        """True if one was told to leave: it forks nobody any more."""
        return any(template.leave_by_s for template in self._live.values())

    def leave(self, now_s: float) -> float:
        """The last worker has ended: end all; return until when to wait for them (monotonic seconds)."""
        return max((each.leave(now_s, "the server stops") for each in self._live.values()), default=0.0)

    def remove(self, template: TemplateHandle) -> None:
        """The template was reaped: read its last messages and forget it."""
        template.killed, template.leave_by_s = template.killed or "", 0.0  # reaped: nobody to signal any more
        template.read_messages(REST_MOST)
        template.close()
        del self._live[template.generation]

    def pids(self) -> list[int]:
        """The live templates."""
        return [template.pid for template in self._live.values()]

    def fds(self) -> list[int]:
        """What is readable when a template has sent a message."""
        return [template.receiver.fd for template in self._live.values() if not template.receiver.closed]

    def close_in_child(self) -> None:
        """CHILD, first thing: close what only the master may hold."""
        for template in self._live.values():
            template.close()
