"""MASTER. What each command of the control socket does. Each goes the way that a signal would go.

A command is a generator: see control/protocol.py. Those that take time end when what they asked for is so, or when it
is given up: a stop, another scale, or the time that it could take at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefork.control.protocol import CommandSteps, Peer, Progress, RefusedError, Request
from prefork.core.log import Log
from prefork.core.proc import thread_states
from prefork.master.history import History
from prefork.master.observer import Observer
from prefork.master.policy import Policy
from prefork.master.roster import WorkerHandle
from prefork.master.workers import Message, Workers
from prefork.runtime.master_link import Kind
from prefork.status.deaths import KEPT
from prefork.status.document import name_of

NAMES = ("status", "reload", "scale", "stop", "stack", "deaths")
STACKS_WAIT_S = 1.0  # a worker that can answer does so in a millisecond, unless all processors are taken
MARGIN_S = 5.0
_NO_ANSWER = {  # why a worker does not answer, by the state of its threads in proc(5)
    "T": "the worker is stopped",
    "R": "C code holds the GIL, and it computes",
    "D": "C code holds the GIL, and waits for a disk",
    "S": "C code holds the GIL, and waits",
}


@dataclass(slots=True, kw_only=True)
class Commands(Observer):
    """MASTER. `execute` carries out one request. `ended` is set when the master's loop has ended."""

    policy: Policy
    workers: Workers
    history: History
    log: Log
    scale: Callable[[int], str | None]  # why not
    stop: Callable[[str], None]
    ended: bool = False
    _stack_requests: list[dict[int, str]] = field(default_factory=list)  # each collects stacks by pid

    def execute(self, request: Request, peer: Peer) -> CommandSteps:
        """Do what is asked for. Raises RefusedError."""
        match request.get("command"):
            case "status":
                return self._status(latencies=request.get("latencies") is True)
            case "reload":
                return (yield from self._reload(peer))
            case "scale":
                return (yield from self._scale(peer, request.get("workers")))
            case "stop":
                return (yield from self._stop(peer))
            case "stack":
                return (yield from self._stack(request.get("slot")))
            case "deaths":
                return self.history.deaths.document(_last(request.get("last", KEPT)))
            case other:
                raise RefusedError(f"there is no command {other!r}; there are {', '.join(NAMES)}")

    def message_received(self, message: Message) -> None:
        """Pass the stacks of a worker on to the commands that wait for them."""
        if message.kind == Kind.STACKS:
            for stacks in self._stack_requests:
                stacks[message.worker.pid] = str(message.fields.get("text", ""))

    # --- the commands

    def _status(self, *, latencies: bool) -> dict[str, Any]:
        """`latencies`: with the workers' histograms, by pid, so that two answers can be compared. 1 ms each."""
        document = self.history.document()
        if latencies:
            histograms = {worker.pid: self.workers.board.histogram(worker.group) for worker in self.workers.roster}
            document["latencies"] = {str(pid): found.to_json()["buckets"] for pid, found in histograms.items()}
        return document

    def _reload(self, peer: Peer) -> CommandSteps:
        self._refuse_when_stopping()
        began_s = time.monotonic()
        self.log.info("reloading", control=peer)
        generation = self.policy.rollout.reload()
        until_s = began_s + 2 * (self.policy.workers + 1) * self._patience_s  # 2: another one may come first
        while generation not in self.history.reloads:
            self._refuse_when_stopping()
            self._refuse_when_late(until_s, "the reload goes on")
            young = [worker for worker in self.workers.roster if worker.generation == generation and worker.serving]
            yield Progress(f"generation {generation}: {len(young)} of {self.policy.workers} workers serve", until_s)
        if reason := self.history.reloads[generation]:
            raise RefusedError(f"reload to generation {generation} abandoned, the old generation serves on: {reason}")
        return {"generation": generation, "workers": self.policy.workers, "took_s": _since(began_s)}

    def _scale(self, peer: Peer, workers: Any) -> CommandSteps:
        if not isinstance(workers, int) or isinstance(workers, bool):
            raise RefusedError(f"scale needs a whole number of workers, not {workers!r}")
        self._refuse_when_stopping()
        began_s = time.monotonic()
        before = self.policy.workers
        self.log.debug("asked to scale", workers=workers, control=peer)
        if reason := self.scale(workers):
            raise RefusedError(reason)
        until_s = began_s + self._patience_s
        while not self.policy.settled(self.workers.roster):
            self._refuse_when_stopping()
            if self.policy.workers != workers:
                raise RefusedError(f"scaled to {self.policy.workers} meanwhile, by another command or a signal")
            self._refuse_when_late(until_s, "the server keeps trying")
            yield Progress(f"{self.workers.roster.serving()} of {workers} workers serve", until_s)
        return {"workers": workers, "before": before, "took_s": _since(began_s)}

    def _stop(self, peer: Peer) -> CommandSteps:
        began_s = time.monotonic()
        if not self.policy.stopping:
            self.stop(f"prefork stop, {peer}")
        while not self.ended:
            left = f"{len(self.workers.roster)} workers left" if self.policy.stopping else "serving on for --lame-duck"
            yield Progress(left)
        return {"pid": os.getpid(), "took_s": _since(began_s)}

    def _stack(self, slot: Any) -> CommandSteps:
        asked = self._of_slot(slot)
        stacks: dict[int, str] = {}
        self._stack_requests.append(stacks)
        try:
            for worker in asked:
                self.workers.ask_stacks(worker)
            until_s = time.monotonic() + STACKS_WAIT_S
            while time.monotonic() < until_s and any(w.pid not in stacks and self._alive(w) for w in asked):
                yield Progress(f"{len(stacks)} of {len(asked)} workers have answered", until_s)
        finally:
            self._stack_requests.remove(stacks)
        return {"workers": [self._stacks_of(worker, stacks.get(worker.pid)) for worker in asked]}

    def _of_slot(self, slot: Any) -> list[WorkerHandle]:
        if slot is not None and (not isinstance(slot, int) or isinstance(slot, bool)):
            raise RefusedError(f"a slot is a whole number, not {slot!r}")
        found = [worker for worker in self.workers.roster if slot in (None, worker.slot) and not worker.killed]
        if not found:
            slots = ", ".join(map(str, sorted({worker.slot for worker in self.workers.roster})))
            raise RefusedError(f"no worker is in slot {slot}; in use: {slots}" if slots else "no worker is alive")
        return sorted(found, key=lambda worker: (worker.slot, worker.generation))

    def _stacks_of(self, worker: WorkerHandle, text: str | None) -> dict[str, Any]:
        if not self._alive(worker):
            return {**name_of(worker), "state": None, "stacks": text, "reason": "it ended meanwhile"}
        return {**self.history.activity(worker), "stacks": text, "reason": None if text is not None else _why(worker)}

    # --- when to give up

    @property
    def _patience_s(self) -> float:
        """What one worker may take to come and another to go."""
        timeouts = self.policy.timeouts
        return timeouts.boot_timeout_s + timeouts.graceful_timeout_s + MARGIN_S

    def _alive(self, worker: WorkerHandle) -> bool:
        return worker.pid in self.workers.roster.workers

    def _refuse_when_stopping(self) -> None:
        if self.ended or self.policy.ending:
            raise RefusedError("the server is stopping")

    def _refuse_when_late(self, until_s: float, otherwise: str) -> None:
        if time.monotonic() >= until_s:
            serving = f"{self.workers.roster.serving()} of {self.policy.workers} workers serve"
            raise RefusedError(f"not done in time: {serving}; {otherwise}; see the server's log")


def _why(worker: WorkerHandle) -> str:
    states = thread_states(worker.pid)
    why = next((meaning for state, meaning in _NO_ANSWER.items() if state in states), "nothing is known of it")
    return f"no answer in 1 s: {why}"


def _last(count: Any) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise RefusedError(f"last is a whole number from 1, not {count!r}")
    return count


def _since(began_s: float) -> float:
    return round(time.monotonic() - began_s, 3)
