"""MASTER. The slow log: the Python stack of a request while it is slow. The worker comes to no harm.

The rows show since when each thread works. When a unit of work has taken longer than --slow, the master asks its worker
for the stacks of its threads (runtime/master_link.py), and logs that of the slow one, if it still works on the same
unit by then. A worker that does not answer is not asked in another way: what would make it answer can crash it.

The master checks when the oldest unit would get slow, and once in --slow, as an idle thread may get work at any moment.
Workers do not report the start of a unit, so requests cost nothing.

An event loop of asyncio serves many requests at once. Its worker itself finds those that are slow, and what they await
(engines/asgi/service.py), and sends a message; the master checks that the loop still turns. It checks that of every
worker that has no unit of work in progress: its loop, or main thread, stands still if its last heartbeat is too old.

At most one line a second is written for the whole server; the next line tells how many got none (`also`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from prefork.config.config import Config
from prefork.core.log import Log
from prefork.core.stacks import application, thread
from prefork.master.observer import Observer
from prefork.master.roster import Roster, WorkerHandle
from prefork.master.workers import Message, Workers
from prefork.runtime.master_link import Kind
from prefork.status.scoreboard import SINCE, Scoreboard, heartbeat_s

EVERY_S = 1.0
_STACKS_WAIT_S = 0.25
_LEAST_S = 0.05  # between checks
_NEVER = float("inf")
_LOOP = -1  # in the place of a thread's number
_NO_ANSWER = "no answer in 250 ms: C code holds the GIL, or the worker is stopped"
_ENDED = "it ended before its stack was taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRequest:
    """A worker that has been asked for its stacks, for the sake of one unit of work, or of its loop."""

    worker: WorkerHandle
    thread: int  # or _LOOP
    began_ns: int  # when the unit began, or the loop had its last turn
    text: str  # of the unit
    until_s: float


@dataclass(slots=True, kw_only=True)
class SlowLog(Observer):
    """MASTER. `check` with each turn of its loop; times are monotonic seconds."""

    slow_s: float  # 0: off
    timeout_s: float
    roster: Roster
    board: Scoreboard
    log: Log
    ask: Callable[[WorkerHandle], None]
    _wake_s: float = 0.0
    _seen: dict[tuple[int, int], int] = field(default_factory=dict)  # by pid and thread: the last one that was slow
    _request: StackRequest | None = None
    _next_s: float = 0.0  # when a line may be written again
    _also: int = 0  # units that were slow and got no line

    @classmethod
    def of(cls, config: Config, workers: Workers) -> SlowLog:
        """The slow log of these workers."""
        return cls(
            slow_s=config.slow_s,
            timeout_s=config.timeout_s,
            roster=workers.roster,
            board=workers.board,
            log=workers.log,
            ask=workers.ask_stacks,
        )

    def check(self, now_s: float) -> float:
        """Ask one slow worker for its stacks; return when to check again."""
        if not self.slow_s or now_s < self._wake_s:
            return self._wake_s if self.slow_s else _NEVER
        if self._request and now_s >= self._request.until_s:
            self._report(self._request, now_s, reason=_NO_ANSWER)
        wakes = [now_s + max(self.slow_s, _LEAST_S)]
        live = set()
        for worker in self.roster:
            if not worker.pending and not worker.killed:
                wakes += self._check_worker(worker, now_s)
            live.add(worker.pid)
        self._seen = {key: began_ns for key, began_ns in self._seen.items() if key[0] in live}
        if self._request:
            wakes.append(self._request.until_s)
        self._wake_s = min(wakes)
        return self._wake_s

    def _check_worker(self, worker: WorkerHandle, now_s: float) -> list[float]:
        """Check its units of work, or its loop if there are none; return when each may be slow."""
        if units := [work for work in self.board.work(worker.group) if work.unit_ns]:
            return [self._check(worker, work.thread, work.unit_ns, work.text, now_s) for work in units]
        return [self._check(worker, _LOOP, self.board.read(worker.group).moved_ns, "", now_s)]

    def _check(self, worker: WorkerHandle, thread: int, began_ns: int, text: str, now_s: float) -> float:
        """Ask the worker if its thread is slow with something new; return when that may be."""
        limit_s = self.slow_s
        if thread == _LOOP:  # the next heartbeat may have been due a whole period after the last
            limit_s += heartbeat_s(self.timeout_s, self.slow_s)
        due_s = began_ns / 1e9 + limit_s
        if not began_ns or self._seen.get((worker.pid, thread)) == began_ns:
            return _NEVER
        if now_s < due_s:
            return due_s
        self._seen[worker.pid, thread] = began_ns
        if self._full(now_s):
            self._also += 1
        else:
            self._request = StackRequest(
                worker=worker, thread=thread, began_ns=began_ns, text=text, until_s=now_s + _STACKS_WAIT_S
            )
            self.ask(worker)
        return _NEVER

    def _began_ns(self, request: StackRequest) -> int:
        """Return when what the worker was asked for began, as it is now."""
        group = request.worker.group
        if request.thread == _LOOP:
            return self.board.read(group).moved_ns
        return self.board.row(group, request.thread).cells[SINCE]

    def message_received(self, message: Message) -> None:
        """A worker has sent its stacks, or told of a request of its own loop that is slow."""
        now_s = message.received_s
        said = message.fields
        if message.kind == Kind.SLOW:
            self._also += said["also"]
            if self._full(now_s):
                self._also += 1
            else:
                self._write(
                    "slow request",
                    message.worker,
                    now_s,
                    serving=said["serving"],
                    elapsed=f"{said['elapsed_s']:.2f}s",
                    detail=application(said["stack"]),
                )
        elif message.kind == Kind.STACKS and self._request and message.worker is self._request.worker:
            request = self._request
            if request.thread == _LOOP and self.board.read(request.worker.group).unit_ns:
                self._request = None  # it was between two calls of a long turn
                return
            if self._began_ns(request) != request.began_ns:
                self._report(request, now_s, reason=_ENDED)
                return
            text = said["text"]
            stack = thread(text, f"serve-{request.thread}") or thread(text, "MainThread") or text
            self._report(request, now_s, current=said.get("current"), stack=application(stack))

    def _report(
        self,
        request: StackRequest,
        now_s: float,
        *,
        reason: str | None = None,
        current: str | None = None,
        stack: str = "",
    ) -> None:
        """Log what is known of a unit of work, or of a loop that stands still and its `current` request."""
        self._request = None
        loop = request.thread == _LOOP
        self._write(
            "event loop blocked" if loop else "slow request",
            request.worker,
            now_s,
            serving=(current if loop else request.text) or None,
            elapsed=f"{now_s - request.began_ns / 1e9:.2f}s",
            reason=reason,
            detail=stack,
        )

    def _full(self, now_s: float) -> bool:
        """True if the line of this second is taken."""
        return self._request is not None or now_s < self._next_s

    def _write(self, event: str, worker: WorkerHandle, now_s: float, **facts: str | None) -> None:
        self.log.warning(event, **worker.identity, also=self._also or None, **facts)
        self._also = 0
        self._next_s = now_s + EVERY_S
