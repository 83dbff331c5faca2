from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from loadtest.analysis.compare import compare, contrast_all
from loadtest.analysis.inference import Width, widest
from loadtest.data.store import Store
from loadtest.measure.session import Outcome, run
from loadtest.plan import file as planfile
from loadtest.plan import values
from loadtest.plan.plan import Load, Plan, PlanError, Server
from tests.loadtest.analysis.simulation import CALM, ROUGH, USUAL, Machine, claimed, narrow, session
from tests.loadtest.records import failed, measured, rounds_in

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.data.records import Round
    from loadtest.plan.plan import Slot

PLAN = Plan(
    name="p",
    servers=(Server(name="one", command="x {port}"), Server(name="four", command="y {port}")),
    loads=(Load(name="nap", scenario="nap"),),
    rounds=2,
    until=0.02,
    within_s=3600,
)


def rounds_of(name: str, rates: list[float]) -> list[Round]:
    return [measured(name, cycle, rate=rate) for cycle, rate in enumerate(rates)]


# --- what is too wide


def test_the_widest_interval_is_named_and_the_second_run_of_the_baseline_counts() -> None:
    base = rounds_of("one", [1000.0] * 8)
    calm = rounds_of("four", [4000, 4010, 3990, 4000, 4005, 3995, 4000, 4000])
    rough = rounds_of("one'", [1000, 1100, 900, 1050, 950, 1000, 1010, 990])
    width = widest(contrast_all(PLAN, base + calm + rough))
    assert width is not None
    assert (width.name, width.load, width.pairs, width.within(0.02), width.within(0.2)) == (
        "one'",
        "nap",
        8,
        False,
        True,
    )
    assert re.fullmatch(r"±\d\.\d% in requests/s \(one', nap, n=8\)", width.describe())
    best = widest(contrast_all(PLAN, base + calm))
    assert best is not None
    assert best.within(0.02)


def test_what_has_no_interval_yet_is_wider_than_any_and_what_cannot_be_measured_is_not_waited_for() -> None:
    base = rounds_of("one", [1000.0] * 8)
    late = widest(contrast_all(PLAN, base + rounds_of("four", [1.0, 900.0] * 4) + rounds_of("new", [5.0] * 3)))
    assert late == Width(name="new", load="nap", pairs=3, spread=None)
    assert not late.within(0.99)
    assert "no interval yet (new, nap, n=3)" in late.describe()
    assert widest(contrast_all(PLAN, [*base, failed("four", 0)])) is None


def test_a_table_says_when_the_intervals_stayed_too_wide() -> None:
    base, wide = rounds_of("one", [1000.0] * 6), rounds_of("four", [900, 1100, 950, 1050, 1000, 1000])
    said = [warning for warning in compare(PLAN, base + wide).warnings if "narrow" in warning]
    assert len(said) == 1
    assert re.match(
        r"the intervals did not become as narrow as ±2%: ±\d\.\d% in requests/s \(four, nap, n=6\)", said[0]
    )
    assert not [w for w in compare(PLAN, base + rounds_of("four", [900.0] * 6)).warnings if "narrow" in w]
    assert not [w for w in compare(replace(PLAN, until=0.0), base + wide).warnings if "narrow" in w]


def test_until_measures_the_baseline_twice_unless_told_otherwise_and_needs_something_to_compare() -> None:
    assert PLAN.runs_aa
    assert not replace(PLAN, aa=False).runs_aa
    with pytest.raises(PlanError, match="until is about a comparison: name a second server"):
        replace(PLAN, servers=PLAN.servers[:1])
    alone = replace(PLAN, servers=PLAN.servers[:1], aa=True)
    assert {slot.configuration for slot in alone.slots(range(1))} == {"one", "one'"}


@pytest.mark.parametrize(("written", "part"), [("2%", 0.02), ("0.5%", 0.005), (0.02, 0.02), (".1", 0.1), ("99%", 0.99)])
def test_how_narrow_is_written_in_percent_or_as_a_part(written: object, part: float) -> None:
    assert values.share(written) == pytest.approx(part)


@pytest.mark.parametrize("written", ["2", 2, "0", "0%", "100%", "-2%", "1e-2", "2 %", True, None, "٢%"])
def test_what_is_no_part_of_a_whole(written: object) -> None:
    with pytest.raises(ValueError, match=re.escape("is not a part of a whole; write 2% or 0.02")):
        values.share(written)


def test_a_plan_says_until_when(tmp_path: Path) -> None:
    servers = "".join(f'[[server]]\nname = "{name}"\ncommand = "serve {{port}}"\n' for name in ("one", "two"))
    (tmp_path / "plan.toml").write_text('until = "2%"\nwithin = "5m"\n' + servers)
    plan = planfile.read(tmp_path / "plan.toml", {})
    assert (plan.until, plan.within_s, plan.runs_aa) == (0.02, 300, True)
    assert replace(plan, until=0.0, within_s=9.0).fingerprint() == plan.fingerprint()


# --- how a run goes on. The rounds are made, everything else is what `loadtest run` runs.


class Rates:
    """In place of a round's measurement: the rates of a configuration, one after the other; 0 fails."""

    def __init__(self, **rates: list[float]) -> None:
        self.left = {name.replace("_", "'"): list(values) for name, values in rates.items()}

    def measure(self, plan: Plan, slot: Slot, number: int, *_: object, **__: object) -> Round:
        rate = self.left[slot.configuration].pop(0)
        if not rate:
            return failed(slot.configuration, slot.cycle, number=number)
        return measured(slot.configuration, slot.cycle, number=number, rate=rate)


class Heard:
    """Listens to the progress."""

    def __init__(self) -> None:
        self.expected: list[int] = []
        self.widths: list[tuple[Width, float]] = []

    def expect(self, slots: int) -> None:
        self.expected.append(slots)

    def width(self, width: Width, until: float, left_s: float) -> None:
        self.widths.append((width, left_s))

    def begin(self, slot: Slot) -> None: ...
    def live(self, rate_per_s: float, failed: int) -> None: ...
    def done(self, slot: Slot, done: Round) -> None: ...
    def skip(self, slot: Slot) -> None: ...


class Calm:
    """Nobody interrupts."""

    def check(self) -> None: ...


def go(folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, **rates: list[float]) -> Heard:
    monkeypatch.setattr("loadtest.measure.session.measure", Rates(**rates).measure)
    heard = Heard()
    run(Store.create(folder, plan), heard, Calm(), base=folder)  # type: ignore[arg-type]
    return heard


def cycles_in(folder: Path, name: str) -> list[int]:
    return [done["cycle"] for done in rounds_in(folder) if done["configuration"] == name]


def test_cycles_are_added_until_all_is_narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady, noisy = [1000.0] * 30, [950.0, 1050.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0] + [1000.0] * 22
    heard = go(tmp_path / "run", PLAN, monkeypatch, one=steady, one_=noisy, four=steady)
    last, left_s = heard.widths[-1]
    assert last.within(PLAN.until)
    assert left_s == 0
    assert not any(width.within(PLAN.until) for width, _ in heard.widths[:-1])
    for name in ("one", "one'", "four"):
        assert cycles_in(tmp_path / "run", name) == list(range(last.pairs))
    assert 6 < last.pairs < 12
    assert heard.expected == [6] + [3] * (last.pairs - 2)


def test_a_run_that_is_narrow_already_adds_nothing_and_one_that_was_cut_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = [1000.0] * 9
    fixed = replace(PLAN, until=0.0, aa=True)
    go(tmp_path / "run", fixed, monkeypatch, one=steady, one_=steady, four=steady)
    assert cycles_in(tmp_path / "run", "four") == [0, 1]
    go(tmp_path / "run", PLAN, monkeypatch, one=steady, one_=steady, four=steady)
    assert cycles_in(tmp_path / "run", "four") == list(range(6))
    assert Store.open(tmp_path / "run").plan.until == PLAN.until  # the table goes by what was wanted last
    again = go(tmp_path / "run", PLAN, monkeypatch)
    assert again.expected == [0]
    assert cycles_in(tmp_path / "run", "four") == list(range(6))


def test_the_first_rounds_are_measured_even_if_time_is_up_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = [900.0, 1100.0] * 9
    plan = replace(PLAN, rounds=7, within_s=0.0)
    heard = go(tmp_path / "run", plan, monkeypatch, one=[1000.0] * 9, one_=[1000.0] * 9, four=wide)
    assert cycles_in(tmp_path / "run", "four") == list(range(7))
    assert [left_s for _, left_s in heard.widths] == [0]
    assert compare(plan, Store(tmp_path / "run", plan).rounds()).warnings[-1].startswith("the intervals did not become")


def test_what_breaks_in_the_middle_does_not_go_on_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [900.0, 1100.0] * 4
    go(tmp_path / "run", PLAN, monkeypatch, one=[1000.0] * 8 + [0, 0], one_=[*wide, 0, 0], four=[*wide, 0, 0])
    assert cycles_in(tmp_path / "run", "one") == [*range(9), 8]  # eight good cycles, and one in vain, with all twice


def test_a_server_that_never_starts_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path / "run", PLAN, monkeypatch, one=[1000.0] * 9, one_=[1000.0] * 9, four=[0])
    assert cycles_in(tmp_path / "run", "four") == [0]
    assert cycles_in(tmp_path / "run", "one'") == list(range(6))
    go(tmp_path / "none", PLAN, monkeypatch, one=[0], one_=[0], four=[0])
    assert cycles_in(tmp_path / "none", "one") + cycles_in(tmp_path / "none", "one'") == [0]


# --- a lost round is measured again


class Lossy(Rates):
    """Rates that are INVALID if negative."""

    def measure(self, plan: Plan, slot: Slot, number: int, *_: object, **__: object) -> Round:
        rate = self.left[slot.configuration].pop(0)
        if not rate:
            return failed(slot.configuration, slot.cycle, number=number)
        place = {"position": slot.position, "again": slot.again, "number": number}
        verdict = "INVALID" if rate < 0 else "OK"
        return measured(slot.configuration, slot.cycle, rate=abs(rate), verdict=verdict, **place)  # type: ignore[arg-type]


FIXED = replace(PLAN, until=0.0, rounds=6, aa=True)


def lossy(folder: Path, monkeypatch: pytest.MonkeyPatch, four: list[float]) -> tuple[Heard, Outcome, list[Round]]:
    steady = [1000.0] * 6
    monkeypatch.setattr("loadtest.measure.session.measure", Lossy(one=steady, one_=steady, four=four).measure)
    heard = Heard()
    store = Store.create(folder, FIXED)
    outcome = run(store, heard, Calm(), base=folder)  # type: ignore[arg-type]
    return heard, outcome, store.rounds()


@pytest.mark.parametrize("lost", [-1.0, 0.0], ids=["invalid", "failed"])
def test_a_lost_round_is_measured_again_at_the_end_of_its_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float
) -> None:
    heard, outcome, rounds = lossy(tmp_path / "run", monkeypatch, [4000.0, lost, *[4000.0] * 5])
    second = [done for done in rounds if done.cycle == 1]
    assert [done.configuration for done in second].count("four") == 2
    again, bad = second[-1], next(done for done in second if not done.verdict.valid)
    if lost:
        assert (again.configuration, again.position, again.again) == ("four", 3, bad.number)
    rate = next(each for each in compare(FIXED, rounds).contrasts if each.name == "four").ratios["rate"]
    assert rate is not None
    assert (rate.pairs, rate.differs) == (6, True)
    assert sum(heard.expected) == len(rounds) == 19
    assert outcome.failed == (lost == 0)


def test_what_is_often_invalid_is_not_tried_until_it_looks_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds in a run, once one was valid, and never one that stands for another."""
    _, _, rounds = lossy(tmp_path / "run", monkeypatch, [-1.0, -1.0, 4000.0, -1.0, 4000.0, -1.0, -1.0, 4000.0])
    four = [(done.cycle, done.verdict.valid) for done in rounds if done.configuration == "four"]
    assert four == [
        *((0, False), (1, False)),  # there is nothing yet that says that it can be measured at all
        *((2, True), (0, False), (1, True)),
        *((3, False), (4, False), (5, True)),
    ]
    (said,) = [warning for warning in compare(FIXED, rounds).warnings if "(nap)" in warning]
    assert said.startswith("four (nap): 5 of 8 rounds are INVALID")


# --- what looking again and again costs


@pytest.mark.slow
@pytest.mark.parametrize("machine", [CALM, USUAL, ROUGH], ids=["calm", "usual", "rough"])
@pytest.mark.parametrize("until", [0.01, 0.03])
def test_stopping_when_it_is_narrow_claims_hardly_more(machine: Machine, until: float) -> None:
    """1,000 simulated sessions of 6 to 30 cycles, seeded: 1 in 100 claims if asked twice, 5 to 10 if once."""
    chance = random.Random(7)
    twice = alone = 0
    for _ in range(1000):
        compared, again, both = session(chance, machine, 30)
        ends = range(6, 31)
        end = next((n for n in ends if narrow(compared[:n], until) and narrow(both[:n], until)), 30)
        twice += claimed(compared[:end], again[:end])
        one = next((n for n in ends if narrow(compared[:n], until)), 30)
        alone += claimed(compared[:one])
    assert twice <= 20
    assert alone <= 110
