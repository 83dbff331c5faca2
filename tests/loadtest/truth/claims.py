"""Counts what the lab claims about servers whose difference is known.

`python -m tests.loadtest.truth.claims --runs 20` makes 20 runs of each kind. `cpu` and `wait` compare a server with one
that takes 5 % longer, by its own CPU clock or as a wait; `equal-cpu` and `equal-wait` compare two that are alike. A run
is a whole `loadtest run` of 6 rounds of each server. A claim is a figure of which the report's JSON says that it
differs; the right one is in the right direction.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from tests.loadtest.truth.bench import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.loadtest.truth.bench import Run

CPU_US = 2000
WAIT_MS = 20
SLOWER = 1.05
MODES = {
    "cpu": (f"cpu {CPU_US}", f"cpu {CPU_US * SLOWER:g}"),
    "wait": (f"fixed {WAIT_MS}", f"fixed {WAIT_MS * SLOWER:g}"),
    "equal-cpu": (f"cpu {CPU_US}", f"cpu {CPU_US}"),
    "equal-wait": (f"fixed {WAIT_MS}", f"fixed {WAIT_MS}"),
}
METRICS = ("rate", "p50", "p99", "cpu")
MORE = {"rate": False, "p50": True, "p99": True, "cpu": True}  # whether the slow server's figure is the larger one


@dataclass(slots=True)
class Tally:
    """The runs of one kind."""

    kind: str
    runs: int = 0
    found: Counter[str] = field(default_factory=Counter)  # claims by figure, in the right direction
    wrong: Counter[str] = field(default_factory=Counter)  # in the wrong one, or of servers that are alike
    any_found: int = 0  # runs with a right claim
    any_wrong: int = 0  # runs with a wrong one
    ratios: dict[str, list[float]] = field(default_factory=lambda: {metric: [] for metric in METRICS})
    true: dict[str, list[float]] = field(default_factory=lambda: {"rate": [], "cpu": []})  # by the servers' own counts

    def add(self, run: Run) -> None:
        (contrast,) = [found for found in run.report["contrasts"] if found["name"] == "other"]
        claims = {metric: self._claim(metric, contrast["ratios"].get(metric)) for metric in METRICS}
        right = {metric for metric, claim in claims.items() if claim == "right"}
        wrong = {metric for metric, claim in claims.items() if claim == "wrong"}
        self.found.update(right)
        self.wrong.update(wrong)
        self.any_found += bool(right)
        self.any_wrong += bool(wrong)
        self.runs += 1
        for metric, ratio in true_ratios(run).items():
            self.true[metric].append(ratio)

    def _claim(self, metric: str, ratio: dict[str, Any] | None) -> str:
        if ratio is None:
            return ""
        self.ratios[metric].append(ratio["median"])
        if not ratio["differs"]:
            return ""
        as_it_is = not self.kind.startswith("equal") and (ratio["median"] > 1) == MORE[metric]
        return "right" if as_it_is else "wrong"

    def row(self) -> list[str]:
        def middle(values: Sequence[float]) -> str:
            return f"{median(values):.3f}x" if values else "-"

        cells = [
            f"{self.found[metric]} right, {self.wrong[metric]} wrong ({middle(self.ratios[metric])})"
            for metric in METRICS
        ]
        true = f"{middle(self.true['rate'])}, {middle(self.true['cpu'])}"
        return [self.kind, str(self.runs), true, *cells, str(self.any_found), str(self.any_wrong)]


def true_ratios(run: Run) -> dict[str, float]:
    """Return the second server's rate and CPU time per exchange over the first's, from what both counted themselves."""
    rates: dict[str, list[float]] = {"one": [], "other": []}
    costs: dict[str, list[float]] = {"one": [], "other": []}
    for done in run.rounds:
        if done.truth and done.truth.parts:
            name = done.server.removesuffix("'")
            rates[name].append(done.truth.parts / done.truth.duration_s)
            costs[name].append(done.truth.cpu_ns / done.truth.parts)
    if not all(rates.values()):
        return {}
    return {name: median(found["other"]) / median(found["one"]) for name, found in (("rate", rates), ("cpu", costs))}


def compared(kind: str, *, rounds: int, seconds: float, folder: Path) -> Run:
    """Run the lab once. The server and the load have a CPU each, if there are two."""
    one, other = MODES[kind]
    cpus = sorted(os.sched_getaffinity(0))
    keys: dict[str, Any] = {"rounds": rounds, "aa": True}
    if len(cpus) > 1:
        keys["pin"] = f"{cpus[0]}:{cpus[1]}"
    load = {"duration": seconds, "connections": 2 if "cpu" in kind else 8}
    return measure(
        folder, {"one": one, "other": other}, {"http": load}, within_s=60 + 3 * rounds * (seconds + 20), **keys
    )


def table(tallies: Sequence[Tally]) -> str:
    heads = ["kind", "runs", "true rate, CPU/request", "requests/s", "p50", "p99", "CPU/request", "found", "wrong"]
    return tabulate([tally.row() for tally in tallies], heads, tablefmt="github")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="of each kind; they take turns")
    parser.add_argument("--rounds", type=int, default=6, help="of each server in a run")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
    parser.add_argument("--kind", action="append", choices=sorted(MODES), help="repeat it; all, if it is left out")
    options = parser.parse_args()
    tallies = [Tally(kind) for kind in options.kind or MODES]
    began = time.monotonic()
    try:
        for number in range(options.runs):
            for tally in tallies:
                with tempfile.TemporaryDirectory(prefix="claims-") as folder:
                    tally.add(compared(tally.kind, rounds=options.rounds, seconds=options.seconds, folder=Path(folder)))
                row = tally.row()
                print(f"{number + 1}/{options.runs}", *row, sep=" | ", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: what was run counts", file=sys.stderr)
    print(table(tallies))
    print(f"{time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
