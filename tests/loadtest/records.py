"""Rounds made to measure: the figures that a test does not care about are those of a calm server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loadtest.data.records import Client, Queue, Round, Signals, Usage, Verdict
from prefork.status.histogram import Histogram

if TYPE_CHECKING:
    from pathlib import Path

PROVENANCE = {
    "host": "bench",
    "cpu": "Test CPU",
    "machine": "x86_64",
    "cpus": 2,
    "kernel": "6.1",
    "python": "3.12.1",
    "versions": {"prefork": "0.1.0", "locust": "2.47.0", "gevent": None},
    "commit": "0123456789abcdef",
    "dirty": False,
}


def generator_file(**change: Any) -> dict[str, Any]:
    """What the load generator writes: 2 s of 1,000 exchanges a second, 16 at a time, so 16 ms each."""
    latency = Histogram()
    latency.record(16_000_000, change.get("completed", 2000) or 1)
    completed = change.get("completed", 2000)
    latency = latency if completed else Histogram()
    return {
        "schema": 2,
        "generator": {"engine": "readable"},
        "scenario": "nap",
        "connections": 16,
        "window_start_ns": 5_000_000_000,
        "duration_s": 2.0,
        "rate_per_s": change.get("ended", completed) / change.get("duration_s", 2.0),
        "ended": completed,
        "ended_failed": sum(change.get("failures", {}).values()),
        "completed": completed,
        "failures": {},
        "censored": 0,
        "busy_s": 32.0,
        "longest_ns": Histogram.from_json(change["latency"]).max_ns if "latency" in change else 16_000_000,
        "latency": latency.to_json(),
        "service_time": latency.to_json(),
        "arrivals": None,
    } | change


def arrivals(*, lag_ns: int = 50_000, **change: Any) -> dict[str, Any]:
    """The open model's part of that file: all that came due was seen 50 us late, and sent."""
    lag = Histogram()
    lag.record(lag_ns, change.get("offered", 2000))
    return {"offered": 2000, "missed": 0, "lag": lag.to_json()} | change


def client(**change: Any) -> Client:
    return Client.from_json(generator_file(**change))


def usage(**change: Any) -> Usage:
    """A process tree that is half a core busy for 2 s."""
    figures = {
        "cpu_ns": 1_000_000_000,
        "busiest_ns": 1_000_000_000,
        "wait_ns": 0,
        "switches_voluntary": 10,
        "switches_involuntary": 1,
        "processes": 2,
        "covered": 0.95,
    }
    return Usage(**(figures | change))


def queue(**change: Any) -> Queue:
    return Queue(**({"depth_max": 1, "depth_mean": 0.1, "limit": 100, "drops": 0} | change))


def signals(**change: Any) -> Signals:
    figures = {"server": usage(), "generator": usage(), "queue": queue(), "pss_bytes": 20_000_000, "series": ()}
    return Signals(**(figures | change))


def measured(
    name: str, cycle: int, *, number: int = 0, rate: float = 1000, verdict: str = "OK", **change: Any
) -> Round:
    """A round of 2 s at this rate."""
    completed = round(rate * 2)
    figures = {
        "number": number,
        "cycle": cycle,
        "position": 0,
        "configuration": name,
        "load": "nap",
        "started": "2026-01-01T00:00:00+00:00",
        "verdict": Verdict(name=verdict, reason="because"),
        "provenance": PROVENANCE,
        "client": client(completed=completed),
        "signals": signals(),
    }
    return Round(**(figures | change))


def failed(name: str, cycle: int, *, number: int = 0, error: str = "the server exited with status 1") -> Round:
    """A round that came to nothing."""
    verdict = Verdict(name="INVALID", reason=error.partition("\n")[0])
    return replace(measured(name, cycle, number=number), verdict=verdict, error=error, client=None, signals=None)


def rounds_in(run: Path) -> list[dict[str, Any]]:
    """The rounds in a run's folder, as they were written."""
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
