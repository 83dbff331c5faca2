from __future__ import annotations

import pytest

from loadtest.analysis.compare import across, compare
from loadtest.plan.plan import Load, Plan, Server
from prefork.status.histogram import Histogram
from tests.loadtest.records import client, failed, measured, signals

PLAN = Plan(
    name="p",
    servers=(Server(name="one", command="x {port}"), Server(name="four", command="y {port}")),
    loads=(Load(name="nap", scenario="nap"),),
)


def cycles(name: str, rates: list[float]) -> list:
    return [measured(name, cycle, rate=rate) for cycle, rate in enumerate(rates)]


BASE = cycles("one", [1000, 1010, 990, 1000, 1005, 995])
AGAIN = cycles("one'", [1005, 1000, 1000, 1001, 1000, 1000])


def test_a_difference_is_claimed_beyond_the_interval_and_the_floor() -> None:
    found = compare(PLAN, BASE + AGAIN + cycles("four", [4000, 4010, 3990, 4000, 4005, 3995]))
    floor = found.floors["nap"]["rate"]
    assert floor is not None
    assert 1.0 < floor < 1.02
    four = next(contrast for contrast in found.contrasts if contrast.name == "four")
    rate = four.ratios["rate"]
    assert rate is not None
    assert rate.median == pytest.approx(4.0, rel=0.01)
    assert rate.differs(floor)
    assert found.warnings == ()


def test_invalid_rounds_enter_nothing_but_are_counted_and_explained() -> None:
    bad = measured("four", 6, number=40, rate=9e5, verdict="INVALID")
    found = compare(PLAN, [*BASE, *cycles("four", [2000] * 6), bad, failed("four", 7, number=41)])
    four = next(configuration for configuration in found.configurations if configuration.name == "four")
    assert (four.rounds, four.invalid, four.rate_per_s) == (6, 2, 2000)
    assert four.latency.n == 6 * 4000
    assert "four: INVALID in round 40, 41: because" in found.warnings


def test_a_configuration_without_a_valid_round_has_no_figure_at_all() -> None:
    found = compare(PLAN, [*BASE, failed("four", 0)])
    four = found.configurations[1]
    assert (four.name, four.verdict, four.rounds, four.invalid) == ("four", "INVALID", 0, 1)
    figures = (four.rate_per_s, four.latency.p50_ns, four.latency.max_ns, four.cpu_per_request_us, four.pss_bytes)
    assert set(figures) == {None}
    assert four.failures is None
    assert found.contrasts[0].ratios == {"rate": None, "p50": None, "p99": None, "cpu": None}


def test_rounds_pair_by_cycle_and_a_lone_one_is_left_out() -> None:
    found = compare(PLAN, [measured("one", 0), measured("one", 2), measured("four", 1), measured("four", 2, rate=3000)])
    rate = found.contrasts[0].ratios["rate"]
    assert rate is not None
    assert (rate.pairs, rate.median) == (1, pytest.approx(3.0))


def test_percentiles_merge_the_rounds_and_need_enough_samples() -> None:
    slow, quick = Histogram(), Histogram()
    quick.record(1_000_000, 300)
    slow.record(9_000_000, 100)
    rounds = [
        measured("one", cycle, client=client(completed=h.n, latency=h.to_json()))
        for cycle, h in enumerate([quick, slow])
    ]
    latency = compare(PLAN, rounds).configurations[0].latency
    assert latency.n == 400
    assert latency.p50_ns == pytest.approx(1_000_000, rel=0.001)
    assert latency.p99_ns == pytest.approx(9_000_000, rel=0.001)  # 368 samples bear a p99, 400 no p99.9
    assert latency.p99_9_ns is None
    assert latency.max_ns == 9_000_000


def test_figures_that_nobody_could_see_are_unknown() -> None:
    blind = [measured("one", 0, signals=signals(server=None, queue=None, pss_bytes=None))]
    one = compare(PLAN, blind).configurations[0]
    assert (one.cpu_per_request_us, one.pss_bytes, one.rate_per_s) == (None, None, 1000)


def test_few_rounds_and_an_unmeasured_floor_are_warned_about() -> None:
    found = compare(PLAN, [*BASE[:2], *cycles("four", [2000, 2000])])
    assert found.warnings == (
        "2 rounds cannot show a difference; from 6 on a ratio gets an interval",
        "the noise floor was not measured (--aa): a small difference may be the machine's",
    )


def test_a_floor_that_could_not_be_measured_is_warned_about_unless_nothing_can_be_claimed_anyway() -> None:
    few = compare(PLAN, [*BASE[:2], *AGAIN[:2], *cycles("four", [2000, 2000])])
    assert few.warnings == ("2 rounds cannot show a difference; from 6 on a ratio gets an interval",)
    broken = [measured("one'", cycle, verdict="INVALID") for cycle in range(6)]
    lost = compare(PLAN, [*BASE, *broken, *cycles("four", [2000] * 6)])
    assert lost.warnings[-1] == "the noise floor was not measured (--aa): a small difference may be the machine's"


def test_the_mean_is_exact_and_that_of_all_rounds_together() -> None:
    rounds = [measured("one", 0, client=client(completed=n, latency=latency(n, ns))) for n, ns in ((300, 7), (100, 3))]
    assert compare(PLAN, rounds).configurations[0].latency.mean_ns == (300 * 7 + 100 * 3) / 400


def latency(n: int, value_ns: int) -> dict:
    made = Histogram()
    made.record(value_ns, n)
    return made.to_json()


def test_two_runs_compare_what_both_have() -> None:
    before = BASE + AGAIN + cycles("gone", [1.0] * 6)
    found = across(before, cycles("one", [500] * 6) + cycles("new", [7.0] * 6), ("before", "after"))
    assert [configuration.name for configuration in found.configurations] == ["before: one", "after: one"]
    (contrast,) = found.contrasts
    assert contrast.name == "after: one"
    assert contrast.ratios["rate"] is not None
    assert contrast.ratios["rate"].median == pytest.approx(0.5, rel=0.01)
    assert "not interleaved" in found.warnings[0]


def test_rounds_of_different_machines_are_warned_about() -> None:
    moved = measured("one", 9, provenance=BASE[0].provenance | {"kernel": "7.0"})
    assert "the rounds come from different machines, kernels or Pythons" in compare(PLAN, [*BASE, moved]).warnings
