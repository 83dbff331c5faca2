"""Runs to make pages of, and what is on a page."""

from __future__ import annotations

import functools
import random
from html.parser import HTMLParser
from typing import Any

import pytest

from loadtest.analysis.compare import compare
from loadtest.data.records import Round, Worker
from loadtest.data.store import Store
from loadtest.plan.plan import Load, Plan, Server
from loadtest.report.model import Report
from prefork.status.histogram import Histogram
from tests.loadtest.records import arrivals, client, failed, measured, signals
from tests.support.server import ROOT

HOSTILE = "</title><script>alert('1')</script>\"><img src=http://127.0.0.1:9/ onerror=alert(2)> & \x1b[31m \ud800 ünï"
"""A name that tries everything."""


@functools.cache
def calm_run(**load: Any) -> Report:
    """Two servers of four workers, 6 rounds of 3 s, the baseline twice."""
    plan = Plan(
        name="calm",
        servers=(Server(name="one", command="serve {port}"), Server(name="two", command="serve -w 2 {port}")),
        loads=(Load(name="nap", scenario="nap", duration_s=3, **load),),
    )
    return report(plan, {"one": 10_000_000, "two": 6_000_000, "one'": 10_000_000})


@functools.cache
def busy_run() -> Report:
    """All that a page can have on it: two loads, one by schedule; nine servers, one that failed; and a hostile name."""
    names = [*(f"server number {number}" for number in range(7)), HOSTILE, "gone"]
    plan = Plan(
        name=HOSTILE,
        servers=tuple(Server(name=name, command=f"{name} {{port}}") for name in names),
        loads=(Load(name="nap", scenario="nap", duration_s=3), Load(name=HOSTILE, rate_per_s=400, duration_s=3)),
    )
    return report(plan, {name: 2_000_000 * 4**number for number, name in enumerate(names[:8])}, gone="gone")


RUNS = ["demo", pytest.param("peers-stream", marks=pytest.mark.slow), "calm", "by schedule", "busy"]
"""Runs to draw: two that were measured, of which one is large, and three that are made."""


def run(name: str) -> Report:
    """One of RUNS."""
    made = {"calm": calm_run, "busy": busy_run, "by schedule": lambda: calm_run(rate_per_s=400)}
    return made[name]() if name in made else stored(name)


@functools.cache
def stored(name: str) -> Report:
    """A run that is kept under results/."""
    store = Store.open(ROOT / "results" / name)
    rounds = store.rounds()
    return Report(plan=store.plan, rounds=rounds, comparison=compare(store.plan, rounds))


def printable(text: str) -> str:
    """A hostile name as a page shows it."""
    return text.replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")


def report(plan: Plan, centres_ns: dict[str, int], gone: str = "") -> Report:
    """A run of the plan's loads in which servers answer in about so much time."""
    chance = random.Random(7)
    rounds = [
        a_round(name, load, cycle, centre_ns, chance)
        for load in plan.loads
        for cycle in range(6)
        for name, centre_ns in centres_ns.items()
    ]
    rounds += [failed(gone, 0, number=99, error=f"{HOSTILE} did not start")] if gone else []
    return Report(plan=plan, rounds=rounds, comparison=compare(plan, rounds))


def a_round(name: str, load: Load, cycle: int, centre_ns: int, chance: random.Random) -> Round:
    """Three seconds with some hundred exchanges each, the first with fewer than a p99 needs."""
    seconds, whole = [], Histogram()
    for t_s in range(3):
        latencies = [int(centre_ns * chance.lognormvariate(0, 0.5)) for _ in range(200 + 100 * t_s)]
        second = Histogram()
        second.record_many(latencies)
        whole.merge(second)
        percentiles = {"p50_ns": second.quantile(0.5), "p99_ns": second.quantile(0.99)}
        seconds.append(
            {"t_s": t_s, "span_s": 1.0, "ended": second.n, "completed": second.n, "failed": 0, **percentiles}
        )
    service = Histogram()
    service.record(centre_ns // 2, whole.n)
    file = {
        "completed": whole.n,
        "duration_s": 3.0,
        "latency": whole.to_json(),
        "service_time": service.to_json() if load.rate_per_s else whole.to_json(),
        "arrivals": arrivals(offered=whole.n) if load.rate_per_s else None,
        "per_second": seconds,
    }
    looks = tuple((-1 + 0.1 * number, 0.5, chance.randrange(12)) for number in range(50))
    requests = [whole.n // 10 * share for share in (4, 3, 2, 1)]
    workers = tuple(
        Worker(slot=slot, cpu_ns=10**8, accepted=found, requests=found, connections=1.0)
        for slot, found in enumerate(requests)
    )
    seen = signals(series=looks, workers=workers)
    return measured(name, cycle, load=load.name, number=cycle, client=client(**file), signals=seen)


class Page(HTMLParser):
    """The elements of a page in their order, each with its attributes and the text directly in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, str]] = []
        self._open: list[dict[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "text": "", **{name: value or "" for name, value in attrs}}
        self.elements.append(element)
        if tag != "meta":
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        element = self._open.pop()
        assert element["tag"] == tag, f"{element} closed by {tag}"

    def handle_data(self, data: str) -> None:
        for element in self._open[-1:]:
            element["text"] += data

    def having(self, attribute: str, value: str | None = None) -> list[dict[str, str]]:
        """The elements with an attribute, or with that value of it."""
        return [each for each in self.elements if attribute in each and value in (None, each[attribute])]


def at(document: Any, place: str) -> Any:
    """What a place such as `configurations.0.name` names."""
    for key in place.split("."):
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document
