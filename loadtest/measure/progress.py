"""Tells the person at the terminal how far a run is. On stderr, so that stdout has the table only."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Self

from loadtest.data.figures import duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.analysis.inference import Width
    from loadtest.data.records import Round
    from loadtest.plan.plan import Slot

AROUND_S = 2.0  # starting and stopping, for each round, until it is known better
PATIENCE_S = 5.0  # of a person who sees nothing happen
SAY_EVERY_S = 300.0  # without a bar, in a round that takes longer


class Progress:
    """Prints a line for each finished round; on a terminal, if rich is installed, a bar below them.

    The bar shows what is being measured and its rate just now, the rounds done, and the time left; a round without a
    bar that takes long prints the same from time to time. `clock` is monotonic, in s.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_s = 0.0  # when the slot last printed a line
        self._waited = False  # whether it has printed that it waits for the server
        self._total = 0
        self._count = 0
        self._began_s = 0.0  # when the slot began; monotonic
        self._spent_s = 0.0  # all rounds so far, from begin to done
        self._loaded_s = 0.0  # the load of these rounds
        self._slot: Slot | None = None  # being measured
        self._bar: Any = _bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task(title, total=0, rate="", left="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def expect(self, slots: int) -> None:
        """Expect `slots` more slots."""
        self._total += slots
        self._show(total=self._total)

    def begin(self, slot: Slot) -> None:
        """Show the slot that is being measured."""
        self._began_s = self._said_s = self._clock()
        self._waited = False
        self._slot = slot
        self._show(description=f"{slot.configuration} ({slot.load.name})", rate="")

    def waiting(self, waited_s: float, ready_s: float) -> None:
        """Show that the server is not ready after `waited_s` of `ready_s`, once somebody may wonder."""
        if waited_s < PATIENCE_S:
            return
        text = f"not ready after {_clock(waited_s)}, waiting for up to {_clock(ready_s)} (--ready)"
        self._show(rate=text)
        if not self._bar and not self._waited:
            self._waited = True
            self._say_of_slot(text)

    def live(self, rate_per_s: float, failed: int) -> None:
        """Show the throughput just now, warm-up included."""
        text = f"{rate_per_s:,.0f}/s" + (f", {failed} failed" if failed else "")
        self._show(rate=text)
        if not self._bar and self._clock() >= self._said_s + SAY_EVERY_S:
            self._said_s = self._clock()
            self._say_of_slot(f"{text}, {_clock(self._left_s())} left")

    def done(self, slot: Slot, done: Round) -> None:
        """Print the finished round."""
        self._spent_s += self._clock() - self._began_s
        self._loaded_s += _load_s(slot)
        self._slot = None
        if done.error:
            word = "FAILED" if done.verdict.name == "INVALID" else done.verdict.name
            self._step(slot, f"{word}: {done.error}")
            return
        assert done.client is not None
        p50 = duration(done.client.latency.quantile(0.5)) if done.client.completed else "-"
        failed = f", {done.client.failed} failed" if done.client.failed else ""
        self._step(
            slot, f"{done.client.rate_per_s:,.0f}/s, p50 {p50}{failed}, {done.verdict.name}: {done.verdict.reason}"
        )

    def skip(self, slot: Slot) -> None:
        """Count a slot whose configuration was given up earlier."""
        self._step(slot, "")

    def width(self, width: Width, until: float, left_s: float) -> None:
        """Print how wide the intervals are, after a cycle of a run with `--until`."""
        going_on = f"going on for at most {_clock(left_s)}" if left_s > 0 else "time is up"
        state = "narrow enough" if width.within(until) else going_on
        self._say(f"{state}: {width.describe()}, wanted ±{100 * until:.3g}%")

    def _step(self, slot: Slot, text: str) -> None:
        self._count += 1
        self._show(completed=self._count, rate="")
        if text:
            self._say(f"[{self._count}/{self._total}] {slot.configuration} ({slot.load.name}): {text}")

    def _say_of_slot(self, text: str) -> None:
        assert self._slot is not None
        self._say(f"[{self._count + 1}/{self._total}] {self._slot.configuration} ({self._slot.load.name}): {text}")

    def _say(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _show(self, **change: object) -> None:
        if self._bar:
            self._bar.update(self._task, left=f"{_clock(self._left_s())} left", **change)

    def _left_s(self) -> float:
        """Estimate the seconds left: each slot's load, and the mean time that a round takes beside its load."""
        around_s = (self._spent_s - self._loaded_s) / self._count if self._loaded_s else AROUND_S
        if self._slot is None:
            return 0.0
        each_s = _load_s(self._slot) + around_s
        return max(0.0, each_s * (self._total - self._count) - (self._clock() - self._began_s))


def _load_s(slot: Slot) -> float:
    return slot.load.warmup_s + slot.load.duration_s


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar() -> Any:
    try:  # slow to import, and only an extra: without it the lines are enough
        from rich import progress  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
    except ImportError:
        return None
    texts = [progress.TextColumn("{task." + name + "}") for name in ("description", "fields[rate]", "fields[left]")]
    columns = (*texts[:2], progress.BarColumn(), progress.MofNCompleteColumn(), texts[2])
    return progress.Progress(*columns, console=Console(stderr=True))
