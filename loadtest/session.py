"""A run: every slot of the plan in its order, each round kept as soon as it is done, whatever happens to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .interrupt import Interrupted
from .round import measure
from .store import StoreError

if TYPE_CHECKING:
    from .interrupt import Interrupt
    from .progress import Progress
    from .record import Round
    from .store import Store


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    measured: int = 0
    failed: int = 0
    interrupted: bool = False
    unkept: str = ""  # why the last round could not be kept, which ended the run
    dropped: set[tuple[str, str]] = field(default_factory=set)  # (server, load) that are not tried again


def run(store: Store, progress: Progress, interrupt: Interrupt, *, base: Path) -> Outcome:
    """Measure every slot of the store's plan, after the cycles that are there. Ctrl-C ends it; what is done is kept.

    A configuration whose very first round fails is not tried again: what is wrong is in the command, not in the
    weather. A later failure costs that round only.
    """
    earlier = store.rounds()
    slots = list(store.plan.slots(first_cycle=max((done.cycle for done in earlier), default=-1) + 1))
    good = {_key(done) for done in earlier if not done.error}
    outcome = Outcome()
    try:
        for slot in slots:
            key = (slot.server.name, slot.load.name)
            if key in outcome.dropped:
                progress.skip(slot)
                continue
            interrupt.check()
            number, folder = store.room()
            progress.begin(slot)
            done = measure(store.plan, slot, number, interrupt, base=base, folder=folder)
            store.add(done)
            progress.done(slot, done)
            if not done.error:
                good.add(key)
                outcome.measured += 1
                continue
            outcome.failed += done.verdict.name == "INVALID"
            if key not in good:
                outcome.dropped.add(key)
    except Interrupted:
        outcome.interrupted = True
    except StoreError as error:
        outcome.unkept = str(error)
    return outcome


def _key(done: Round) -> tuple[str, str]:
    return done.configuration.rstrip("'"), done.load
