"""Tells the person at the terminal how far a run is. On stderr, so that stdout has the table only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from .figures import duration

if TYPE_CHECKING:
    from .plan import Slot
    from .record import Round


class Progress:
    """A line for each finished round; on a terminal, if rich is installed, a bar with the time left below them."""

    def __init__(self, total: int, title: str) -> None:
        self._total = total
        self._count = 0
        self._bar: Any = _bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task(title, total=total) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, slot: Slot) -> None:
        """A slot is being measured."""
        if self._bar:
            self._bar.update(self._task, description=f"{slot.configuration} ({slot.load.name})")

    def done(self, slot: Slot, done: Round) -> None:
        """A slot has become a round."""
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
        """The slot's configuration was given up earlier."""
        self._step(slot, "")

    def _step(self, slot: Slot, text: str) -> None:
        self._count += 1
        line = f"[{self._count}/{self._total}] {slot.configuration} ({slot.load.name}): {text}"
        if self._bar:
            self._bar.advance(self._task)
        if not text:
            return
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _bar() -> Any:
    try:  # slow to import, and only an extra: without it the lines are enough
        from rich import progress  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
    except ImportError:
        return None
    doing, left = progress.TextColumn("{task.description}"), progress.TextColumn("left")
    columns = (doing, progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn(), left)
    return progress.Progress(*columns, console=Console(stderr=True))
