"""Runs of the lab against servers of known behaviour, each round beside what its server counted in the same window."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.loadtest.lab import Lab
from tests.loadtest.truth.server import OK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVER = Path(__file__).with_name("server.py")
QUICK = {"duration": 0.8, "warmup": 0.3, "connections": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a server did between two moments."""

    duration_s: float
    ended: int  # good answers that were sent in this time
    parts: float  # the same, but each counts with the part of its service that lies in this time
    failed: Counter[str]  # by cause, answers that were sent
    began_failed: Counter[str]  # by cause, of requests that arrived in this time
    began: int  # requests that arrived
    latencies_ns: list[int]  # ascending, of those that arrived in this time and were answered well
    cpu_ns: float

    def quantile_ns(self, share: float) -> int:
        """Return the nearest rank."""
        rank = max(1, math.ceil(share * len(self.latencies_ns)))
        return self.latencies_ns[min(rank, len(self.latencies_ns)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What a server wrote at its end."""

    began_ns: int
    ended_ns: int
    exchanges: list[tuple[int, int, int, str, int]]  # connection, arrived_ns, answered_ns, outcome, CPU so far in ns
    waiting: list[int]
    connections: int
    mode: list[str]

    @classmethod
    def read(cls, path: Path) -> Notes:
        return cls(**json.loads(path.read_text()))

    def totals(self, since_ns: int) -> Counter[str]:
        """Return by their outcome the answers to requests that arrived since then."""
        return Counter(outcome for _, arrived_ns, _, outcome, _ in self.exchanges if arrived_ns >= since_ns)

    def between(self, start_ns: int, end_ns: int) -> Truth:
        ended, began = Counter[str](), Counter[str]()
        latencies_ns, parts = [], 0.0
        for _, arrived_ns, answered_ns, outcome, _ in self.exchanges:
            if start_ns <= answered_ns < end_ns:
                ended[outcome] += 1
            if start_ns <= arrived_ns < end_ns:
                began[outcome] += 1
                if outcome == OK:
                    latencies_ns.append(answered_ns - arrived_ns)
            inside_ns = min(answered_ns, end_ns) - max(arrived_ns, start_ns)
            if outcome == OK and inside_ns >= 0:
                parts += inside_ns / (answered_ns - arrived_ns) if answered_ns > arrived_ns else 1
        good = ended.pop(OK, 0)
        waiting = sum(start_ns <= arrived_ns < end_ns for arrived_ns in self.waiting)
        return Truth(
            duration_s=(end_ns - start_ns) / 1e9,
            ended=good,
            parts=parts,
            failed=ended,
            began=began.total() + waiting,
            began_failed=Counter({cause: count for cause, count in began.items() if cause != OK}),
            latencies_ns=sorted(latencies_ns),
            cpu_ns=self._cpu_ns(end_ns) - self._cpu_ns(start_ns),
        )

    def _cpu_ns(self, at_ns: int) -> float:
        """Return the CPU time of the process at this moment, between the two answers around it."""
        before = (self.began_ns, 0)
        for *_, answered_ns, _, cpu_ns in self.exchanges:
            if answered_ns > at_ns:
                share = (at_ns - before[0]) / (answered_ns - before[0])
                return before[1] + share * (cpu_ns - before[1])
            before = (answered_ns, cpu_ns)
        return before[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A round, and its truth."""

    server: str
    load: str
    cycle: int
    round: dict[str, Any]  # its line in rounds.jsonl
    configuration: dict[str, Any]  # its place in the report's JSON
    notes: Notes
    truth: Truth | None  # None for a round without figures

    @property
    def window_ns(self) -> tuple[int, int]:
        start_ns = int(self.client["window_start_ns"])
        return start_ns, start_ns + round(self.client["duration_s"] * 1e9)

    def ended(self, way_ns: float, *, well: bool = True) -> tuple[int, int]:
        """Return the least and the most that clients can have seen end, if an answer takes up to `way_ns` to them."""
        start_ns, end_ns = self.window_ns
        times = [answered_ns for _, _, answered_ns, outcome, _ in self.notes.exchanges if (outcome == OK) == well]
        least = sum(start_ns <= at_ns < end_ns - way_ns for at_ns in times)
        return least, sum(start_ns - way_ns <= at_ns < end_ns for at_ns in times)

    def began(self, way_ns: float, cause: str) -> tuple[int, int]:
        """Return the least and the most that clients can have begun, if a request takes up to `way_ns` to the server.

        Of those that ended with this outcome.
        """
        start_ns, end_ns = self.window_ns
        times = [arrived_ns for _, arrived_ns, _, outcome, _ in self.notes.exchanges if outcome == cause]
        least = sum(start_ns + way_ns <= at_ns < end_ns for at_ns in times)
        return least, sum(start_ns <= at_ns < end_ns + way_ns for at_ns in times)

    @property
    def client(self) -> dict[str, Any]:
        assert self.round["client"], self.round["error"]
        return dict(self.round["client"])

    @property
    def verdict(self) -> str:
        return str(self.round["verdict"]["name"])

    @property
    def open_model(self) -> bool:
        return self.client["arrivals"] is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, and what it said."""

    status: int
    out: str
    err: str
    report: dict[str, Any]
    rounds: list[Measured] = field(default_factory=list)

    def of(self, server: str, load: str = "http") -> Measured:
        """Return the first round of a configuration."""
        return next(done for done in self.rounds if (done.server, done.load) == (server, load))


def measure(
    folder: Path,
    servers: Mapping[str, str],
    loads: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    within_s: float = 90,
    **keys: Any,
) -> Run:
    """Run the lab in a folder: each server (name -> mode and its numbers) under each load (name -> keys of a plan).

    Keys of the plan: one round each, no comparison of the baseline with itself, unless `keys` says otherwise. A mode
    that begins with "unix " is served on a Unix socket.
    """
    lab = Lab(folder)
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    lines = ["name = 'truth'", *_keys({"rounds": 1, "aa": False} | keys)]
    for place, (name, mode) in enumerate(servers.items()):
        where = "{unix}" if mode.startswith("unix ") else "{address}"
        command = f"{{python}} {SERVER} {where} {notes}/{place}-{{pid}} {mode.removeprefix('unix ')}"
        lines += ["", "[[server]]", *_keys({"name": name, "command": command})]
    for name, load in (loads or {"http": {}}).items():
        lines += ["", "[[load]]", *_keys({"name": name, "scenario": "http"} | QUICK | load)]
    plan = lab.script("truth.toml", "\n".join(lines) + "\n")
    done = lab.run(str(plan), within_s=within_s)
    reported = subprocess.run(
        [sys.executable, "-m", "loadtest", "report", str(lab.out), "--format", "json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert reported.returncode == 0, done.stderr + reported.stderr
    report = json.loads(reported.stdout)
    run = Run(status=done.returncode, out=done.stdout, err=done.stderr, report=report)
    written = [Notes.read(path) for path in sorted(notes.iterdir())]
    for line in lab.rounds():
        run.rounds.append(_beside(line, report, written, servers))
    return run


def _beside(
    line: dict[str, Any], report: Mapping[str, Any], written: Sequence[Notes], servers: Mapping[str, str]
) -> Measured:
    """Find the notes that cover the window of a round."""
    name, load = line["configuration"], line["load"]
    mode = servers[name.removesuffix("'")].removeprefix("unix ").split()
    (configuration,) = [found for found in report["configurations"] if (found["name"], found["load"]) == (name, load)]
    truth = None
    found = [notes for notes in written if notes.mode == mode]
    if line["client"]:
        start_ns = line["client"]["window_start_ns"]
        end_ns = start_ns + round(line["client"]["duration_s"] * 1e9)
        found = [notes for notes in found if notes.began_ns <= start_ns < notes.ended_ns]
        assert len(found) == 1, f"{name} under {load}: {len(found)} servers lived in its window"
        truth = found[0].between(start_ns, end_ns)
    return Measured(
        server=name,
        load=load,
        cycle=line["cycle"],
        round=line,
        configuration=configuration,
        notes=found[0],
        truth=truth,
    )


def _keys(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]
