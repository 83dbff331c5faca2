"""One round: start the server, wait until it answers, drive the load, watch both sides, stop, judge.

One thread and no timers: the wait between two samples is a wait for either process to end, so that a server that dies
ends the round at once. Whatever goes wrong becomes the round's `error`; only Interrupted and mistakes of the lab itself
leave this module.
"""

from __future__ import annotations

import os
import select
import tempfile
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from loadtest.analysis.verdict import judge
from loadtest.data import provenance
from loadtest.data.records import Client, Round, Signals, Verdict
from loadtest.measure.child import ChildError
from loadtest.measure.generator import (
    GeneratorError,
    deadline_s,
    last_words,
    progress_file,
    read_result,
    start_generator,
)
from loadtest.measure.probe import PERIOD_S, Probe, StatusProbe, owners
from loadtest.measure.server import RunningServer, ServerError, ServerMissingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtest.measure.child import Child, Interrupt
    from loadtest.plan.plan import Load, Plan, Slot

    Tell = Callable[[float, int], None]  # exchanges per second just now, failed exchanges so far

_LOOKS = 3  # of the generator's progress file for one rate: it is written twice a second, so this is one second


def measure(
    plan: Plan, slot: Slot, number: int, interrupt: Interrupt, *, base: Path, folder: Path, tell: Tell
) -> Round:
    """Measure the slot.

    `base` is where relative folders of the plan start, `folder` takes the logs of this round, and `tell` is called
    with the live rate.
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
            server.wait_ready(slot.load)
            client, signals = _drive(plan, slot.load, server, folder, interrupt, tell)
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
    )


def _verdict(plan: Plan, client: Client | None, signals: Signals | None, failure: Exception | None) -> Verdict:
    if client is None or signals is None:
        name = "LEFT-OUT" if isinstance(failure, ServerMissingError) else "INVALID"
        return Verdict(name=name, reason=str(failure).partition("\n")[0])
    return judge(client, signals, len(plan.pin.server if plan.pin else os.sched_getaffinity(0)))


def _drive(
    plan: Plan, load: Load, server: RunningServer, folder: Path, interrupt: Interrupt, tell: Tell
) -> tuple[Client, Signals]:
    """Put the load on the ready server. Raises ServerError, GeneratorError, Interrupted."""
    port = server.local_port()
    with start_generator(plan, load, server, folder) as generator, Live(progress_file(folder), tell) as live:
        ours = Probe([generator.pid])
        theirs = Probe([server.child.pid] if server.child else owners(port), port)
        asked = StatusProbe(server.control, load.duration_s)
        _watch(server, generator, [ours, theirs, asked, live], interrupt, deadline_s(load))
        server.check_alive()
        client = read_result(generator, folder)
    start_ns = client.start_ns
    end_ns = start_ns + round(client.duration_s * 1e9)
    server.notes += asked.notes
    told = asked.workers(start_ns, end_ns, theirs.cpu_by_pid(start_ns, end_ns))
    return client, Signals(
        server=theirs.usage(start_ns, end_ns),
        generator=ours.usage(start_ns, end_ns),
        queue=theirs.queue(start_ns, end_ns),
        pss_bytes=theirs.pss_bytes(),
        series=theirs.series(start_ns),
        workers=told or theirs.workers(start_ns, end_ns),
    )


def _watch(
    server: RunningServer,
    generator: Child,
    probes: list[Probe | StatusProbe | Live],
    interrupt: Interrupt,
    within_s: float,
) -> None:
    """Sample until the generator ends. Raises ServerError if the server ends first, GeneratorError if time is up."""
    deadline = time.monotonic() + within_s
    watched: list[Child | Interrupt] = [generator, interrupt, *([server.child] if server.child else [])]
    due = time.monotonic()
    while True:
        for probe in probes:
            probe.sample()
        due = max(due + PERIOD_S, time.monotonic())
        ended, _, _ = select.select(watched, [], [], max(0.0, due - time.monotonic()))
        if generator in ended:
            return
        interrupt.check()
        server.check_alive()
        if time.monotonic() > deadline:
            message = f"the generator did not end within {within_s:g} s and was killed"
            raise GeneratorError(last_words(generator, message))


class Live:
    """Reads the progress line that the generator writes (users/adapter.py). No figure of a round comes from here."""

    def __init__(self, file: Path, tell: Tell) -> None:
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
            at_ns, well, failed = map(int, self._file.read_bytes().split())
        except (OSError, ValueError):
            return  # not there yet, or half written
        if not self._seen or at_ns != self._seen[-1][0]:
            self._seen.append((at_ns, well, failed))
            first_ns, before, _ = self._seen[0]
            last_ns, now, _ = self._seen[-1]
            if last_ns > first_ns:
                self._tell((now - before) / ((last_ns - first_ns) / 1e9), failed)
