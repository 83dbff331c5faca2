"""The metrics: every figure of the status under its name, in the format as it is defined."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from prefork.config.config import resolve
from prefork.status import prometheus
from prefork.status.collect import Collector, ServerSnapshot
from prefork.status.histogram import ARRAY_DIGITS, Histogram
from prefork.status.scoreboard import ACCEPTED, COMPLETED, COUNTERS, Scoreboard
from prefork.status.server_state import MasterState
from tests.status.test_server_state import state, worker
from tests.support.admin import counters, figure, parsed


def snapshot(of: MasterState | None = None, **flags: Any) -> ServerSnapshot:
    """A server of two workers that are no processes, of which only the first has done something."""
    config = resolve("shop:app", {"workers": "2", **flags}, {})
    board = Scoreboard(groups=8, threads=1)
    board.row(7).cells[COMPLETED] = 5
    board.row(7).cells[ACCEPTED] = 6
    known = (worker(pid=1 << 30, slot=0, group=7), worker(pid=(1 << 30) + 1, slot=1, group=2, ready_s=None))
    gone = {0: dict.fromkeys((*COUNTERS, "cpu_ns"), 0) | {"completed": 4, "cpu_ns": 2_500_000_000}}
    return Collector(config=config, board=board, listeners=[]).snapshot(of or state(workers=known, gone=gone))


def text(of: ServerSnapshot) -> str:
    return prometheus.render(of, alive=True).decode()


def test_each_family_is_told_once_with_its_type_and_help() -> None:
    families = list(text_string_to_metric_families(text(snapshot())))
    told = {family.name for family in families}
    known = {metric.name.removesuffix("_total"): metric for metric in prometheus.METRICS}
    assert len(told) == len(families)
    assert told <= known.keys()
    for family in families:
        metric = known[family.name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= set(metric.labels), family.name


def test_names_and_texts_are_as_prometheus_wants_them() -> None:
    for metric in prometheus.METRICS:
        assert re.fullmatch(r"prefork(_[a-z]+)+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.help.endswith("."), metric.name
    assert len({metric.name for metric in prometheus.METRICS}) == len(prometheus.METRICS)


def test_every_counter_of_the_status_has_its_metric() -> None:
    seen = snapshot()
    totals = seen.document["totals"].keys() - {"busy_s", "p50_us", "p99_us", "respawns", "connections", "in_transfer"}
    totals -= {"errors_by_kind", "queue_wait"}  # made of the others; a histogram here
    found = parsed(text(seen))
    missing = [name for name in totals if (f"prefork_{name}_total", frozenset()) not in found]
    assert not missing
    assert figure(found, "prefork_in_transfer") == 0


def test_what_a_slot_has_counted_is_that_of_the_living_and_the_dead() -> None:
    found = parsed(text(snapshot()))
    assert figure(found, "prefork_worker_requests_total", slot="0") == 9
    assert figure(found, "prefork_worker_requests_total", slot="1") == 0
    assert figure(found, "prefork_worker_cpu_seconds_total", slot="0") == 2.5
    assert figure(found, "prefork_requests_total") == 9
    assert figure(found, "prefork_workers", state="STARTING") == 1


def test_what_is_not_known_is_not_told() -> None:
    found = parsed(text(snapshot()))
    assert not [key for key in found if key[0] in ("prefork_worker_pss_bytes", "prefork_last_reload_ok")]


def test_a_reload_that_failed_and_a_master_that_hangs() -> None:
    seen = snapshot(state(last_reload={"ok": False}, workers=(), gone={}))
    found = parsed(prometheus.render(seen, alive=False).decode())
    assert figure(found, "prefork_last_reload_ok") == 0
    assert figure(found, "prefork_up") == 0
    assert figure(found, "prefork_ready") == 0, "nobody serves"


@pytest.mark.parametrize("cause", ["exit code 3", 'a "quote"', "back\\slash", "two\nlines", "\\n", "ünï", "\ud800", ""])
def test_labels_come_back_as_they_were(cause: str) -> None:
    found = parsed(text(snapshot(state(respawns={cause: 7}, workers=(), gone={}))))
    assert figure(found, "prefork_respawns_total", cause=cause.replace("\ud800", "?")) == 7


def test_listeners_of_one_address_are_one_sample() -> None:
    entry = {"address": "127.0.0.1:80", "queue": 1, "limit": 10, "drops": 2}
    unknown = {"address": "unix:/s", "queue": None, "limit": None, "drops": None}
    seen = snapshot()
    seen = replace(seen, document={**seen.document, "listeners": [entry, entry, unknown]})
    found = parsed(text(seen))
    assert figure(found, "prefork_listener_drops_total", address="127.0.0.1:80") == 4
    assert not [labels for name, labels in found if name.startswith("prefork_listener") and "unix:/s" in str(labels)]


def test_durations_are_cumulative_and_true_to_a_hundredth() -> None:
    latencies = Histogram(ARRAY_DIGITS)
    values_s = [0.00005, 0.0009, 0.00102, 0.3, 0.3, 7.0, 100.0]
    latencies.record_many([round(value * 1e9) for value in values_s])
    found = parsed(text(snapshot(state(workers=(), gone={}, latencies=latencies))))
    name = "prefork_request_duration_seconds"
    for limit_s in prometheus.BUCKETS_S:
        counted = figure(found, f"{name}_bucket", le=str(limit_s))
        assert counted == sum(value <= limit_s for value in values_s), limit_s
    assert figure(found, f"{name}_bucket", le="+Inf") == figure(found, f"{name}_count") == 7
    assert figure(found, f"{name}_sum") == pytest.approx(sum(values_s))


def test_counters_are_recognised_as_such() -> None:
    names = {key[0] for key in counters(parsed(text(snapshot())))}
    wanted = {metric.name for metric in prometheus.METRICS if metric.kind == "counter"} - {
        "prefork_listener_drops_total", "prefork_respawns_total",
    }  # fmt: skip
    assert wanted <= names
