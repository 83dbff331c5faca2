from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from loadtest.analysis.compare import compare
from loadtest.data import figures
from loadtest.plan.plan import Load, Pin, Plan, Server
from loadtest.report import FORMATS, render
from loadtest.report.model import Report
from prefork.status.histogram import Histogram
from tests.loadtest.records import arrivals, client, failed, measured, signals, usage

PLAN = Plan(
    name="threads",
    servers=(
        Server(name="one", command="x {port}"),
        Server(name="four", command="y {port}"),
        Server(name="gone", command="z {port}"),
    ),
    loads=(Load(name="nap", scenario="nap", connections=16, duration_s=2),),
    pin=Pin(server=(0,), load=(1,)),
)
ROUNDS = [
    *(measured("one", cycle, number=cycle) for cycle in range(6)),
    *(measured("four", cycle, number=10 + cycle, rate=4000) for cycle in range(6)),
    *(measured("one'", cycle, number=20 + cycle) for cycle in range(6)),
    failed("gone", 0, number=30, error="the server exited with status 3 before it was ready\n  no such module"),
]
REPORT = Report(plan=PLAN, rounds=ROUNDS, comparison=compare(PLAN, ROUNDS))

TEXT = """\
configuration      requests/s      p50      p90      p99    p99.9      max    failures    CPU/request      PSS  verdict                  vs one
---------------  ------------  -------  -------  -------  -------  -------  ----------  -------------  -------  ---------  --------------------
one                     1,000  16.0 ms  16.0 ms  16.0 ms  16.0 ms  16.0 ms           0         500 µs  20.0 MB  OK
four                    4,000  16.0 ms  16.0 ms  16.0 ms  16.0 ms  16.0 ms           0         125 µs  20.0 MB  OK         4.00x [4.00x, 4.00x]
gone                        -        -        -        -        -        -           -              -        -  INVALID                       -
one'                    1,000  16.0 ms  16.0 ms  16.0 ms  16.0 ms  16.0 ms           0         500 µs  20.0 MB  OK                            ~

ratio to one      rounds            requests/s    p50    p99              CPU/request
--------------  --------  --------------------  -----  -----  -----------------------
four                   6  4.00x [4.00x, 4.00x]      ~      ~  0.250x [0.250x, 0.250x]
gone                   0                     -      -      -                        -
one'                   6                     ~      ~      ~                        ~

plan threads: nap, 16 connections, 2 s after 1 s of warm-up; pinned 0:1 (server:load)
rounds: 18 measured, 1 not; interleaved, a fresh server for each
chance: of 4 comparisons of equal servers at most about 0.04 would show a difference by chance
noise (nap): two runs of one server differ by up to 0.0% in requests/s, 0.0% in p50, 0.0% in p99, 0.0% in CPU/request
one: OK: because
four: OK: because
one': OK: because
host: 2 CPUs (Test CPU), Linux 6.1, Python 3.12.1, prefork 0.1.0, locust 2.47.0, commit 0123456789
warning: gone: INVALID in round 30: the server exited with status 3 before it was ready
"""  # noqa: E501  # as it is printed


def test_the_text_is_as_the_documentation_shows_it() -> None:
    assert render(REPORT, "text") == TEXT


def test_the_markdown_has_the_same_cells() -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in render(REPORT, "github").splitlines()]
    wanted = ["four", "4,000", *["16.0 ms"] * 5, "0", "125 µs", "20.0 MB", "OK", "4.00x [4.00x, 4.00x]"]
    assert wanted in cells
    assert ["- four: OK: because"] in cells


def test_the_open_model_shows_latency_from_the_schedule_beside_service_time() -> None:
    service = Histogram()
    service.record(2_000_000, 2000)
    by_schedule = client(arrivals=arrivals(missed=3), service_time=service.to_json())
    rounds = [measured("one", cycle, client=by_schedule) for cycle in range(6)]
    report = Report(plan=PLAN, rounds=rounds, comparison=compare(PLAN, rounds))
    table = render(report, "text").split("\n\n")[1].splitlines()
    head = ["by schedule", "came due", "missed", "lag p99", "from due p50", "from due p90", "from due p99"]
    assert re.split(" {2,}", table[0]) == [*head, "from send p50", "from send p90", "from send p99"]
    row = ["one", "12,000", "18", "50.0 µs", *["16.0 ms"] * 3, *["2.00 ms"] * 3]
    assert re.split(" {2,}", table[2]) == row


def test_the_json_has_the_agreed_keys_and_null_for_what_is_unknown() -> None:
    document = json.loads(render(REPORT, "json"))
    assert document["schema"] == 2
    one, four, gone, _ = document["configurations"]
    assert set(one) == {
        "name", "load", "rounds", "invalid", "rate_per_s", "latency", "service_time", "failures", "censored",
        "cpu_per_request_us", "pss_bytes", "verdict", "offered", "missed", "lag_p99_ns", "sharing", "retried",
        "sleeps_per_request", "load_busy",
    }  # fmt: skip
    assert (
        set(one["latency"])
        == {"n", "p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "max_ns", "mean_ns"}
        == set(one["service_time"])
    )
    assert (four["rate_per_s"], four["latency"]["n"], four["cpu_per_request_us"]) == (4000, 48_000, 125)
    assert (gone["rate_per_s"], gone["latency"]["p50_ns"], gone["failures"], gone["invalid"]) == (None, None, None, 1)


def test_the_csv_has_a_line_for_each_configuration() -> None:
    rows = list(csv.DictReader(io.StringIO(render(REPORT, "csv"))))
    assert [(row["name"], row["rate_per_s"], row["rate_ratio"], row["rate_differs"]) for row in rows] == [
        ("one", "1000.0", "", ""),
        ("four", "4000.0", "4.0", "True"),
        ("gone", "", "", ""),
        ("one'", "1000.0", "1.0", "False"),
    ]


def test_columns_stay_when_nothing_could_be_measured() -> None:
    rounds = [failed("one", 0)]
    report = Report(plan=PLAN, rounds=rounds, comparison=compare(PLAN, rounds))
    for form in FORMATS:
        assert render(report, form).endswith("\n")
    head, _, row = render(report, "text").splitlines()[:3]
    assert head.split() == TEXT.splitlines()[0].split()
    assert row.split() == ["one", *["-"] * 9, "INVALID"]


def test_what_had_not_ended_with_its_round_is_told() -> None:
    rounds = [measured("one", cycle, client=client(censored=34, completed=300)) for cycle in range(2)]
    plan = Plan(name="p", servers=(Server(name="one", command="{port}"),), loads=(Load(name="nap"),))
    report = Report(plan=plan, rounds=rounds, comparison=compare(plan, rounds))
    assert "cut off by the end of their rounds, of one: 68; in no latency" in render(report, "text")
    assert json.loads(render(report, "json"))["configurations"][0]["censored"] == 68
    assert ",68," in render(report, "csv")


@pytest.mark.parametrize(
    ("busy", "sleeps", "told"),
    [
        (0.9, 1000, "warning: four (nap): CPU/request includes 0.5 sleeps a request, another's 0.0: the load was the"),
        (0.9, 300, ""),
        (0.3, 1000, ""),
    ],
)
def test_a_server_that_sleeps_because_the_load_can_do_no_more_is_told(busy: float, sleeps: int, told: str) -> None:
    rounds = [
        measured(
            name, 0, signals=signals(server=usage(switches_voluntary=count), generator=usage(busiest_ns=busy * 2e9))
        )
        for name, count in (("one", 10), ("four", sleeps))
    ]
    report = Report(plan=PLAN, rounds=rounds, comparison=compare(PLAN, rounds))
    assert json.loads(render(report, "json"))["configurations"][1]["sleeps_per_request"] == sleeps / 2000
    text = render(report, "text")
    assert told in text
    assert ("sleeps a request" in text) == bool(told)


def test_processes_of_others_on_the_machine_are_told() -> None:
    rounds = [
        measured("one", cycle, signals=signals(others_cores=cores, cpus=2))
        for cycle, cores in enumerate((0.1, 0.8, 0.4))
    ]
    text = render(Report(plan=PLAN, rounds=rounds, comparison=compare(PLAN, rounds)), "text")
    assert "warning: other processes used up to 0.8 of 2 cores, in 2 of 3 rounds" in text


def test_no_server_is_called_fresh_that_the_lab_did_not_start() -> None:
    plan = replace(PLAN, servers=(replace(PLAN.servers[0], command="", attach="127.0.0.1:80"), *PLAN.servers[1:]))
    rounds = [measured("one", 0)]
    notes = Report(plan=plan, rounds=rounds, comparison=compare(plan, rounds)).notes()
    assert "rounds: 1 measured, 0 not; interleaved" in notes


def test_failures_are_listed_by_cause() -> None:
    rounds = [measured("one", 0, client=client(failures={"reset": 2, "refused": 1}))]
    report = render(Report(plan=PLAN, rounds=rounds, comparison=compare(PLAN, rounds)), "text")
    assert "failures of one: 1 refused, 2 reset" in report
    assert report.splitlines()[2].split()[11] == "3"


def test_what_was_sent_once_more_is_told() -> None:
    rounds = [
        *(measured("one", cycle, client=client(retried=700)) for cycle in range(2)),
        measured("four", 0),  # as an older file has it
        failed("gone", 0),
    ]
    report = Report(plan=PLAN, rounds=rounds, comparison=compare(PLAN, rounds))
    assert "sent once more, of one: 1,400" in render(report, "text").splitlines()
    (warning,) = [said for said in report.comparison.warnings if "sent once more" in said]
    assert warning.startswith("one (nap): 1,400 requests were sent once more")
    found = json.loads(render(report, "json"))["configurations"]
    assert [one["retried"] for one in found] == [1400, 0, None]
    rows = csv.DictReader(io.StringIO(render(report, "csv")))
    assert [row["retried"] for row in rows] == ["1400", "0", ""]


def test_several_loads_have_a_table_each() -> None:
    plan = Plan(name="p", servers=PLAN.servers[:1], loads=(Load(name="nap"), Load(name="few")))
    rounds = [measured("one", 0), measured("one", 0, load="few")]
    lines = render(Report(plan=plan, rounds=rounds, comparison=compare(plan, rounds)), "github").splitlines()
    assert [line for line in lines if line.startswith("###")] == ["### nap", "### few"]


def test_figures_have_three_digits_and_a_unit() -> None:
    assert [figures.duration(ns) for ns in (87, 1234, 999_499, 999_500, 12_345_678, 1_234_567_890, None)] == [
        "0.0870 µs", "1.23 µs", "999 µs", "1.00 ms", "12.3 ms", "1,230 ms", "-",
    ]  # fmt: skip
    assert [figures.rate(value) for value in (0.5, 9.999, 99.96, 28_345.6, None)] == [
        "0.500",
        "10.0",
        "100",
        "28,300",
        "-",
    ]
    assert figures.size(20_253_696) == "20.3 MB"
