"""A run: every slot of the plan in its order, each round kept as soon as it is done, whatever happens to the next.

A round that is lost (INVALID, where the server has a valid one) is measured again at the end of its cycle, or of the
one in which the first valid one comes, as one pair of rounds fewer may be one too few. At most _AGAIN times a
configuration, and never what is measured again: a server whose rounds are often INVALID is not to be tried until it
looks well.

A run that is extended goes on counting cycles. Without `until` it adds the plan's rounds; with it, it adds those that
are missing to the plan's rounds and then cycle after cycle, none when all is narrow already.
"""

from __future__ import annotations

import os
import select
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from loadtest.analysis.compare import contrast_all
from loadtest.analysis.inference import widest
from loadtest.analysis.verdict import judge
from loadtest.data import provenance
from loadtest.data.records import Client, Round, Signals, Verdict
from loadtest.data.store import StoreError
from loadtest.measure.child import ChildError, Interrupted
from loadtest.measure.generator import (
    GeneratorError,
    deadline_s,
    last_words,
    progress_file,
    read_result,
    start_generator,
)
from loadtest.measure.probe import PERIOD_S, Machine, Probe, StatusProbe, owners
from loadtest.measure.server import RunningServer, ServerError, ServerMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtest.data.store import Store
    from loadtest.measure.child import Child, Interrupt
    from loadtest.measure.progress import Progress
    from loadtest.plan.plan import Plan, Slot

    Tell = Callable[[float, int], None]  # exchanges per second just now, failed exchanges so far


# --- One round: start the server, wait until it answers, drive the load, watch both sides, stop, judge.
#
# One thread and no timers: the wait between two samples is a wait for either process to end, so that a server that dies
# ends the round at once. Whatever goes wrong becomes the round's `error`; only Interrupted and mistakes of the lab
# itself leave this module.


_BEFORE_THE_END_S = (0.03, 0.008)  # of the window are two looks, as the last one may come too late to lie in it
_LOOKS = 3  # of the generator's progress file for one rate: it is written twice a second, so this is one second


def measure(
    plan: Plan,
    slot: Slot,
    number: int,
    interrupt: Interrupt,
    *,
    base: Path,
    folder: Path,
    progress: Progress,
) -> Round:
    """Measure the slot.

    `base` is where relative folders of the plan start, `folder` takes the logs of this round, and `progress` hears of
    the wait for the server and of the live rate.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    client = None
    signals = None
    notes: list[str] = []
    failure: Exception | None = None
    try:
        cpus = plan.pin.server if plan.pin else ()
        log = folder / "server.log"
        with (
            tempfile.TemporaryDirectory(prefix="loadtest-") as scratch,
            RunningServer(slot.server, folder=base, log=log, scratch=scratch, cpus=cpus, interrupt=interrupt) as server,
        ):
            notes = server.notes
            server.wait_ready(slot.load, progress.waiting)
            client, signals = _drive(plan, slot, server, folder, interrupt, progress.live)
    except (ServerError, GeneratorError, ChildError) as error:
        failure = error
        client = None
        signals = None
    return Round(
        number=number,
        cycle=slot.cycle,
        position=slot.position,
        configuration=slot.configuration,
        load=slot.load.name,
        started=started,
        verdict=_verdict(plan, client, signals, failure),
        provenance=provenance.collect(),
        error=str(failure or ""),
        client=client,
        signals=signals,
        notes=tuple(notes),
        seed=slot.seed,
        again=slot.again,
    )


def _verdict(plan: Plan, client: Client | None, signals: Signals | None, failure: Exception | None) -> Verdict:
    if client is None or signals is None:
        name = "LEFT-OUT" if isinstance(failure, ServerMissingError) else "INVALID"
        return Verdict(name=name, reason=str(failure).partition("\n")[0])
    return judge(client, signals, len(plan.pin.server if plan.pin else os.sched_getaffinity(0)))


def _drive(
    plan: Plan, slot: Slot, server: RunningServer, folder: Path, interrupt: Interrupt, tell: Tell
) -> tuple[Client, Signals]:
    """Put the load on the ready server. Raises ServerError, GeneratorError, Interrupted."""
    load = slot.load
    port = server.local_port()
    alone_ns = server.alone_ns(load)
    machine = Machine(plan.pin.server if plan.pin else os.sched_getaffinity(0))
    with start_generator(plan, slot, server, folder) as generator, Live(progress_file(folder), tell) as live:
        ours = Probe([generator.pid])
        theirs = Probe([server.child.pid] if server.child else owners(port), port, counts_held=server.control is None)
        asked = StatusProbe(server.control, load.duration_s)
        _watch(server, generator, [ours, theirs, machine, asked, live], interrupt, deadline_s(load))
        server.check_alive()
        client = read_result(generator, folder)
    start_ns = client.start_ns
    end_ns = start_ns + round(client.duration_s * 1e9)
    server.notes += asked.notes
    told = asked.workers(start_ns, end_ns, theirs.cpu_by_pid(start_ns, end_ns), theirs.calls(start_ns, end_ns))
    used, load_used = theirs.usage(start_ns, end_ns), ours.usage(start_ns, end_ns)
    sides = (used, None if plan.pin else load_used)  # that had these CPUs
    return client, Signals(
        server=used,
        generator=load_used,
        queue=theirs.queue(start_ns, end_ns),
        pss_bytes=theirs.pss_bytes(),
        series=theirs.series(start_ns),
        workers=told or theirs.workers(start_ns, end_ns),
        alone_ns=alone_ns,
        others_cores=machine.others(start_ns, end_ns, sides) if used else None,
        cpus=len(machine.cpus),
    )


def _watch(
    server: RunningServer,
    generator: Child,
    probes: list[Probe | Machine | StatusProbe | Live],
    interrupt: Interrupt,
    within_s: float,
) -> None:
    """Sample until the generator ends, also at the edges of its window, so that the samples cover it.

    Raises ServerError if the server ends first, GeneratorError if time is up.
    """
    deadline = time.monotonic() + within_s
    watched: list[Child | Interrupt] = [generator, interrupt, *([server.child] if server.child else [])]
    due = time.monotonic()
    while True:
        for probe in probes:
            probe.sample()
        now = time.monotonic()
        edges = [edge for probe in probes if isinstance(probe, Live) for edge in probe.edges_s if edge > now]
        due = min([max(due + PERIOD_S, now), *edges])
        ended, _, _ = select.select(watched, [], [], max(0.0, due - time.monotonic()))
        if generator in ended:
            return
        interrupt.check()
        server.check_alive()
        if time.monotonic() > deadline:
            message = f"the generator did not end within {within_s:g} s and was killed"
            raise GeneratorError(last_words(generator, message))


class Live:
    """Reads the progress line that the generator writes (users/adapter.py). No figure of a round comes from here.

    `edges_s`: when to look at the processes: when the window opens and shortly before it closes, once that is known.
    """

    def __init__(self, file: Path, tell: Tell) -> None:
        self.edges_s: tuple[float, ...] = ()
        self._file = file
        self._tell = tell
        self._seen: deque[tuple[int, int, int]] = deque(maxlen=_LOOKS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.unlink(missing_ok=True)

    def sample(self) -> None:
        """Read the line, and call `tell` if there is something new."""
        try:
            at_ns, well, failed, opens_ns, closes_ns = map(int, self._file.read_bytes().split())
        except (OSError, ValueError):
            return  # not there yet, or half written
        self.edges_s = (opens_ns / 1e9, *(closes_ns / 1e9 - before_s for before_s in _BEFORE_THE_END_S))
        if not self._seen or at_ns != self._seen[-1][0]:
            self._seen.append((at_ns, well, failed))
            first_ns, before, _ = self._seen[0]
            last_ns, now, _ = self._seen[-1]
            if last_ns > first_ns:
                self._tell((now - before) / ((last_ns - first_ns) / 1e9), failed)


_AGAIN = 2  # rounds that a configuration may lose in a run and have measured again


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    measured: int = 0
    failed: int = 0
    interrupted: bool = False
    unkept: str = ""  # why the last round could not be kept, which ended the run
    dropped: set[tuple[str, str]] = field(default_factory=set)  # (server, load) that are not tried again


def run(
    store: Store, progress: Progress, interrupt: Interrupt, *, base: Path, notes: Callable[[], list[str]] = list
) -> Outcome:
    """Measure every slot of the store's plan, after the cycles that are there. Ctrl-C ends it; what is done is kept.

    `notes` tells what goes on beside the run; it is asked before and after each round, which keeps what it said.

    A configuration whose very first round fails is not tried again: what is wrong is in the command, not in the
    weather. A later failure costs that round only, which is measured again.
    """
    session = _Session(store, progress, interrupt, base, notes)
    try:
        for slot in session.slots():
            session.measure(slot)
    except Interrupted:
        session.outcome.interrupted = True
    except StoreError as error:
        session.outcome.unkept = str(error)
    return session.outcome


class _Session:
    def __init__(
        self, store: Store, progress: Progress, interrupt: Interrupt, base: Path, notes: Callable[[], list[str]]
    ) -> None:
        self.outcome = Outcome()
        self._notes = notes
        self._store = store
        self._progress = progress
        self._interrupt = interrupt
        self._base = base
        self._rounds = store.rounds()  # all of them, earlier runs' too
        self._again: Counter[tuple[str, str]] = Counter()  # configuration, load -> rounds measured again in this run
        self._lost: list[Slot] = []  # of this cycle
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
        before = self._notes()
        done = measure(plan, slot, number, self._interrupt, base=self._base, folder=folder, progress=progress)
        done = replace(done, notes=(*done.notes, *dict.fromkeys(before + self._notes())))
        self._store.add(done)
        self._rounds.append(done)
        progress.done(slot, done)
        if not done.error:
            self._good.add(key)
            outcome.measured += 1
        else:
            outcome.failed += done.verdict.name == "INVALID"
            if key not in self._good:
                outcome.dropped.add(key)
        if done.verdict.name == "INVALID" and key in self._good and slot.again is None:
            self._lost.append(replace(slot, again=done.number))

    def _cycles(self, cycles: range) -> Iterator[Slot]:
        planned = [list(self._store.plan.slots([cycle])) for cycle in cycles]
        self._progress.expect(sum(map(len, planned)))
        for slots in planned:
            yield from slots
            yield from self._repeated(len(slots))

    def _repeated(self, position: int) -> Iterator[Slot]:
        """Yield the slots that were lost and may be measured again, from this position on."""
        lost, self._lost = self._lost, []
        valid = {_key(done) for done in self._rounds if done.verdict.valid}
        for slot in lost:
            key = (slot.configuration, slot.load.name)
            if (slot.server.name, slot.load.name) not in valid:
                self._lost.append(slot)  # perhaps after the next cycle
            elif self._again[key] < _AGAIN:
                self._again[key] += 1
                self._progress.expect(1)
                yield replace(slot, position=position)
                position += 1

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
        return sum(contrast.pairs for contrast in contrast_all(self._store.plan, self._rounds))


def _key(done: Round) -> tuple[str, str]:
    return done.configuration.rstrip("'"), done.load
