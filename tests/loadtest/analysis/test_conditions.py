from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.analysis.compare import across, compare
from loadtest.analysis.conditions import METRICS, Condition, ConditionError, broken, parse
from loadtest.plan.plan import Load, Plan, Server
from prefork.status.histogram import Histogram
from tests.loadtest.records import arrivals, client, failed, measured, signals

if TYPE_CHECKING:
    from loadtest.analysis.compare import Comparison
    from loadtest.data.records import Round

PLAN = Plan(
    name="p",
    servers=(Server(name="one", command="x {port}"), Server(name="127.0.0.1:80", attach="127.0.0.1:80")),
    loads=(Load(name="nap", scenario="nap"), Load(name="due", scenario="nap", rate_per_s=500)),
)


def latencies() -> Histogram:
    """5 ms, and 1 of 100 takes 20 ms."""
    made = Histogram()
    made.record(5_000_000, 1980)
    made.record(20_000_000, 20)
    return made


def rounds_of(name: str, rates: list[float], load: str = "nap", **change: object) -> list[Round]:
    return [measured(name, cycle, rate=rate, load=load, **change) for cycle, rate in enumerate(rates)]


def due(**change: object) -> list[Round]:
    by_schedule = client(arrivals=arrivals(missed=3), latency=latencies().to_json(), failures={"reset": 1}, **change)
    return rounds_of("one", [1000] * 6, load="due", client=by_schedule)


ROUNDS = [
    *rounds_of("one", [1000] * 6),
    *rounds_of("one'", [1000, 1100, 900, 1000, 1000, 1000]),
    *rounds_of("127.0.0.1:80", [940, 950, 930, 960, 940, 940]),
    *due(),
]
FOUND = compare(PLAN, ROUNDS)


def lines(*texts: str, comparison: Comparison = FOUND) -> list[str]:
    return list(broken([parse(text) for text in texts], comparison))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("(nap): rate<1000", ["127.0.0.1:80 (nap): rate is 940.0"]),
        ("(nap): rate<=1000/s", ["one (nap): rate is 1,000/s", "127.0.0.1:80 (nap): rate is 940.0/s"]),
        ("one: rate<1000", []),
        ("(nap): max>15ms", ["one (nap): max is 16.00 ms", "127.0.0.1:80 (nap): max is 16.00 ms"]),
        ("(nap):max > 0.0159 s", ["one (nap): max is 0.01600 s", "127.0.0.1:80 (nap): max is 0.01600 s"]),
        ("one (due): p99<5ms", []),
        ("one (due): p90>=5 ms", ["one (due): p90 is 5.001 ms"]),
        ("(due): P99.9>10ms", ["one (due): p99.9 is 20.00 ms"]),
        ("(due): mean>5ms", ["one (due): mean is 5.150 ms"]),
        ("(due): mean>5.2ms", []),
        ("errors>0", ["one (due): errors is 6"]),
        ("errors>6", []),
        ("(due): missed>17", ["one (due): missed is 18"]),
        ("(due): lag>40us", ["one (due): lag is 50.00 us"]),
        ("(due): lag>40µs", ["one (due): lag is 50.00 µs"]),
        ("one (nap): cpu>499us", ["one (nap): cpu is 500.0 us"]),
        ("one (nap): pss>19MB", ["one (nap): pss is 20.00 MB"]),
        ("ratio<0.95", ["127.0.0.1:80 (nap): ratio is 0.9400 [0.934x, 0.956x]; no difference is shown"]),
        ("127.0.0.1:80: ratio<1x", ["127.0.0.1:80 (nap): ratio is 0.9400x [0.934x, 0.956x]; no difference is shown"]),
        ("ratio<0.9", []),
        ("one': ratio>0.5", ["one' (nap): ratio is 1.000 [0.936x, 1.064x]; no difference is shown"]),
        ("invalid>0", []),
    ],
)  # fmt: skip
def test_a_condition_names_the_configuration_the_load_the_figure_and_the_limit(text: str, wrong: list[str]) -> None:
    assert lines(text) == [f'--fail-if "{text}": {line}' for line in wrong]


def test_a_difference_that_is_shown_is_not_called_none() -> None:
    found = compare(PLAN, rounds_of("one", [1000] * 6) + rounds_of("127.0.0.1:80", [800] * 6))
    assert lines("ratio<0.9", comparison=found) == [
        '--fail-if "ratio<0.9": 127.0.0.1:80 (nap): ratio is 0.8000 [0.800x, 0.800x]'
    ]
    few = compare(PLAN, rounds_of("one", [1000]) + rounds_of("127.0.0.1:80", [800]))
    assert lines("ratio<0.9", comparison=few)[0].endswith("ratio is 0.8000 (n=1: too few rounds for an interval)")


def test_what_is_not_known_fails_and_says_why() -> None:
    small = client(completed=100, latency=histogram(100).to_json())
    blind = signals(server=None, queue=None, pss_bytes=None)
    rounds = [measured("one", 0, client=small, signals=blind), failed("127.0.0.1:80", 0)]
    texts = ["p99<1s", "missed<9", "cpu<1s", "pss<1GB", "ratio>0.1", "p50>1s"]
    assert [line.partition(": ")[2] for line in lines(*texts, comparison=compare(PLAN, rounds))] == [
        "one (nap): p99 is not known: 100 exchanges are too few for it",
        "127.0.0.1:80 (nap): p99 is not known: no round could be measured (INVALID)",
        "one (nap): missed is not known: without a rate there is no schedule",
        "127.0.0.1:80 (nap): missed is not known: no round could be measured (INVALID)",
        "one (nap): cpu is not known: the server's processes could not be seen",
        "127.0.0.1:80 (nap): cpu is not known: no round could be measured (INVALID)",
        "one (nap): pss is not known: the server's processes could not be seen",
        "127.0.0.1:80 (nap): pss is not known: no round could be measured (INVALID)",
        "127.0.0.1:80 (nap): ratio is not known: no round could be measured (INVALID)",
        "127.0.0.1:80 (nap): p50 is not known: no round could be measured (INVALID)",
    ]
    scheduled = client(arrivals=arrivals())
    same = compare(PLAN, [measured(name, 0, client=scheduled) for name in ("one", "127.0.0.1:80")])
    assert lines("ratio>0.1", comparison=same)[0].endswith(
        "ratio is not known: a rate was given, so requests/s are the same for all; write a condition on p50, p99 or cpu"
    )
    lone = compare(PLAN, [measured("one", 0), measured("127.0.0.1:80", 1)])
    assert lines("ratio>0.1", comparison=lone)[0].endswith(
        "ratio is not known: no round has one of the baseline beside it"
    )


def histogram(n: int) -> Histogram:
    made = Histogram()
    made.record(5_000_000, n)
    return made


def test_of_two_runs_the_second_is_meant_unless_the_first_is_named() -> None:
    found = across(rounds_of("one", [1000] * 6), rounds_of("one", [800] * 6), ("before", "after"))
    assert lines("rate<900", "ratio<0.9", comparison=found) == [
        '--fail-if "rate<900": after: one (nap): rate is 800.0',
        '--fail-if "ratio<0.9": after: one (nap): ratio is 0.8000 (n=6: no interval, so no difference is shown)',
    ]
    assert lines("before: one: rate>900", comparison=found) == [
        '--fail-if "before: one: rate>900": before: one (nap): rate is 1,000'
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a condition; write METRIC OP VALUE, such as \"p99>5ms\""),
        ("p99", "in quotes, as the shell takes > and < for itself"),
        ("p99=5ms", "'p99=5ms' is not a condition"),
        ("p99>>5ms", "'p99>>5ms' is not a condition"),
        ("p99>-5ms", "'p99>-5ms' is not a condition"),
        ("p99>\u0665ms", "is not a condition"),
        ("p99>1e3ms", "is not a condition"),
        ("p95>5ms", "'p95' is not a figure (did you mean 'p99'?)"),
        ("eror>5", "'eror' is not a figure (did you mean 'errors'?); there are rate, ratio, p50"),
        ("p99>5", "p99 needs a unit; units are ns, us, µs, ms, s"),
        ("p99>5msec", "'msec' is no unit of p99 (did you mean 'ms'?)"),
        ("errors>0ms", "'ms' is no unit of errors; units are none"),
        ("pss>5ms", "'ms' is no unit of pss; units are kB, MB, GB"),
        ("rate>5%", "'%' is no unit of rate; units are /s"),
    ],
)
def test_a_condition_that_cannot_be_read_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("on: rate<1", "nothing is called 'on'; there are one (nap), 127.0.0.1:80 (nap), one' (nap), one (due)"),
        ("one (npa): rate<1", "nothing is called 'one (npa)' (did you mean 'one (nap)'?)"),
        ("(dew): rate<1", "nothing is called '(dew)'"),
        ("one: ratio<1", "'one: ratio<1': nothing is compared with one: a ratio needs a second server"),
    ],
)
def test_a_condition_about_nothing_says_what_there_is(text: str, message: str) -> None:
    with pytest.raises(ConditionError, match=re.escape(message)):
        lines(text)


@given(
    where=st.sampled_from(["", "one", "(nap)", "one (nap)", "a: b", "127.0.0.1:80", "x>1"]),
    metric=st.sampled_from(sorted(METRICS)),
    sign=st.sampled_from([">", "<", ">=", "<="]),
    limit=st.decimals(0, 10**6, places=3),
    space=st.sampled_from(["", " "]),
    data=st.data(),
)
def test_what_is_written_is_what_is_read(
    where: str, metric: str, sign: str, limit: float, space: str, data: st.DataObject
) -> None:
    unit = data.draw(st.sampled_from(sorted(METRICS[metric][0])))
    text = (f"{where}:{space}" if where else "") + space.join([metric, sign, str(limit), unit])
    assert parse(shlex.split(shlex.quote(text))[0]) == Condition(
        text=text.strip(), where=where, metric=metric, sign=sign, limit=float(limit), unit=unit
    )
