from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.analysis.compare import Comparison, across, compare, contrast_all
from loadtest.analysis.inference import Ratio, widest
from loadtest.plan.plan import Load, Plan, Server
from prefork.status.histogram import Histogram
from tests.loadtest.records import arrivals, client, failed, measured, signals

PLAN = Plan(
    name="p",
    servers=(Server(name="one", command="x {port}"), Server(name="four", command="y {port}")),
    loads=(Load(name="nap", scenario="nap"),),
)


def cycles(name: str, rates: list[float]) -> list:
    return [measured(name, cycle, rate=rate) for cycle, rate in enumerate(rates)]


BASE = cycles("one", [1000, 1010, 990, 1000, 1005, 995])
AGAIN = cycles("one'", [1005, 1000, 1000, 1001, 1000, 1000])


def rate_of(found: Comparison, name: str = "four") -> Ratio:
    (contrast,) = [each for each in found.contrasts if each.name == name]
    rate = contrast.ratios["rate"]
    assert rate is not None
    return rate


def test_a_difference_is_claimed_against_both_runs_of_the_baseline() -> None:
    found = compare(PLAN, BASE + AGAIN + cycles("four", [4000, 4010, 3990, 4000, 4005, 3995]))
    rate = rate_of(found)
    assert rate.median == pytest.approx(4.0, rel=0.01)
    assert (rate.differs, rate.twice) == (True, True)
    assert found.warnings == ()
    assert found.floors["nap"]["rate"] == pytest.approx(1.0126, rel=0.01)
    assert (found.family.comparisons, found.family.single) == (4, 0)
    between = compare(PLAN, BASE + cycles("one'", [1100] * 6) + cycles("four", [1050] * 6))
    assert not rate_of(between).differs  # above the one, below the other, as a place in the cycle makes it
    assert not rate_of(between, "one'").differs  # the same server, by its name


def test_the_rows_are_in_the_order_of_the_plan_and_not_in_that_of_the_rounds() -> None:
    found = compare(PLAN, [*AGAIN, *cycles("four", [1000] * 6), *BASE])
    assert [each.name for each in found.configurations] == ["one", "four", "one'"]
    assert [each.name for each in found.contrasts] == ["four", "one'"]


def test_the_second_run_of_the_baseline_is_never_claimed_to_differ() -> None:
    found = compare(PLAN, BASE + cycles("one'", [1500] * 6))
    assert rate_of(found, "one'").median == pytest.approx(1.5, rel=0.01)
    assert not rate_of(found, "one'").differs
    assert found.family.comparisons == 0


def test_rounds_that_the_generator_limited_compare_only_the_cpu() -> None:
    limited = [measured("four", cycle, rate=4000, verdict="GENERATOR") for cycle in range(6)]
    found = compare(PLAN, BASE + AGAIN + limited)
    four = next(each for each in found.contrasts if each.name == "four")
    assert four.ratios["p50"] is four.ratios["p99"] is None
    assert rate_of(found).differs  # it is at least so much faster
    slow = [measured("four", cycle, rate=500, verdict="GENERATOR") for cycle in range(6)]
    for other in (BASE + AGAIN + slow, [replace(done, verdict=slow[0].verdict) for done in BASE] + limited):
        rate = rate_of(compare(PLAN, other))
        assert (rate.pairs, rate.low, rate.differs) == (6, None, False)
    assert four.ratios["cpu"] is not None
    assert four.ratios["cpu"].differs
    said = "nap: the generator was the limit in rounds of four 6 of 6; no latency of these is compared"
    assert [warning for warning in found.warnings if warning.startswith(said)]
    one = compare(PLAN, BASE + AGAIN + limited[:1] + cycles("four", [4000] * 6)[1:])
    p50 = next(each for each in one.contrasts if each.name == "four").ratios["p50"]
    assert p50 is not None
    assert p50.pairs == 5
    assert widest(contrast_all(PLAN, BASE + slow)) is None  # more rounds would not help


def test_with_a_rate_requests_per_second_are_not_compared() -> None:
    by_schedule = client(arrivals=arrivals())
    names = ("one", "one'", "four")
    rounds = [measured(name, cycle, client=by_schedule) for name in names for cycle in range(6)]
    found = compare(PLAN, rounds)
    four = next(each for each in found.contrasts if each.name == "four")
    assert four.ratios["rate"] is None
    assert four.ratios["p50"] is not None
    width = widest(contrast_all(PLAN, rounds))
    assert width is not None
    assert (width.metric, width.pairs) == ("p50", 6)
    assert "in p50" in width.describe()
    assert found.configurations[0].rate_per_s == 1000


def test_a_round_that_stands_for_a_lost_one_is_named_and_many_lost_ones_are_said() -> None:
    lost = measured("four", 2, number=7, verdict="INVALID")
    instead = measured("four", 2, number=13, rate=4000, again=7)
    rest = [measured("four", cycle, number=20 + cycle, rate=4000) for cycle in (0, 1, 3, 4, 5)]
    found = compare(PLAN, [*BASE, *AGAIN, lost, instead, *rest])
    assert rate_of(found).pairs == 6
    assert found.warnings == ("four: INVALID in round 7 (measured again as round 13): because",)
    many = [measured("four", cycle, number=40 + cycle, verdict="INVALID") for cycle in range(3)]
    said = "four (nap): 3 of 8 rounds are INVALID: what the others say is not what this server usually does"
    assert said in compare(PLAN, [*BASE, *AGAIN, *many, *rest]).warnings


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


ONCE = (
    "4 ratios did not have to differ from a second run of the baseline (--aa): "
    "of 4 comparisons of equal servers at most about 0.2 would show a difference by chance"
)


def test_few_rounds_and_a_baseline_that_was_measured_once_are_warned_about() -> None:
    found = compare(PLAN, [*BASE[:2], *cycles("four", [2000, 2000])])
    assert found.warnings == ("2 rounds cannot show a difference; from 6 on a ratio gets an interval",)
    alone = compare(PLAN, [*BASE, *cycles("four", [2000] * 6)])
    assert alone.warnings == (ONCE,)
    assert rate_of(alone).differs


def test_a_second_run_that_was_lost_is_warned_about_unless_nothing_can_be_claimed_anyway() -> None:
    few = compare(PLAN, [*BASE[:2], *AGAIN[:2], *cycles("four", [2000, 2000])])
    assert few.warnings == ("2 rounds cannot show a difference; from 6 on a ratio gets an interval",)
    broken = [measured("one'", cycle, verdict="INVALID") for cycle in range(6)]
    lost = compare(PLAN, [*BASE, *broken, *cycles("four", [2000] * 6)])
    assert ONCE in lost.warnings


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
    assert (contrast.ratios["rate"].low, contrast.ratios["rate"].differs) == (None, False)
    assert "not interleaved" in found.warnings[0]


def test_rounds_of_different_machines_are_warned_about() -> None:
    moved = measured("one", 9, provenance=BASE[0].provenance | {"kernel": "7.0"})
    assert "the rounds come from different machines, kernels or Pythons" in compare(PLAN, [*BASE, moved]).warnings
