"""A run: every slot of the plan in its order, each round kept as soon as it is done, whatever happens to the next.

A run that is extended goes on counting cycles. Without `until` it adds the plan's rounds; with it, it adds those that
are missing to the plan's rounds and then cycle after cycle, none when all is narrow already.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.analysis.compare import contrast_all
from loadtest.analysis.inference import widest
from loadtest.data.store import StoreError
from loadtest.measure.child import Interrupted
from loadtest.measure.round import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtest.data.records import Round
    from loadtest.data.store import Store
    from loadtest.measure.child import Interrupt
    from loadtest.measure.progress import Progress
    from loadtest.plan.plan import Slot


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
    session = _Session(store, progress, interrupt, base)
    try:
        for slot in session.slots():
            session.measure(slot)
    except Interrupted:
        session.outcome.interrupted = True
    except StoreError as error:
        session.outcome.unkept = str(error)
    return session.outcome


class _Session:
    def __init__(self, store: Store, progress: Progress, interrupt: Interrupt, base: Path) -> None:
        self.outcome = Outcome()
        self._store = store
        self._progress = progress
        self._interrupt = interrupt
        self._base = base
        self._rounds = store.rounds()  # all of them, earlier runs' too
        self._good = {_key(done) for done in self._rounds if not done.error}
        self._began_s = time.monotonic()

    def slots(self) -> Iterator[Slot]:
        """Yield the slots to measure; with `--until` the next cycle depends on the rounds so far."""
        plan = self._store.plan
        first = max((done.cycle for done in self._rounds), default=-1) + 1
        cycle = max(first, plan.rounds) if plan.until else first + plan.rounds
        yield from self._cycles(range(first, cycle))
        while plan.until and self._too_wide(cycle - first):
            before = self._pairs()
            yield from self._cycles(range(cycle, cycle + 1))
            cycle += 1
            if self._pairs() == before:
                return  # a cycle in vain: the next one would be, too

    def measure(self, slot: Slot) -> None:
        """Measure one slot and keep the round. Raises Interrupted, StoreError."""
        outcome = self.outcome
        progress = self._progress
        key = (slot.server.name, slot.load.name)
        if key in outcome.dropped:
            progress.skip(slot)
            return
        self._interrupt.check()
        number = max((done.number for done in self._rounds), default=-1) + 1
        plan, folder = self._store.plan, self._store.logs(number)
        progress.begin(slot)
        done = measure(plan, slot, number, self._interrupt, base=self._base, folder=folder, tell=progress.live)
        self._store.add(done)
        self._rounds.append(done)
        progress.done(slot, done)
        if not done.error:
            self._good.add(key)
            outcome.measured += 1
            return
        outcome.failed += done.verdict.name == "INVALID"
        if key not in self._good:
            outcome.dropped.add(key)

    def _cycles(self, cycles: range) -> Iterator[Slot]:
        slots = list(self._store.plan.slots(cycles))
        self._progress.expect(len(slots))
        yield from slots

    def _too_wide(self, cycles: int) -> bool:
        """Return whether to begin another cycle, after `cycles` in this run."""
        plan = self._store.plan
        spent_s = time.monotonic() - self._began_s
        width = widest(contrast_all(plan, self._rounds))
        if width is None:
            return False
        left_s = plan.within_s - spent_s
        next_s = spent_s / cycles if cycles else 0.0
        more = not width.within(plan.until) and next_s < left_s
        self._progress.width(width, plan.until, left_s if more else 0.0)
        return more

    def _pairs(self) -> int:
        ratios = [contrast.ratios["rate"] for contrast in contrast_all(self._store.plan, self._rounds)]
        return sum(ratio.pairs for ratio in ratios if ratio)


def _key(done: Round) -> tuple[str, str]:
    return done.configuration.rstrip("'"), done.load
