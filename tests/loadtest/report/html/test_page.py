"""The page, read as a file: its figures are those of the JSON and of the rounds, and all markup on it is ours."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner

import loadtest.report.html
from loadtest.analysis.compare import compare
from loadtest.cli import main
from loadtest.data.records import Round, Second, Worker
from loadtest.data.store import Store
from loadtest.plan.plan import Load, Plan, Server
from loadtest.report import render
from loadtest.report.html.evidence import timeline
from loadtest.report.model import Report
from prefork.status.histogram import Histogram, estimable
from tests.loadtest.records import client, failed, measured, signals
from tests.loadtest.report.pages import HOSTILE, RUNS, Page, at, busy_run, calm_run, printable, run

STYLE = Path(loadtest.report.html.__file__).with_name("page.css").read_text("utf-8")


@pytest.fixture(params=RUNS, scope="module")
def report(request: pytest.FixtureRequest) -> Report:
    return run(request.param)


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(render(report, "html"))


def test_every_figure_equals_the_json(report: Report, page: Page) -> None:
    document = json.loads(render(report, "json"))
    shown = page.having("data-figure")
    for each in shown:
        assert json.loads(each["data-value"]) == at(document, each["data-figure"]), each
    places = {each["data-figure"] for each in shown}
    for number in range(len(document["configurations"])):
        for field in ("name", "rate_per_s", "latency.p50_ns", "latency.max_ns", "cpu_per_request_us", "verdict"):
            assert f"configurations.{number}.{field}" in places
    for number in range(len(document["contrasts"])):
        assert {f"contrasts.{number}.ratios.{metric}" for metric in ("rate", "p50", "p99", "cpu")} <= places


def test_every_table_is_that_of_the_markdown(report: Report, page: Page) -> None:
    """Name, figures, notes and warnings, in the same words; what no page may hold is shown as such."""
    lines = [
        line for line in printable(render(report, "github")).splitlines() if line.startswith("|") and "--|" not in line
    ]
    wanted = [cell.strip() for line in lines for cell in line.strip("|").split("|")]
    cells = []
    for number, each in enumerate(page.elements):
        if each["tag"] in ("th", "td"):
            span = page.elements[number + 1] if each.get("scope") == "row" else each
            cells.append(span["text"].strip())
    assert cells == wanted
    items = {each["text"] for each in page.elements if each["tag"] == "li"}
    assert {printable(note) for note in (*report.notes(), *report.comparison.warnings)} <= items


def test_the_dots_of_the_curves_are_the_percentiles_of_the_table(report: Report, page: Page) -> None:
    """Twice, for two widths; and where the table knows none, there is none."""
    names = ("p50_ns", "p90_ns", "p99_ns", "p99_9_ns")
    wanted = []
    for number, found in enumerate(report.comparison.configurations):
        for clock in ("latency", "service_time") if found.offered is not None else ("latency",):
            known = [name for name in names if getattr(getattr(found, clock), name) is not None]
            wanted += [f"configurations.{number}.{clock}.{name}" for name in known]
    dots = [each["data-figure"] for each in page.having("cx") if "data-figure" in each]
    assert sorted(dots) == sorted(wanted * 2)


def test_the_curves_are_the_quantiles_of_all_rounds_together(report: Report, page: Page) -> None:
    for clock in ("latency", "service_time"):
        for group in page.having("data-series", clock):
            name = group["data-configuration"]
            points = [(share, ns) for share, ns in json.loads(group["data-value"])]
            fitting = [
                whole
                for load in report.loads
                if (whole := merged(report, name, load, clock)).n and whole.max_ns >= points[-1][1]
                if whole.quantiles([share for share, _ in points]) == [ns for _, ns in points]
            ]
            assert fitting, (name, clock)
            last, n = points[-1][0], fitting[0].n
            assert estimable(last - 1e-3 * (1 - last), n)
            assert not estimable(last + 1e-3 * (1 - last), n)
            assert points == sorted(points)


def merged(report: Report, name: str, load: str, clock: str) -> Histogram:
    parts = [
        getattr(done.client, clock)
        for done in report.rounds
        if (printable(done.configuration), done.load) == (name, load) and done.verdict.valid and done.client
    ]
    whole = Histogram(*{part.digits for part in parts})  # a run that is kept may have fewer than it was made with
    for part in parts:
        whole.merge(part)
    return whole


def test_the_lines_over_time_are_the_medians_of_the_rounds(report: Report, page: Page) -> None:
    wanted: dict[str, list[list[list[float | None]]]] = {"rate_per_s": [], "p50_ns": [], "p99_ns": []}
    for load in report.loads:
        for found in report.comparison.configurations:
            raw = [
                [asdict(second) for second in done.client.seconds]
                for done in report.rounds
                if (done.configuration, done.load) == (found.name, load) and done.verdict.valid and done.client
            ]
            if found.load != load or not raw:
                continue
            seconds = [column for column in zip(*raw, strict=False) if column[0]["span_s"] >= 0.5]
            for field, values in wanted.items():
                values.append([[column[0]["t_s"], middle(column, field)] for column in seconds])
    for field, values in wanted.items():
        assert [json.loads(each["data-value"]) for each in page.having("data-series", field)] == values


def middle(seconds: tuple[dict[str, float], ...], field: str) -> float | None:
    if field == "rate_per_s":
        return median(second["ended"] / second["span_s"] for second in seconds)
    least = {"p50_ns": 6, "p99_ns": 368}[field]
    known = [second[field] for second in seconds if second["completed"] >= least]
    return median(known) if known else None


def test_the_accept_queue_is_what_the_probe_saw_inside_the_window() -> None:
    looks = ((-0.3, 0.0, 90), (0.02, 0.0, 1), (0.12, 0.0, 3), (0.6, 0.0, 8), (1.9, 0.0, None), (2.1, 0.0, 70))
    rounds = [measured("one", 0, client=client(per_second=[second(0), second(1)]), signals=signals(series=looks))]
    page = Page(page_of(rounds))
    drawn = [json.loads(each["data-value"]) for each in page.having("data-series", "queue")]
    assert drawn == [[[0, 0.25, 2], [0.5, 0.75, 8]]] * 2  # behind throughput and behind latency


def test_a_queue_that_could_not_be_seen_is_not_drawn_as_an_empty_one() -> None:
    looks = tuple((0.1 * number, 0.0, None) for number in range(20))
    rounds = [measured("one", 0, client=client(per_second=[second(0)]), signals=signals(series=looks))]
    text = page_of(rounds)
    assert "requests/s" in text
    assert not Page(text).having("data-series", "queue")
    assert "accept queue</text>" not in text


def second(t_s: int, completed: int = 1000, **change: float | None) -> dict[str, float | None]:
    plain = {
        "t_s": t_s,
        "span_s": 1.0,
        "ended": completed,
        "completed": completed,
        "failed": 0,
        "p50_ns": 10**7,
        "p99_ns": 2 * 10**7,
    }
    return plain | change


def plan() -> Plan:
    return Plan(name="p", servers=(Server(name="one", command="x {port}"),), loads=(Load(name="nap"),))


def page_of(rounds: list[Round]) -> str:
    return render(Report(plan=plan(), rounds=rounds, comparison=compare(plan(), rounds)), "html")


def test_each_worker_has_its_share() -> None:
    bars = Page(render(calm_run(), "html")).having("data-worker")
    assert [bar["data-worker"] for bar in bars] == ["0", "1", "2", "3"] * 3
    assert [json.loads(bar["data-value"]) for bar in bars] == pytest.approx([0.4, 0.3, 0.2, 0.1] * 3)


def test_what_the_server_does_not_count_is_shared_by_cpu_time() -> None:
    cpus_ns = (3 * 10**8, 10**8)
    workers = [
        Worker(slot=at, cpu_ns=ns, accepted=None, requests=None, connections=None) for at, ns in enumerate(cpus_ns)
    ]
    rounds = [measured("one", 0, signals=signals(workers=tuple(workers)))]
    text = page_of(rounds)
    assert [json.loads(bar["data-value"]) for bar in Page(text).having("data-worker")] == [0.75, 0.25]
    assert "CPU time by worker" in text
    rounds = [measured("one", 0, signals=signals(workers=tuple(replace(each, cpu_ns=None) for each in workers)))]
    text = page_of(rounds)
    assert not Page(text).having("data-worker")


def test_without_workers_to_compare_there_is_no_such_chart() -> None:
    assert "Share of each worker" in render(calm_run(), "html")
    assert "Share of each worker" not in page_of([measured("one", 0)])


def test_a_long_window_makes_no_long_page() -> None:
    """Half an hour: in parts of 8 s, each with all its exchanges and the worst of its p99."""
    seconds = [second(t_s, p99_ns=10**9 if t_s == 801 else 2 * 10**7) for t_s in range(1800)]
    latency = Histogram()
    latency.record(10**7, 1_800_000)
    long = client(duration_s=1800.0, completed=1_800_000, latency=latency.to_json(), per_second=seconds)
    rounds = [measured("one", cycle, client=long) for cycle in range(6)]
    text = page_of(rounds)
    (drawn,) = (json.loads(each["data-value"]) for each in Page(text).having("data-series", "p99_ns"))
    assert len(drawn) == 225
    assert [t_s for t_s, ns in drawn if ns == 10**9] == [800]
    (rates,) = (json.loads(each["data-value"]) for each in Page(text).having("data-series", "rate_per_s"))
    assert {rate for _, rate in rates} == {1000}
    assert len(text) < 200_000


def test_invalid_rounds_are_in_no_chart() -> None:
    bad = client(completed=9000, per_second=[second(0, 9000)])
    rounds = [
        measured("one", 0, client=client(per_second=[second(0, 1000)])),
        *(measured("one", cycle, verdict="INVALID", client=bad) for cycle in (1, 2)),
        failed("one", 3),
    ]
    page = Page(page_of(rounds))
    assert [json.loads(each["data-value"]) for each in page.having("data-series", "rate_per_s")] == [[[0, 1000]]]


def test_a_run_in_which_nothing_was_measured_is_a_page_without_charts() -> None:
    rounds = [failed("one", 0)]
    text = page_of(rounds)
    assert "the server exited with status 1" in text
    assert not [each for each in Page(text).elements if each["tag"] == "svg"]


def test_parts_of_a_long_window_stand_where_they_were_measured() -> None:
    plain = {"span_s": 2.0, "ended": 9, "completed": 9, "failed": 0, "p50_ns": 1, "p99_ns": None}
    seconds = tuple(Second(t_s=t_s, **plain) for t_s in range(0, 1000, 2))
    drawn = timeline([measured("one", 0, client=replace(client(), duration_s=1000.0, seconds=seconds))])
    assert drawn is not None
    (parts,) = drawn.rounds
    assert [before.end_s for before in parts[:-1]] == [after.start_s for after in parts[1:]]
    assert (parts[0].start_s, parts[-1].end_s) == (0, 1000)


def test_rounds_without_a_series_have_their_percentiles() -> None:
    """As older versions wrote them."""
    rounds = [measured("one", 0)]
    titles = [each["text"] for each in Page(page_of(rounds)).elements if each["tag"] == "h3"]
    assert "Latency by percentile" in titles
    assert "Over time" not in titles


def test_nothing_from_a_file_becomes_markup() -> None:
    text = render(busy_run(), "html")
    page = Page(text)
    assert not {each["tag"] for each in page.elements} & {"script", "img", "iframe", "link", "object", "a"}
    assert not [name for each in page.elements for name in each if name.startswith("on")]
    assert printable(HOSTILE) in {each["text"] for each in page.elements if each["tag"] == "h1"}
    text.encode("utf-8")  # a lone surrogate would not be
    assert not re.search("[\x00-\x08\x0b-\x1f]", text)


def test_the_page_needs_nothing_and_allows_nothing(page: Page) -> None:
    """No attribute and no style loads anything, and the page's own policy forbids scripts and addresses."""
    assert not [
        name for each in page.elements for name in each if name in ("src", "href", "srcset", "style", "xlink:href")
    ]
    assert not re.search(r"url\(|@import|https?:", STYLE)
    (policy,) = (each["content"] for each in page.having("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_drawing_has_a_name_and_a_description(page: Page) -> None:
    drawings = [number for number, each in enumerate(page.elements) if each["tag"] == "svg"]
    assert drawings
    for number in drawings:
        assert page.elements[number]["role"] == "img"
        title, description = page.elements[number + 1 : number + 3]
        assert (title["tag"], description["tag"]) == ("title", "desc")
        assert title["text"]
        assert description["text"]
    assert page.having("lang", "en")
    assert all(each.get("scope") in ("col", "row") for each in page.elements if each["tag"] == "th")


def test_two_runs_have_their_curves_side_by_side(tmp_path: Path) -> None:
    """`compare A B --format html`: what was, and what is."""
    folders = []
    for name in ("before", "after"):
        store = Store.create(tmp_path / name, plan())
        for cycle in range(6):
            store.add(measured("one", cycle, number=cycle, client=client(per_second=[second(0), second(1)])))
        folders.append(str(store.folder))
    result = CliRunner().invoke(main, ["compare", *folders, "--format", "html"])
    assert result.exit_code == 0, result.output
    curves = [each["data-configuration"] for each in Page(result.output).having("data-configuration")]
    assert curves == ["before: one", "after: one"] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_paper(scheme: str) -> None:
    """WCAG 2: 4.5 to 1 for text, 3 to 1 for what is drawn. Names are in ink; colours are lines and marks."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    for name in ("ink", "quiet", "warning"):
        for ground in ("paper", "shade"):
            assert contrast(colours[name], colours[ground]) >= 4.5, name
    for name in (f"c{number}" for number in range(8)):
        assert contrast(colours[name], colours["paper"]) >= 3, name
    assert contrast(colours["queue"], colours["paper"]) >= 3


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else math.pow((part + 0.055) / 1.055, 2.4) for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
