"""What the policy may ask the master to do, and what it is told of each worker. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from prefork.master.roster import WorkerHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is known of one worker now: its oldest unit of work (ns, 0 = none) and whose it is."""

    since_ns: int = 0
    serving: str = ""


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
    """Tell the worker to finish what is in flight and exit."""

    worker: WorkerHandle
    reason: str


@dataclass(frozen=True, slots=True)
class AskStacks:
    """Ask a hung worker for its Python stacks."""

    worker: WorkerHandle


@dataclass(frozen=True, slots=True)
class AskFault:
    """It did not answer: ask faulthandler, which needs no GIL."""

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
