"""The page in a real browser: what people see is what the files say, on a desk, on a phone, at night and on paper."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.report import render
from tests.loadtest.report.pages import RUNS, at, calm_run, printable, run
from tests.support.browser import CHROMIUM, Browser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadtest.report.model import Report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no browser here; on Debian: apt-get install chromium"),
]

FIGURES = """
[...document.querySelectorAll('[data-figure]')].map(e => [e.dataset.figure, e.dataset.value, e.textContent.trim()])
"""
# Each line of text that can be seen, as [text, left, top, right, bottom], cut to the middle of its height, where the
# letters are: lines may share the space between them.
TEXTS = """
(() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    for (const box of range.getClientRects())
      if (walker.currentNode.data.trim() && box.width && box.height)
        found.push([walker.currentNode.data.trim(),
          box.left, box.top + box.height / 5, box.right, box.bottom - box.height / 5]);
  }
  return found;
})()
"""
# What is drawn, as [drawing, element, left, top, right, bottom] in the units of the view box, and the view box.
BOXES = """
[...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width).flatMap(svg =>
  [...svg.querySelectorAll('path, rect, circle, text')].map(e => {
    const box = e.getBBox(), view = svg.viewBox.baseVal;
    return [svg.querySelector('title').textContent, e.outerHTML, box.x, box.y, box.x + box.width, box.y + box.height,
      view.width, view.height];
  }))
"""
# What stands for figures, by its width; a line of which no point is known is not there.
SERIES = """
[...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width).flatMap(svg =>
  [...svg.querySelectorAll('[data-series], [data-worker]')])
  .filter(e => e.dataset.worker || JSON.parse(e.dataset.value).some(point => point.at(-1) !== null))
  .map(e => [e.outerHTML, e.getBBox().width])
"""
SIZES = """
[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect()).filter(box => box.width)
  .map(box => [box.width, box.height])
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CUT = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
COLOURS = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
WIDTHS = (1200, 400)
PAPER = 1032  # the width of A4 on its side, within the margins


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.fixture(params=RUNS, scope="module")
def report(request: pytest.FixtureRequest) -> Report:
    return run(request.param)


@pytest.fixture
def page(report: Report, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(report, "html"), encoding="utf-8")
    return path


def test_it_opens_without_a_complaint_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    for width in WIDTHS:
        before = len(browser.requests), len(browser.complaints)
        browser.open(page, width=width)
        assert browser.requests[before[0] :] == [page.as_uri()]
        assert browser.complaints[before[1] :] == []


def test_the_figures_that_are_seen_equal_the_json(browser: Browser, page: Path, report: Report) -> None:
    document = json.loads(render(report, "json"))
    browser.open(page)
    seen = browser.evaluate(FIGURES)
    assert len(seen) > len(report.comparison.configurations) * 10
    for place, value, text in seen:
        assert json.loads(value) == at(document, place), place
        if place.endswith((".name", ".verdict")):
            assert text == printable(" ".join(at(document, place).split())), place
        elif at(document, place) is None:
            assert text == "-", place


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_drawn_lies_in_its_drawing(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    for name, element, left, top, right, bottom, view_width, view_height in browser.evaluate(BOXES):
        where = f"{name}: {element[:300]}"
        assert left >= -0.5, where
        assert top >= -0.5, where
        assert right <= view_width + 0.5, where
        assert bottom <= view_height + 0.5, where
    for drawn_width, drawn_height in browser.evaluate(SIZES):
        assert drawn_width > 250
        assert drawn_height > 150
    assert [element for element, series_width in browser.evaluate(SERIES) if not series_width > 1] == []


@pytest.mark.parametrize(("width", "media"), [(1200, "screen"), (400, "screen"), (PAPER, "print")])
def test_no_text_lies_on_another(browser: Browser, page: Path, width: int, media: str) -> None:
    browser.open(page, width=width, media=media)
    texts = browser.evaluate(TEXTS)
    assert len(texts) > 50
    assert overlaps(texts) == []


def overlaps(texts: list[list[Any]]) -> list[tuple[str, str]]:
    """Pairs of lines that share more than a unit in both directions."""
    texts = sorted(texts, key=lambda text: text[2])
    found = []
    for number, (one, left, top, right, bottom) in enumerate(texts):
        for other, other_left, other_top, other_right, other_bottom in texts[number + 1 :]:
            if other_top >= bottom - 1:
                break
            across = min(right, other_right) - max(left, other_left)
            if across > 1 and min(bottom, other_bottom) - max(top, other_top) > 1:
                found.append((one, other))
    return found


def test_a_phone_has_no_sideways_scroll_but_that_of_its_tables(browser: Browser, page: Path) -> None:
    browser.open(page, width=400)
    assert browser.evaluate(OVERFLOW) <= 0
    assert max(browser.evaluate(CUT)) > 0


def test_paper_has_the_whole_tables(browser: Browser, page: Path) -> None:
    browser.open(page, width=PAPER, media="print", dark=True)
    assert max(browser.evaluate(CUT)) <= 0
    assert browser.evaluate(COLOURS) == ["rgb(255, 255, 255)", "rgb(26, 30, 36)"]


def test_the_night_has_its_own_colours(browser: Browser, page: Path) -> None:
    browser.open(page)
    by_day = browser.evaluate(COLOURS)
    browser.open(page, dark=True)
    assert browser.evaluate(COLOURS) == ["rgb(18, 21, 26)", "rgb(233, 236, 240)"] != by_day


def test_every_drawing_is_named_to_those_who_do_not_see_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    drawings = [node for node in nodes if not node["ignored"] and node["role"]["value"] in ("image", "img")]
    assert len(drawings) == len(browser.evaluate(SIZES))
    assert all(node["name"]["value"] and node["description"]["value"] for node in drawings)


def test_the_browser_would_tell(browser: Browser, tmp_path: Path) -> None:
    """What the tests above look for is found where it is: errors, requests, text on text; and the policy stops them."""
    path = tmp_path / "bad.html"
    bad = "<img src='http://127.0.0.1:9/x.png'><p>one</p><p style='margin-top: -2em'>two</p><script>nobody()</script>"
    path.write_text(f"<!doctype html><body>{bad}</body>", encoding="utf-8")
    requests, complaints = len(browser.requests), len(browser.complaints)
    browser.open(path)
    assert "http://127.0.0.1:9/x.png" in browser.requests[requests:]
    assert any("nobody is not defined" in complaint for complaint in browser.complaints[complaints:])
    assert [sorted(pair) for pair in overlaps(browser.evaluate(TEXTS))] == [["one", "two"]]
    text = render(calm_run(), "html").replace("<main>", f"<main>{bad}")
    path.write_text(text, encoding="utf-8")
    requests, complaints = len(browser.requests), len(browser.complaints)
    browser.open(path)
    assert browser.requests[requests:] == [path.as_uri()]
    refused = " ".join(browser.complaints[complaints:])
    assert "nobody is not defined" not in refused
    assert "Content Security Policy" in refused
