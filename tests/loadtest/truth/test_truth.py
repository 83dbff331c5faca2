"""What the lab reports about servers of known behaviour, beside what these servers counted in the same window.

The servers' notes are exact, and on the lab's clock. Service times are waits, so that a busy machine changes little.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from prefork.status.histogram import Histogram
from tests.loadtest.truth.bench import measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.loadtest.truth.bench import Measured, Run

    RunOf = Callable[[str], Run]

pytestmark = [pytest.mark.slow, pytest.mark.timing]

RATE_OFF = 0.01  # or one exchange
HISTOGRAM = 0.002  # relative, of two digits more than the report shows
P50_BOUND_NS = 3_000_000  # for the way there and back, on a busy machine
CPU_OFF = (
    0.02  # what lies between the lab's first and last look and the edges of the window is taken to be like the rest
)
WAY_NS = 25_000_000  # the longest time of one of these ways, beside the generator's longest gap
NOISE = {"SHARED-CPU", "BUSY-MACHINE", "GENERATOR"}  # what a machine that does other things may make of any round

# Each server under each load of its group, in one run.
GROUPS: dict[str, dict[str, Any]] = {
    "good": {
        "servers": {
            "fixed": "fixed 5",
            "pool": "pool 2 5",
            "bimodal": "bimodal 5",
            "chunked, unix": "unix chunked 5",
            "slowbody": "slowbody 12",
            "lf": "lf 5",
            "double-length": "double-length 5",
            "close": "close 10 5",
            "hangup": "hangup 10 5",
            "reset": "reset 20 5",
            "stall": "stall 1.5 0.3 5",
        }
    },
    "bad": {"servers": {"errors": "errors 10 5", "short": "short 20 5"}},
    "bad, no retry": {"servers": {"reset": "reset 20 5"}, "loads": {"http": {"retry": False}}},
    "each": {"servers": {"accept-late": "accept-late 20"}, "loads": {"http": {"keep-alive": False}}},
    "cpu": {"servers": {"cpu": "cpu 2000"}, "loads": {"http": {"connections": 2}}},
    "talkback": {"servers": {"talkback": "talkback 5"}, "loads": {"http": {"scenario": "talkback"}}},
    "rate": {
        "servers": {"mutex": "mutex 5"},
        "loads": {
            "206": {"rate": 206, "connections": 64, "duration": 3},
            "350": {"rate": 350, "connections": 64},
        },
    },
    "poisson": {
        "servers": {"pool": "pool 4 5"},
        "loads": {"poisson": {"rate": 300, "arrivals": "poisson", "connections": 64}},
    },
}
LONG_GROUPS: dict[str, dict[str, Any]] = {
    "long good": {
        "servers": {"fixed": "fixed 20", "unix": "unix fixed 5", "mutex": "mutex 5", "chunked": "chunked 5"},
        "loads": {"http": {"duration": 3}},
    },
    "long unsteady": {
        "servers": {"leak": "leak 5 20", "warm": "warm 1.9 5", "fixed": "fixed 5"},
        "loads": {"http": {"duration": 7}},
    },
    "long bad": {"servers": {"first": "first 50", "errors": "errors 1 5"}, "loads": {"http": {"duration": 3}}},
    "long each": {"servers": {"fixed": "fixed 5"}, "loads": {"http": {"duration": 3, "keep-alive": False}}},
    "long echo": {"servers": {"echo": "echo 5"}, "loads": {"http": {"duration": 3, "scenario": "echo"}}},
    "long readable": {"servers": {"fixed": "fixed 20"}, "loads": {"http": {"duration": 3, "engine": "readable"}}},
    "long capped": {
        "servers": {"mutex": "mutex 5"},
        "loads": {"http": {"rate": 350, "connections": 64, "max-in-flight": 10, "duration": 3}},
    },
    "long rate": {
        "servers": {"mutex": "mutex 5"},
        "loads": {
            f"{rate}{arrivals}": {
                "rate": rate,
                "arrivals": arrivals or "constant",
                "connections": 64,
                "duration": 5,
                "warmup": 1,
            }
            for rate, arrivals in [
                (150, ""),
                (150, "poisson"),
                *[(rate, "") for rate in (206, 210, 220, 260, 350, 420, 520)],
            ]
        },
    },
}
ALL_GROUPS = GROUPS | LONG_GROUPS
VERDICTS = {
    "good/fixed": {"IDLE-LIMITED"},
    "good/pool": {"SERVER-THREADS"},
    "bad": {"INVALID"},
    "bad, no retry": {"INVALID"},
    "each": {"SERVER-QUEUE"},
    "cpu": {"SERVER-CPU"},
    "rate": {"INVALID"},
    "poisson": {"OK"},
    "long good/fixed": {"IDLE-LIMITED"},
    "long good/mutex": {"SERVER-THREADS"},
    "long bad": {"INVALID"},
    "long capped": {"INVALID"},
    "long rate/mutex/150": {"OK"},
    "long rate/mutex/150poisson": {"OK"},
    "long rate": {"INVALID"},
}
CASES = [
    pytest.param(group, server, load, marks=[pytest.mark.soak] if group in LONG_GROUPS else [])
    for group, parts in ALL_GROUPS.items()
    for server in parts["servers"]
    for load in parts.get("loads", {"http": {}})
]
each_case = pytest.mark.parametrize(("group", "server", "load"), CASES)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """Make the run of a group once."""
    runs: dict[str, Run] = {}

    def run(group: str) -> Run:
        if group not in runs:
            runs[group] = measure(tmp_path_factory.mktemp("run"), **ALL_GROUPS[group], within_s=150)
            print(runs[group].out, runs[group].err)  # shown if the first test of the group fails
        return runs[group]

    return run


def measured(run_of: RunOf, group: str, server: str, load: str) -> Measured:
    done = run_of(group).of(server, load)
    assert done.truth is not None, done.round["error"]
    return done


@each_case
def test_no_exchange_of_the_whole_run_is_lost_or_invented(run_of: RunOf, group: str, server: str, load: str) -> None:
    done = measured(run_of, group, server, load)
    client = done.client
    spawned_ns = client["window_start_ns"] - round(client["warmup_s"] * 1e9)
    totals = done.notes.totals(spawned_ns)  # without the lab's own looks before the load
    good, outside = totals.pop("ok"), client["outside"]
    if sent_once_more(done):
        assert client["retried"] <= totals.pop("reset", client["retried"])  # the others were outside
    assert client["completed"] + outside["completed"] == good
    assert sum(client["failures"].values()) + outside["failed"] == totals.total()
    assert client["censored"] == len(done.notes.waiting) == 0


@each_case
def test_the_rate_is_of_what_ended_in_the_window(run_of: RunOf, group: str, server: str, load: str) -> None:
    done = measured(run_of, group, server, load)
    client, truth = done.client, done.truth
    assert truth is not None
    least, most = done.ended(way_ns(done))
    assert least <= client["ended"] <= most
    if not sent_once_more(done):
        least, most = done.ended(way_ns(done), well=False)
        assert least <= client["ended_failed"] <= most
    expected = client["ended"] if done.open_model else truth.parts
    # This one does not know how long clients had waited, so they are whole exchanges of clients in step.
    edge = client["connections"] if server == "accept-late" else 1
    assert client["rate_per_s"] * client["duration_s"] == pytest.approx(expected, rel=RATE_OFF, abs=edge)
    shown = done.configuration["rate_per_s"]
    assert shown == (None if done.verdict == "INVALID" else pytest.approx(client["rate_per_s"], rel=1e-6))
    assert sum(second["ended"] for second in client["per_second"]) == client["ended"]


@each_case
def test_failures_are_counted_by_their_cause(run_of: RunOf, group: str, server: str, load: str) -> None:
    done = measured(run_of, group, server, load)
    assert done.truth is not None
    failures = done.client["failures"]
    if sent_once_more(done):
        assert not failures
        least, most = done.ended(way_ns(done), well=False)
        assert max(least, 1) <= done.client["retried"] or server == "hangup"
        assert done.client["retried"] <= most or server == "hangup"
        return
    assert failures.keys() == done.truth.began_failed.keys()
    for cause, count in failures.items():
        least, most = done.began(way_ns(done), cause)
        assert least <= count <= most, cause


@pytest.mark.parametrize(
    ("group", "server", "load"),
    # One that takes connections late, or begins to read late, does not know how long clients had waited.
    [case for case in CASES if case.values[0] not in ("cpu", "each") and "bad" not in str(case.values[0])],
)
def test_latency_is_the_servers_and_the_way(run_of: RunOf, group: str, server: str, load: str) -> None:
    """At a rate that is too high clients wait for a connection, so there the time from the send is compared."""
    done = measured(run_of, group, server, load)
    truth = done.truth
    assert truth is not None
    shown = done.client["service_time" if done.open_model else "latency"]
    for name, share, off, bound_ns in (("p50", 0.5, 0.01, P50_BOUND_NS), ("p99", 0.99, 0.005, way_ns(done))):
        low_ns = truth.quantile_ns(share - off) * (1 - HISTOGRAM)
        high_ns = truth.quantile_ns(share + off) * (1 + HISTOGRAM) + bound_ns
        assert low_ns <= quantile_ns(shown, share) <= high_ns, name


def sent_once_more(done: Measured) -> bool:
    """Whether the lab may have sent requests once more, whose connections had ended before any byte of an answer."""
    return done.server in ("hangup", "reset") and bool(done.client["retried"])


def way_ns(done: Measured) -> float:
    """Return how long something can have been under way between server and client, who may not have looked for it."""
    return float(WAY_NS + (done.client["generator"]["max_gap_s"] or 0) * 1e9)


def quantile_ns(histogram: dict[str, Any], share: float) -> int:
    return Histogram.from_json(histogram).quantile(share)


@each_case
def test_the_verdict_names_the_limit(run_of: RunOf, group: str, server: str, load: str) -> None:
    done = measured(run_of, group, server, load)
    keys = (f"{group}/{server}/{load}", f"{group}/{server}", group)  # the most special counts
    names = next((VERDICTS[key] for key in keys if key in VERDICTS), None)
    if names is None:
        assert done.verdict != "INVALID", done.round["verdict"]
    else:
        allowed = names if names == {"INVALID"} else names | NOISE
        assert done.verdict in allowed, done.round["verdict"]


@pytest.mark.parametrize("group", [*GROUPS, *[pytest.param(group, marks=[pytest.mark.soak]) for group in LONG_GROUPS]])
def test_the_exit_status_says_whether_all_could_be_used(run_of: RunOf, group: str) -> None:
    run = run_of(group)
    invalid = [done.server for done in run.rounds if done.verdict == "INVALID"]
    assert (run.status != 0) == bool(invalid), (run.status, invalid)


@pytest.mark.parametrize(
    ("group", "rate"),
    [
        ("rate", 206),
        ("rate", 350),
        *[pytest.param("long rate", rate, marks=[pytest.mark.soak]) for rate in (206, 210, 220, 260, 350, 420, 520)],
    ],
)
def test_a_rate_that_is_not_reached_is_said_with_what_was_reached(run_of: RunOf, group: str, rate: int) -> None:
    """From 3 % above the capacity on."""
    done = measured(run_of, group, "mutex", str(rate))
    assert done.truth is not None
    reason = done.round["verdict"]["reason"]
    reached = re.search(rf"([0-9.,]+)/s of {rate}/s", reason)
    assert reached, reason
    true_per_s = done.truth.ended / done.truth.duration_s
    assert float(reached[1].replace(",", "")) == pytest.approx(true_per_s, rel=RATE_OFF, abs=2)
    grew = re.search(r"in flight grew by ([0-9.,]+)/s", reason)
    assert grew, reason
    assert float(grew[1].replace(",", "")) == pytest.approx(rate - true_per_s, abs=3)


@pytest.mark.soak
def test_what_exceeds_the_most_in_flight_is_missed_and_never_sent(run_of: RunOf) -> None:
    done = measured(run_of, "long capped", "mutex", "http")
    assert done.truth is not None
    arrivals = done.client["arrivals"]
    assert arrivals["missed"] > 0
    assert arrivals["offered"] - arrivals["missed"] == pytest.approx(done.truth.began, abs=2)


def test_cpu_time_is_that_of_the_process(run_of: RunOf) -> None:
    done = measured(run_of, "cpu", "cpu", "http")
    truth = done.truth
    assert truth is not None
    assert done.round["signals"]["server"]["covered"] > 0.95
    assert done.round["signals"]["server"]["cpu_ns"] == pytest.approx(truth.cpu_ns, rel=CPU_OFF)
    shown_us = done.configuration["cpu_per_request_us"]
    assert shown_us == pytest.approx(truth.cpu_ns / 1000 / truth.parts, rel=CPU_OFF)


def test_a_stall_is_seen_by_all_clients(run_of: RunOf) -> None:
    done = measured(run_of, "good", "stall", "http")
    assert done.truth is not None
    seen = done.client["latency"]
    assert quantile_ns(seen, 1.0) >= max(done.truth.latencies_ns) >= 250_000_000
    assert quantile_ns(seen, 0.5) < 5_000_000 + P50_BOUND_NS


@pytest.mark.soak
def test_what_changes_within_the_window_is_said(run_of: RunOf) -> None:
    warnings = run_of("long unsteady").report["warnings"]
    assert [warning for warning in warnings if warning.startswith("leak") and "not steady" in warning]
    assert [warning for warning in warnings if warning.startswith("warm") and "warm-up too short" in warning]
    assert not [warning for warning in warnings if warning.startswith("fixed")]


def test_clients_in_lockstep_do_not_round_the_rate(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All clients begin together and all answers take alike long: whole exchanges would be off by up to 20 %."""
    run = measure(
        tmp_path_factory.mktemp("lockstep"),
        {"900": "fixed 900", "840": "fixed 840", "980": "fixed 980"},
        {"http": {"connections": 16, "duration": 5}},
    )
    rates = {done.server: done.configuration["rate_per_s"] for done in run.rounds}
    for server, rate in rates.items():
        assert rate == pytest.approx(16_000 / int(server), rel=RATE_OFF)
    assert rates["840"] / rates["900"] == pytest.approx(1.071, rel=RATE_OFF)
    assert rates["980"] / rates["900"] == pytest.approx(0.918, rel=RATE_OFF)
    assert {contrast["name"]: contrast["ratios"]["rate"]["differs"] for contrast in run.report["contrasts"]} == {
        "840": False,  # of one round each
        "980": False,
    }
