"""WORKER. Its link to the master: orders in, messages out, and the lifeline.

Orders come by shared memory and a pipe (orders.py). TERM and USR1 mean the same if somebody else sends them, unless
the application has taken them for itself.

The lifeline is a pipe whose other end only the master holds: its EOF means that the master is gone, and the worker
with it. PR_SET_PDEATHSIG usually acts first; the pipe also works where that was lost (a change of uid clears it).
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from enum import StrEnum
from os import read, write  # bound now: those of eventlet wait
from select import POLLIN, poll
from types import FrameType
from typing import Any, NamedTuple

from prefork.core.log import printable
from prefork.core.process import ORPHANED
from prefork.core.signals import FAULT, NOT_OURS, STACKS, SignalInbox, ignore
from prefork.core.stacks import compose
from prefork.runtime.forks import OURS
from prefork.runtime.orders import LOGS, STOPPING, Orders
from prefork.status.scoreboard import TEXT_BYTES

# --- Worker to master: one pipe per worker, JSON lines one way. EOF is the worker's end.
#
# Lines that are not JSON are faulthandler's, which writes plain text from C when the interpreter cannot. The writer
# never blocks: what does not fit into the pipe is dropped, as a worker must not wait for a master that is stopped.
#
# The application may write into the pipe as well, so the master believes nothing: a message is checked against FIELDS
# as it is read, and one that is none is the receiver's `fault`, for which the process that sent it is killed.


READ_MOST = 1 << 16  # bytes in one turn of the master's loop: no process may keep it from the others
REST_MOST = 1 << 20  # bytes of a process that has ended: as much as a pipe can hold
_LINE_MOST = 1 << 20  # a stack of a hundred threads is some 100 KB
_TEXT_MOST = 1 << 16  # characters of faulthandler's that are kept
_FLOOD = 4 << 20  # bytes in a second: no honest process comes near it
_MESSAGES = 1000  # in a second
_LINES = 100_000  # in a second
_TORN_MOST = 100  # messages in a row that were written in part: after one, an honest process writes a whole one
_STACKS_MOST = 32_000  # characters; half a pipe, so that the message fits whole


class Kind(StrEnum):
    """What a message is about."""

    READY = "ready"  # the worker accepts
    FAILED = "failed"  # a worker or template cannot boot
    PREPARED = "prepared"  # a template has imported the app
    STACKS = "stacks"  # the answer to the signal STACKS
    SLOW = "slow"  # an event loop has seen a request that is slow
    ENOUGH = "enough"  # the worker wants a successor
    LOADED = "loaded"  # `prefork check`: the app can be served


class Field(NamedTuple):
    """What a field of a message may be: a text of at most `most` characters, or a number from 0 to `most`."""

    type: type[str | int | float]
    most: int
    lines: bool = False  # a text may have line ends
    words: frozenset[str] = frozenset()  # if there are any, a text is one of them

    def checked(self, value: Any) -> Any:
        """The value, with the control characters of a text escaped. Raises ValueError if it cannot be."""
        if self.type is not str:
            whole = type(value) is int
            if not (whole or (self.type is float and type(value) is float and math.isfinite(value))):
                raise ValueError("is no number")
            if not 0 <= value <= self.most:
                raise ValueError(f"is not from 0 to {self.most}")
            return value
        if not isinstance(value, str):
            raise ValueError("is no text")
        if len(value) > self.most:
            raise ValueError(f"is longer than {self.most} characters")
        if self.words and value not in self.words:
            raise ValueError(f"is none of {', '.join(sorted(self.words))}")
        return "\n".join(map(printable, value.split("\n"))) if self.lines else printable(value)


_NAME = Field(str, 40)
_SERVING = Field(str, 4 * TEXT_BYTES)
_STACKS = Field(str, 2 * _STACKS_MOST, lines=True)
FIELDS: dict[str, dict[str, Field]] = {
    Kind.READY: {"app_kind": _NAME, "engine": _NAME},
    Kind.FAILED: {"code": Field(int, 255), "message": Field(str, 8000), "detail": _STACKS},
    Kind.PREPARED: {},
    Kind.STACKS: {"text": _STACKS, "current": _SERVING},
    Kind.SLOW: {
        "serving": _SERVING,
        "elapsed_s": Field(float, 10**9),
        "stack": _STACKS,
        "also": Field(int, 10**9),
    },
    Kind.ENOUGH: {"reason": Field(str, 40, words=frozenset({"max-requests", "SIGTERM"}))},
    Kind.LOADED: {"app_kind": _NAME},
}
OF_WORKER = frozenset({Kind.READY, Kind.FAILED, Kind.STACKS, Kind.SLOW, Kind.ENOUGH})
OF_TEMPLATE = frozenset({Kind.PREPARED, Kind.FAILED})
OF_CHECK = frozenset({Kind.LOADED, Kind.FAILED})
NO_MESSAGE = "it sent the master a message that is none"


def checked(message: dict[str, Any], kinds: frozenset[Kind]) -> dict[str, Any]:
    """The message with the fields of its kind, and no others. Raises ValueError, which says what is wrong with it."""
    kind = message.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"its kind is {printable(str(kind)[:40])!r}" if isinstance(kind, str) else "it has no kind")
    found: dict[str, Any] = {"kind": kind}
    for name, field in FIELDS[kind].items():
        if name not in message:
            raise ValueError(f"{kind} without {name}")
        try:
            found[name] = field.checked(message[name])
        except ValueError as error:
            raise ValueError(f"{name} of {kind} {error}") from None
    return found


class Sender:
    """WORKER. Writes messages to the master."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._torn = False  # a message was written in part
        os.set_blocking(fd, False)

    def send(self, kind: Kind, **fields: Any) -> None:
        """Send one message, long texts cut; drop it when the pipe is full or the master is gone."""
        for name, field in FIELDS[kind].items():
            if field.type is str:
                fields[name] = fields[name][: field.most]
        line = memoryview((b"\n" if self._torn else b"") + json.dumps({"kind": kind, **fields}).encode() + b"\n")
        try:
            while line:
                line = line[write(self.fd, line) :]
                self._torn = True
            self._torn = False
        except OSError:
            pass  # EAGAIN: the master does not read; EPIPE: it is dead, and the lifeline acts on that


class Receiver:
    """MASTER. Reads the messages, of these kinds, of one process; `text` collects what faulthandler wrote.

    `fault`: why something that it said is no message; nothing more is read of it then.
    """

    def __init__(self, fd: int, kinds: frozenset[Kind]) -> None:
        self.fd = fd
        self.text = ""
        self.fault = ""
        self.closed = False  # there is nothing more to read
        self._kinds = kinds
        self._buffer = b""
        self._torn = self._said = self._heard = 0
        self._flood = (0.0, 0)  # since when (monotonic s), and the bytes that came since
        os.set_blocking(fd, False)

    def read(self, most: int = READ_MOST) -> Iterator[dict[str, Any]]:
        """Yield the messages in the next `most` bytes, if so many have arrived. Never blocks."""
        try:
            while most > 0 and not self.closed and (chunk := os.read(self.fd, min(READ_MOST, most))):
                most -= len(chunk)
                self._watch(len(chunk))
                self._buffer += chunk
                if len(self._buffer) > _LINE_MOST:
                    self._buffer += b"\n"
                yield from self._lines()
            self.closed = self.closed or most > 0
        except BlockingIOError:
            return  # all read
        if self.closed:
            self._buffer += b"\n"
            yield from self._lines()

    def refuse(self, fault: str) -> None:
        """The process has said what it must not say."""
        self.fault = self.fault or fault
        self.closed = True
        self._buffer = b""

    def _watch(self, size: int) -> None:
        since_s, before = self._flood
        now_s = time.monotonic()
        if now_s - since_s >= 1.0:
            since_s, before, self._said, self._heard = now_s, 0, 0, 0
        self._flood = since_s, before + size
        if self._flood[1] > _FLOOD:
            self.refuse(f"more than {_FLOOD >> 20} MB in a second")

    def _lines(self) -> Iterator[dict[str, Any]]:
        *lines, self._buffer = self._buffer.split(b"\n")
        self._heard += len(lines)
        if self._heard > _LINES:
            self.refuse(f"more than {_LINES} lines in a second")
            return
        texts = []
        for line in lines:
            message = None
            try:
                message = json.loads(line) if line.startswith(b"{") else None
                found = checked(message, self._kinds) if isinstance(message, dict) else None
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or message is not None:
                    self.refuse(str(error) if message is not None else "nested too deeply")
                    return
                found = None  # a message that was written in part
                self._torn += 1
                if self._torn > _TORN_MOST:
                    self.refuse(f"more than {_TORN_MOST} of which a part is missing")
                    return
            if found is not None:
                self._torn = 0
                self._said += 1
                if self._said > _MESSAGES:
                    self.refuse(f"more than {_MESSAGES} messages in a second")
                    return
                yield found
                if self.fault:
                    return
            elif line:
                texts.append(printable(line.decode("utf-8", "replace")) + "\n")
        if texts:
            self.text = (self.text + "".join(texts))[-_TEXT_MOST:]

    def close(self) -> None:
        """Close the master's end."""
        os.close(self.fd)


class MasterLink:
    """WORKER. `orders_fd`: the end of this worker's pipe in which the master's orders are announced."""

    def __init__(
        self,
        *,
        lifeline: int,
        sender: Sender,
        orders: Orders,
        orders_fd: int,
        group: int,
        graceful_timeout_s: float,
        title: Callable[[str], None],
        reopen: Callable[[], None],
    ) -> None:
        self._lifeline = lifeline
        self._sender = sender
        self._orders = orders
        self._orders_fd = orders_fd
        self._group = group
        self._logs = orders.cells[LOGS]
        self._graceful_timeout_s = graceful_timeout_s
        self._leave_by_s = 0.0  # 0: it is not known yet that this worker retires
        self._title = title
        self._reopen = reopen  # the log
        self._inbox = SignalInbox([signal.SIGTERM, signal.SIGUSR1])
        # What an event loop adds to the stacks of the threads: those of its tasks, and whom the one serves that runs.
        self.tasks: Callable[[], tuple[list[tuple[str, str]], str]] = _no_tasks
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for signum in NOT_OURS:
            ignore(signum)
        signal.signal(STACKS, self._answer)
        OURS.own(*self.fds, *self._inbox.fds)
        OURS.own_handlers((signal.SIGTERM, signal.SIGUSR1, STACKS, *NOT_OURS))
        faulthandler.enable(file=sender.fd, all_threads=True)  # the stack of a segfault reaches the master
        faulthandler.register(FAULT, file=sender.fd, all_threads=True)

    @property
    def retiring(self) -> bool:
        """True if this worker is to finish what is in flight and leave."""
        return self.told_to_retire or self.stopping

    @property
    def told_to_retire(self) -> bool:
        """True if this worker itself was told to leave, not the whole server."""
        return self._leave_by_s > 0 or self._orders.retires(self._group)

    @property
    def ordered(self) -> bool:
        """True if it is the master that wants this worker to leave."""
        return self._orders.retires(self._group) or self.stopping

    @property
    def leave_by_s(self) -> float:
        """When what is in flight is cut (monotonic seconds): --graceful-timeout after this worker began to retire."""
        self._begin_to_retire()
        return self._leave_by_s

    @property
    def stopping(self) -> bool:
        """True if the whole server stops: what waits in the accept queue is ours to serve."""
        return bool(self._orders.cells[STOPPING])

    def ready(self, kind: str, engine: str) -> None:
        """Tell the master that this worker accepts."""
        self._title("serving")
        self._sender.send(Kind.READY, app_kind=kind, engine=engine)

    def failed(self, code: int, message: str, detail: str = "") -> None:
        """Tell the master why this worker cannot boot."""
        self._sender.send(Kind.FAILED, code=code, message=message, detail=detail[-_STACKS_MOST:])

    def enough(self, reason: str) -> None:
        """Ask the master for a successor; it will tell this worker to retire when that one serves."""
        self._sender.send(Kind.ENOUGH, reason=reason)

    @property
    def fds(self) -> tuple[int, ...]:
        """What an event loop watches for input: call `on_readable` with the one that has some, or an error."""
        return self._orders_fd, self._inbox.fd, self._lifeline, self._sender.fd

    def listen(self) -> None:
        """An event loop runs: have its descriptors, not its own, be woken by signals."""
        self._inbox.listen()

    def on_readable(self, fd: int) -> None:
        """One of `fds` is ready.

        The lifeline at the master's death. The sender, a pipe, when nobody holds its other end: the template died
        before it could say whom it had forked, so the master knows nothing of this worker.
        """
        if fd not in (self._inbox.fd, self._orders_fd):
            os._exit(ORPHANED)
        self.look()

    def wait(self, timeout_s: float | None = None, also: int = -1) -> bool:
        """Wait for an order or a signal, for the time, or for the descriptor `also`; True if that one is readable."""
        ours = poll()
        for fd in (*self.fds, also):
            if fd >= 0:
                ours.register(fd, POLLIN)
        ready = {fd for fd, _events in ours.poll(None if timeout_s is None else min(timeout_s, 3600.0) * 1000)}
        for fd in ready - {also}:
            self.on_readable(fd)
        self.look()
        return also in ready

    def look(self) -> None:
        """Act on the orders and the signals that have come. Never blocks."""
        try:
            read(self._orders_fd, 4096)
        except OSError:
            pass  # nothing is announced; or the application has closed it, and hears of orders a moment later
        came = self._inbox.take()
        if signal.SIGUSR1 in came or self._logs != self._orders.cells[LOGS]:
            self._logs = self._orders.cells[LOGS]
            self._reopen()
        if signal.SIGTERM in came and not self.retiring:  # not the master's word: it is to send another worker
            self.enough("SIGTERM")
        if signal.SIGTERM in came or self.told_to_retire:
            self._begin_to_retire()

    def _begin_to_retire(self) -> None:
        if not self._leave_by_s:
            self._leave_by_s = time.monotonic() + self._graceful_timeout_s
            self._title("draining")

    def slow(self, serving: str, elapsed_s: float, stack: str, *, also: int) -> None:
        """Tell the master of a request that is slow, and how many others have become so."""
        self._sender.send(Kind.SLOW, serving=serving, elapsed_s=elapsed_s, stack=stack[-_STACKS_MOST:], also=also)

    def _answer(self, _signum: int, frame: FrameType | None) -> None:
        """Write the stacks of all threads; the only handler that does more than record, as it must work in a hang."""
        tasks, current = self.tasks()
        text = compose([*stacks(frame), *tasks], _STACKS_MOST)
        self._sender.send(Kind.STACKS, text=text, current=current[:TEXT_BYTES])


def stacks(own: FrameType | None = None) -> list[tuple[str, str]]:
    """The Python stacks of all threads, each under its title. `own` replaces the frame of the thread that asks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    me = threading.get_ident()
    found = []
    for ident, frame in sys._current_frames().items():
        lines = traceback.format_stack(own if ident == me and own is not None else frame)
        found.append((f"thread {names.get(ident, ident)}", "".join(lines)))
    return found


def _no_tasks() -> tuple[list[tuple[str, str]], str]:
    return [], ""
