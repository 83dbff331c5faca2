"""What the master knows of its workers. Pure: no system calls, the clock is passed in.

A WorkerHandle is the master's record of one worker process (in the process itself runs worker/process.py). Its life:
pending (forked, not ready) -> ready -> retiring -> gone; it may be killed, or die, in any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from prefork.status.server_state import WorkerState


@dataclass(slots=True, kw_only=True)
class WorkerHandle(WorkerState):
    """MASTER. What the master alone knows about a worker, beyond its WorkerState."""

    stale: str | None = None  # why it is to be replaced: max-requests, max-memory, max-age, SIGTERM from somebody else
    expires_s: float = 0.0  # when --max-age is over (monotonic); 0: not known yet
    killed: str | None = None  # why the master sent SIGKILL
    killed_s: float = 0.0  # when (monotonic)
    served_at_ready: int = 0  # what the others of its generation had completed when it got ready
    hang: Hang | None = None  # set while it is out of time
    told_s: float = 0.0  # when the log had its stacks last; spoiled rows can make it hang anew each moment


@dataclass(slots=True, kw_only=True)
class Hang:
    """A worker over its time limit: the requests for its stacks, and its answer."""

    since_ns: int  # when its unit of work began, or the last that was seen of its process
    serving: str  # of an event loop, until it has answered, the oldest of those that it serves
    asked_s: float  # for its Python stacks
    completed: int = 0  # units, when it was asked
    verdict: str = ""  # of one that boots: what it dies of, also if the question wakes it, and it ends by itself
    answered: bool = False
    stacks: str = ""  # the answer
    fault_s: float | None = None  # faulthandler was asked
    stopped: bool = False  # a signal or a debugger has stopped the process

    def answer(self, text: str, current: str) -> None:
        """The worker has sent its stacks. `current`: of an event loop, the client of the task that runs."""
        self.answered = True
        self.stacks = text
        self.serving = current or self.serving


@dataclass(slots=True)
class Roster:
    """MASTER. The live workers by pid."""

    workers: dict[int, WorkerHandle] = field(default_factory=dict)

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(list(self.workers.values()))

    def __len__(self) -> int:
        return len(self.workers)

    def add(self, worker: WorkerHandle) -> None:
        """Enter a worker that was just forked."""
        self.workers[worker.pid] = worker

    def remove(self, pid: int) -> WorkerHandle:
        """Remove a worker that was reaped."""
        return self.workers.pop(pid)

    def in_slot(self, slot: int) -> list[WorkerHandle]:
        """The workers of a slot that have not been told to retire, oldest first."""
        return [worker for worker in self if worker.slot == slot and worker.retiring_s is None]

    def serving(self) -> int:
        """How many accept."""
        return sum(worker.serving for worker in self)

    def free_group(self, groups: int) -> int | None:
        """The lowest group of rows that no live worker owns."""
        used = {worker.group for worker in self}
        return next((group for group in range(groups) if group not in used), None)


# --- What the policy may ask the master to do, and what it is told of each worker. Plain data.


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is known of one worker now.

    `since_ns`: what --timeout counts from, 0 = nothing. `silent`: that is not a unit of work, but the last that was
    seen of its process. `completed`: how many units it has completed, so that a loop is known to move within a long
    turn. `serving`: whose its oldest work is. `stopped`: known of a worker that is out of time.
    """

    since_ns: int = 0
    serving: str = ""
    silent: bool = False
    completed: int = 0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make ready what workers of the generation are forked from (the template process, with --preload)."""

    generation: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Preparing the generation takes too long: end it."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker for the slot."""

    slot: int
    generation: int
    cause: str  # start, respawn, reload, scale, recycle, drain


@dataclass(frozen=True, slots=True)
class Retire:
    """Tell the worker to finish the requests in flight and exit."""

    worker: WorkerHandle
    reason: str


@dataclass(frozen=True, slots=True)
class AskStacks:
    """Ask a hung worker for its Python stacks."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class AskFault:
    """Ask faulthandler, which needs no GIL, if the worker did not answer."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL."""

    worker: WorkerHandle
    reason: str


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Every worker is of the generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The reload to `generation` failed; the old generation stays."""

    generation: int
    reason: str


Action = Prepare | Discard | Spawn | Retire | AskStacks | AskFault | Kill | Reloaded | Abandoned
